"""The bound never exceeds the exact similarity, so a row that it ranks out of reach is out of reach."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.bound import coarse_queries, coarse_vectors


def random_pair(seed: int, weighted: bool, top_k: int, dim: int = 6):
    """Texts and videos with padding, attended (not unit) frames; weights uniform (TI) or any (WTI); in float64."""
    rng = torch.Generator().manual_seed(seed)
    texts, words, videos, frames = 3, 5, 4, 7
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    mask = lambda rows, size: torch.arange(size) < torch.randint(1, size + 1, (rows, 1), generator=rng)  # noqa: E731

    def weights(valid):
        logits = 3 * normal(*valid.shape) if weighted else torch.zeros(valid.shape, dtype=torch.float64)
        return logits.masked_fill(~valid, float("-inf")).softmax(-1)

    word_mask, video_mask = mask(texts, words), mask(videos, frames)
    video = unit(normal(videos, frames, dim))
    text = TextEmbeddings(unit(normal(texts, dim)), unit(normal(texts, words, dim)), weights(word_mask), word_mask)
    attended = attended_frames(video, video_mask, top_k) if top_k else video
    return text, VideoEmbeddings(video, attended, weights(video_mask), video_mask)


@pytest.mark.parametrize("interaction", ["ti", "wti"])
@pytest.mark.parametrize("form", ["tokenwise", "pooled"])
@pytest.mark.parametrize("granularity", ["both", "words", "sentence"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), top_k=st.integers(0, 3))
def test_the_bound_lies_below_the_exact_similarity(interaction, form, granularity, seed, top_k):
    config = SimpleNamespace(interaction=interaction, similarity_form=form, text_granularity=granularity)
    text, video = random_pair(seed, weighted=interaction == "wti", top_k=top_k)
    bound = coarse_queries(text, config) @ coarse_vectors(video, config).T
    assert (bound <= similarity(text, video, config) + 1e-9).all()


def test_it_is_the_score_where_there_is_one_frame_and_one_word():
    config = SimpleNamespace(interaction="wti", similarity_form="tokenwise", text_granularity="both")
    text, video = random_pair(5, weighted=True, top_k=0)
    first = lambda rows, length: (torch.arange(length) < 1).expand(rows, length)  # noqa: E731
    text = text.replace(word_mask=first(3, 5), word_weights=first(3, 5).double())
    video = video.replace(video_mask=first(4, 7), frame_weights=first(4, 7).double())
    bound = coarse_queries(text, config) @ coarse_vectors(video, config).T
    torch.testing.assert_close(bound, similarity(text, video, config))


def test_mean_interaction_is_its_own_bound():
    config = SimpleNamespace(interaction="mean", similarity_form="tokenwise", text_granularity="both")
    text, video = random_pair(3, weighted=False, top_k=0)
    bound = coarse_queries(text, config) @ coarse_vectors(video, config).T
    torch.testing.assert_close(bound, similarity(text, video, config))

"""The bound never exceeds the exact similarity, so a row that it ranks out of reach is out of reach."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.bound import bound_queries, coarse_queries, coarse_vectors, compress_frames


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


def lower_bound(text, video, config):
    queries, mask = bound_queries(text, config)
    products = torch.einsum("qmd,vd->qmv", queries, coarse_vectors(video, config))
    return products.masked_fill(~mask[..., None], float("-inf")).amax(1)


@pytest.mark.parametrize("interaction", ["ti", "wti"])
@pytest.mark.parametrize("form", ["tokenwise", "pooled"])
@pytest.mark.parametrize("granularity", ["both", "words", "sentence"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), top_k=st.integers(0, 3))
def test_bound_and_compression_lie_below_the_exact_similarity(interaction, form, granularity, seed, top_k):
    config = SimpleNamespace(interaction=interaction, similarity_form=form, text_granularity=granularity)
    text, video = random_pair(seed, weighted=interaction == "wti", top_k=top_k)
    exact = similarity(text, video, config)
    compressed = similarity(text, compress_frames(video, 3), config)
    bound = lower_bound(text, video, config)
    assert (compressed <= exact + 1e-9).all()
    assert (bound <= compressed + 1e-9).all()
    singles = [text[row : row + 1] for row in range(len(exact))]
    pooled = torch.cat([coarse_queries(single, config, "pooled") for single in singles])
    assert (pooled @ coarse_vectors(video, config).T <= bound + 1e-9).all()


def test_mean_interaction_is_its_own_bound():
    config = SimpleNamespace(interaction="mean", similarity_form="tokenwise", text_granularity="both")
    text, video = random_pair(3, weighted=False, top_k=0)
    torch.testing.assert_close(lower_bound(text, video, config), similarity(text, video, config))


def test_compression_to_all_frames_is_the_exact_similarity():
    config = SimpleNamespace(interaction="wti", similarity_form="tokenwise", text_granularity="both")
    text, video = random_pair(5, weighted=True, top_k=2)
    whole = compress_frames(video, video.video_mask.shape[1])
    torch.testing.assert_close(similarity(text, whole, config), similarity(text, video, config))

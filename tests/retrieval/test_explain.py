"""The parts of a score add up to the score, whatever the interaction; the shown moment is the score's own."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.inference.embedding import encode_texts
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.retrieval.combine import MINUS_WEIGHT, Part, combined_scores, search_combined
from dmae.retrieval.explain import best_frames, score_parts
from dmae.retrieval.fit import fit, random_best_scores, random_captions
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import video_as_text

FORMS = [("mean", "tokenwise", "both")] + [
    ("wti", form, granularity)
    for form, granularity in itertools.product(["tokenwise", "pooled"], ["both", "words", "sentence"])
]


def random_pair(seed: int, videos: int = 5, words: int = 4, frames: int = 6, width: int = 8):
    """Embeddings with padding that is full of garbage."""
    random = torch.Generator().manual_seed(seed)

    def unit(*shape):
        x = torch.randn(*shape, generator=random)
        return x / x.norm(dim=-1, keepdim=True)

    word_mask = torch.tensor([[True] * (words - 1) + [False]])
    video_mask = torch.ones(videos, frames, dtype=torch.bool)
    video_mask[1, 2:] = False
    word_weights = torch.rand(1, words, generator=random) * word_mask
    frame_weights = torch.rand(videos, frames, generator=random) * video_mask
    frames_embeds = unit(videos, frames, width) * 1.3
    frames_embeds[1, 2:] = 100.0
    text = TextEmbeddings(unit(1, width), unit(1, words, width), word_weights / word_weights.sum(), word_mask)
    weights = frame_weights / frame_weights.sum(1, keepdim=True)
    return text, VideoEmbeddings(frames_embeds, frames_embeds, weights, video_mask)


@pytest.mark.parametrize(("interaction", "form", "granularity"), FORMS)
def test_parts_add_up_to_the_score(interaction, form, granularity):
    config = SimpleNamespace(interaction=interaction, similarity_form=form, text_granularity=granularity)
    for seed in range(20):
        text, video = random_pair(seed)
        parts = score_parts(text, video, config)
        torch.testing.assert_close(parts.sum((1, 2)), similarity(text, video, config)[0], atol=1e-5, rtol=1e-5)
        assert (parts.transpose(1, 2)[~video.video_mask] == 0).all()
        by_words, by_sentence = bool(parts[:, :-1].any()), bool(parts[:, -1].any())
        only_sentence = interaction == "mean" or granularity == "sentence"
        assert (by_words, by_sentence) == (not only_sentence, only_sentence or granularity == "both")
        assert (parts[:, :-1][:, ~text.word_mask[0]] == 0).all()


@pytest.mark.parametrize(("interaction", "form", "granularity"), FORMS)
def test_the_best_frame_is_a_real_one_where_all_of_them_speak_against(interaction, form, granularity):
    """A frame that is not there takes nothing away, and so would be best."""
    config = SimpleNamespace(interaction=interaction, similarity_form=form, text_granularity=granularity)
    text, video = random_pair(3)
    text = text.replace(word_embeds=text.sentence_embeds[:, None].expand_as(text.word_embeds))
    frames = -text.sentence_embeds[:, None].expand_as(video.video_embeds)
    mask = torch.arange(6).expand(5, -1) >= 2
    weights = mask / mask.sum(1, keepdim=True)
    found = best_frames(text, VideoEmbeddings(frames, frames, weights, mask), config)
    assert mask.gather(1, found[:, None]).all()


@pytest.mark.parametrize(("interaction", "form", "granularity"), FORMS)
def test_best_frame_is_the_one_whose_loss_costs_most_of_a_mean(interaction, form, granularity):
    """Of frames that are equal but for one that points along the query, that one is best."""
    config = SimpleNamespace(interaction=interaction, similarity_form=form, text_granularity=granularity)
    text, video = random_pair(3)
    frames = video.video_embeds.clone()
    query = text.sentence_embeds[0] + text.word_embeds[0, text.word_mask[0]].sum(0)
    frames[:] = -query / query.norm()
    for number, place in enumerate([4, 1, 0, 5, 3]):
        frames[number, place] = query / query.norm()
    video = VideoEmbeddings(frames, frames, torch.full_like(video.frame_weights, 1 / 6), torch.ones(5, 6).bool())
    assert best_frames(text, video, config).tolist() == [4, 1, 0, 5, 3]


@pytest.fixture(scope="module")
def index(encoded, model, processor):
    return VideoIndex.build(encoded, model, processor)


def test_results_carry_the_moment_of_the_scores_best_frame(index):
    text = encode_texts(index.model, index.processor, ["a red square"])
    for hit in index.search_embeddings(text, top_k=12)[0]:
        position = index.snapshot.positions(np.array([hit.row]))
        video = index.snapshot.gather(position)
        shares = score_parts(text, video, index.config)[0].sum(0)
        times = index.snapshot.tensor("timestamps", position)[0]
        assert hit.moment == pytest.approx(float(times[int(shares.argmax())]), abs=1e-3)


def test_one_part_ranks_like_the_plain_search(index):
    text = encode_texts(index.model, index.processor, ["a green circle"])
    plain = [hit.video_id for hit in index.search_embeddings(text, top_k=12)[0]]
    assert [hit.video_id for hit in search_combined(index.state, [Part(text)], 12)] == plain


def test_words_and_clip_and_minus_words_are_the_weighted_sum(index):
    """Against a slow reference: every exact score in standard deviations, added."""
    first, second = (encode_texts(index.model, index.processor, [words]) for words in ("a red square", "two dogs"))
    clip = video_as_text(index.snapshot.gather(np.array([4])))
    parts = [Part(first), Part(clip), Part(second, MINUS_WEIGHT)]
    rows = np.arange(len(index))
    expected = np.zeros(len(index))
    for part in parts:
        scores = similarity(part.query, index.snapshot.gather(rows), index.config)[0].double().numpy()
        expected += part.weight * (scores - scores.mean()) / scores.std()
    np.testing.assert_allclose(combined_scores(index.state, parts, rows), expected / 2, atol=1e-3)
    best = search_combined(index.state, parts, 12)
    assert [hit.video_id for hit in best] == [index.rows()[n]["video_id"] for n in np.argsort(-expected)]
    with pytest.raises(ValueError, match="only words to leave out"):
        search_combined(index.state, [Part(second, MINUS_WEIGHT)], 3)


def test_random_captions_fit_uniformly_and_nonsense_numbers_do_not(index):
    """By construction half of the random captions fit better than 0.5; a score above all of them fits 1."""
    best = random_best_scores(index)
    assert len(set(random_captions())) == len(best) == 128 and (np.diff(best) >= 0).all()
    assert np.mean([fit(score, best) for score in best]) == pytest.approx(0.5, abs=0.02)
    assert fit(float(best[-1]) + 1, best) == 1.0 and fit(-9.0, best) == 0.0 and fit(0.0, best[:0]) is None

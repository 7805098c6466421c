"""Frames in fewer bytes: what is lost is bounded, and an index of them answers as one of float16, but for that."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import in_8_bits, merge_neighbours

CONFIG = DMAEConfig.tiny()


def videos(seed: int, frames: int, count: int = 5) -> VideoEmbeddings:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(frames) < torch.randint(1, frames + 1, (count, 1), generator=rng)
    weights = torch.rand(count, frames, generator=rng).masked_fill(~mask, 0.0)
    values = unit(torch.randn(count, frames, 8, generator=rng))
    return VideoEmbeddings(values, values, weights / weights.sum(1, keepdim=True), mask)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), frames=st.integers(1, 9), left=st.integers(1, 4))
def test_merging_keeps_the_mean_and_never_raises_a_score(seed, frames, left):
    video = videos(seed, frames)
    times = torch.arange(frames).float().expand(5, -1)
    merged, when = merge_neighbours(video, times, left)
    assert merged.video_mask.shape == (5, min(left, frames)) and merged.video_mask.any(1).all()
    mean = lambda v: torch.einsum("bf,bfd->bd", v.frame_weights, v.attended_embeds)  # noqa: E731
    torch.testing.assert_close(mean(merged), mean(video))
    torch.testing.assert_close((merged.frame_weights * when).sum(1), (video.frame_weights * times).sum(1))
    assert (merged.frame_weights[~merged.video_mask] == 0).all()
    rng = torch.Generator().manual_seed(seed + 1)
    mask = torch.ones(3, 4, dtype=torch.bool)
    text = TextEmbeddings(*(unit(torch.randn(*s, 8, generator=rng)) for s in [(3,), (3, 4)]), mask / 4, mask)
    assert (similarity(text, merged, CONFIG) <= similarity(text, video, CONFIG) + 1e-5).all()


def test_equal_neighbours_merge_first():
    scene = unit(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    frames = scene[[0, 0, 0, 1, 1]][None]
    mask = torch.ones(1, 5, dtype=torch.bool)
    merged, times = merge_neighbours(VideoEmbeddings(frames, frames, mask / 5, mask), torch.arange(5.0)[None], 2)
    torch.testing.assert_close(merged.attended_embeds, scene[None])
    torch.testing.assert_close(times, torch.tensor([[1.0, 3.5]]))


def test_8_bits_are_wrong_by_half_a_step_at_most():
    frames = np.random.default_rng(0).normal(size=(6, 4, 16)).astype(np.float32)
    frames[2, 1] = 0
    numbers, scales = in_8_bits(frames)
    assert numbers.dtype == np.int8 and np.abs(numbers).max() == 127
    assert (np.abs(numbers * scales[..., None] - frames) <= scales[..., None] / 2 + 1e-7).all()


@pytest.mark.parametrize("kind, close", [("int8", 0.01), ("merged", 0.5)])
def test_an_index_of_narrow_frames(encoded, model, processor, tmp_path, kind, close):
    wide = VideoIndex.build(encoded, model, processor).search("a red square", top_k=12)[0]
    index = VideoIndex.build(encoded, model, processor, frames=kind).save(tmp_path / "index")
    opened = VideoIndex.open(tmp_path / "index", model, processor)
    assert opened.info()["stored_as"] == kind
    hits = {hit.video_id: hit for hit in opened.search("a red square", top_k=12)[0]}
    assert len(hits) == 12 and hits == {hit.video_id: hit for hit in index.search("a red square", top_k=12)[0]}
    for hit in wide:
        assert abs(hit.score - hits[hit.video_id].score) < close
        assert hit.start <= hits[hit.video_id].moment <= hit.end
    rows = np.arange(12)
    parts = torch.cat([part.attended_embeds.clone() for part in opened.snapshot.widened(rows)])
    torch.testing.assert_close(parts, opened.snapshot.gather(rows).attended_embeds.float())
    opened.delete(encoded.video_ids[:4])  # a third is gone: the segment is written anew
    opened.compact()
    assert len(opened.search("a red square", top_k=12)[0]) == 8 and not opened.snapshot.segments[0].deleted


def test_an_unknown_word_for_frames_is_refused(encoded, model, processor):
    with pytest.raises(ValueError, match="frames='int4' is not a choice; valid: float16, int8, merged"):
        VideoIndex.build(encoded, model, processor, frames="int4")

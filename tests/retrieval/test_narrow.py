"""Frames in fewer bytes: what is lost is bounded, and an index of them answers as one of float16, but for that."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import check_kind, in_8_bits, merge_neighbours, scenes_of, stored_frames

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


def merged_slowly(values, weights, times, mask, left: int):
    """One video, frame by frame: the two most alike neighbours become their mean by weight; empty places go first."""
    frames = [list(frame) for frame in zip(values, weights, times, mask)]
    while len(frames) > left:
        alike = []
        for (one, _, _, there), (other, _, _, here) in itertools.pairwise(frames):
            length = np.linalg.norm(one) * np.linalg.norm(other)
            alike.append(one @ other / length if there and here else 2.0)
        at = int(np.argmax(alike))
        (one, a, early, there), (other, b, late, here) = frames[at : at + 2]
        share = np.array([a, b]) / (a + b) if a + b else np.zeros(2)
        frames[at : at + 2] = [[share @ [one, other], a + b, share @ [early, late], there or here]]
    return [np.array(column) for column in zip(*frames)]


@pytest.mark.parametrize("left", [1, 2, 3, 5])
def test_merging_is_what_a_loop_over_frames_does(left):
    """Frames of any length, as attention leaves them, with holes anywhere."""
    rng = torch.Generator().manual_seed(1)
    video, times = videos(11, 7, count=6), torch.rand(6, 7, generator=rng).cumsum(1)
    values = video.attended_embeds * torch.rand(6, 7, 1, generator=rng) * 3
    mask = video.video_mask & (torch.rand(6, 7, generator=rng) < 0.7)
    mask[:, 3] = True
    video = VideoEmbeddings(values, values, (video.frame_weights + 0.05) * mask, mask)
    merged, when = merge_neighbours(video, times, left)
    for row in range(6):
        of = (video.attended_embeds, video.frame_weights, times, video.video_mask)
        values, weights, seconds, mask = merged_slowly(*(part[row].numpy() for part in of), left)
        assert merged.video_mask[row].tolist() == mask.tolist()
        np.testing.assert_allclose(merged.attended_embeds[row].numpy(), values, atol=1e-5)
        np.testing.assert_allclose(merged.frame_weights[row].numpy(), weights, atol=1e-6)
        np.testing.assert_allclose(when[row].numpy(), seconds, atol=1e-5)


def test_frames_that_weigh_nothing_or_are_nothing_do_no_harm():
    frames = torch.zeros(1, 4, 8)
    frames[0, 3, 0] = 1.0
    mask = torch.ones(1, 4, dtype=torch.bool)
    merged, times = merge_neighbours(VideoEmbeddings(frames, frames, frames[..., 0], mask), torch.arange(4.0)[None], 2)
    assert merged.attended_embeds.isfinite().all() and times.isfinite().all() and times[0, 1] == 3.0
    assert merged.frame_weights.tolist() == [[0.0, 1.0]] and merged.attended_embeds[0, 1, 0] == 1.0


@pytest.mark.parametrize("frames", range(1, 14))
def test_what_is_stored_of_the_frames(frames):
    """As they are with their scenes, in 8 bits, or a third of them; weights and times go along."""
    video, times = videos(frames, frames), torch.rand(5, frames)
    third, quarter = int(np.ceil(frames / 3)), int(np.ceil(frames / 4))
    wide, narrow, merged = (stored_frames(video, times, kind) for kind in ("float16", "int8", "merged"))
    assert np.array_equal(wide["frames"], video.attended_embeds.numpy()) and np.array_equal(wide["timestamps"], times)
    plain = {"frames", "frame_weights", "video_mask", "timestamps"}
    assert wide.keys() == plain | ({"scenes", "scene_factors"} if frames > 4 else set())
    assert narrow.keys() == merged.keys() == plain | {"frame_scales"}
    assert np.array_equal(narrow["frames"], in_8_bits(wide["frames"])[0])
    assert np.array_equal(narrow["frame_scales"], in_8_bits(wide["frames"])[1])
    parts, when = merge_neighbours(video, times, third)
    assert np.array_equal(merged["frames"], in_8_bits(parts.attended_embeds.numpy())[0])
    for arrays, part, seconds in ((wide, video, times), (narrow, video, times), (merged, parts, when)):
        assert np.array_equal(arrays["frame_weights"], part.frame_weights)
        assert np.array_equal(arrays["video_mask"], part.video_mask) and np.array_equal(arrays["timestamps"], seconds)
    if frames <= 4:
        assert scenes_of(video) == {}
        return
    scenes, (scales, weights) = wide["scenes"], np.moveaxis(wide["scene_factors"], -1, 0)
    parts, _ = merge_neighbours(video, times, quarter)
    assert scenes.shape == (5, quarter, 8) and scenes.dtype == np.int8 and weights.dtype == np.float32
    for row in range(5):
        there = np.flatnonzero(parts.video_mask[row])
        expected = parts.attended_embeds[row].numpy()[[j if j in there else there[0] for j in range(quarter)]]
        np.testing.assert_allclose(scenes[row] * scales[row][:, None], expected, atol=0.01)
        np.testing.assert_allclose(weights[row], parts.frame_weights[row], atol=1e-6)


def test_8_bits_take_the_nearest_of_255_steps():
    frames = np.array([[[254.0, 3.1, -2.9, -127.2], [0.0, 0.0, 0.0, 0.0]]], np.float32)
    numbers, scales = in_8_bits(frames)
    assert numbers.tolist() == [[[127, 2, -1, -64], [0, 0, 0, 0]]] and scales.tolist() == [[2.0, 0.0]]
    tiny, scales = in_8_bits(np.array([[[1e-33, 2e-33]]], np.float64))
    assert np.abs(tiny).max() <= 127
    for kind in ("float16", "int8", "merged"):
        check_kind(kind)

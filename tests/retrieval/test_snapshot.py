"""What a search reads of the segments, beside slow ways to the same."""

import numpy as np
import pytest
import torch

from dmae.modeling_dmae.embeddings_dmae import VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import snapshot as snapshots
from dmae.retrieval.narrow import stored_frames
from dmae.retrieval.segments import ROW_TENSORS, Segment, segment_arrays
from dmae.retrieval.snapshot import Snapshot

FRAMES, WIDTH = 12, 16


def segment(first: int, rows: int, deleted=()) -> Segment:
    frames = unit(torch.randn(rows, FRAMES, WIDTH, generator=torch.Generator().manual_seed(first)))
    mask = torch.arange(FRAMES) < torch.arange(1, rows + 1)[:, None]  # short videos too
    weights = mask / mask.sum(1, keepdim=True)
    arrays = stored_frames(VideoEmbeddings(frames, frames, weights, mask), torch.zeros(mask.shape), "float16")
    ids = np.arange(first, first + rows)
    lines = [{"video_id": f"v{number}", "path": f"{number}.mp4", "start": 0.0, "end": 1.0} for number in ids]
    arrays["coarse"] = np.zeros((rows, WIDTH))
    return Segment(segment_arrays(ids=ids, rows=lines, **arrays), deleted=deleted)


WHOLE = [segment(5, 40), segment(45, 3), segment(48, 90)]
HOLED = [segment(5, 40, deleted=[0, 7]), segment(60, 30), segment(45, 3)]
GAPS = [[segment(0, 5, deleted=[1, 2])], [segment(0, 7, deleted=[1, 2, 4])], [segment(3, 6, deleted=[4])]]


@pytest.mark.parametrize("segments", [WHOLE, HOLED, [], *GAPS])
def test_positions_are_those_of_the_ids_that_live(segments):
    snapshot = Snapshot(segments)
    place = {number: position for position, number in enumerate(snapshot.ids.tolist())}
    asked = np.random.default_rng(0).permutation(np.arange(-3, 150))
    expected = [place[number] for number in asked.tolist() if number in place]
    assert snapshot.positions(asked).tolist() == expected


@pytest.mark.parametrize("segments", [WHOLE, HOLED, WHOLE[:1]])
def test_a_tensor_is_read_row_by_row_in_the_order_that_is_asked_for(segments):
    snapshot = Snapshot(segments)
    places = np.random.default_rng(4).permutation(len(snapshot))
    for positions in (places, np.sort(places), places[:1], places[:0], np.arange(9, 17), np.array([3, 2, 1, 4, 5])):
        rows = [snapshot.segments[snapshot.owner[p]].arrays["frames"][snapshot.number[p]] for p in positions]
        found = snapshot.tensor("frames", positions).numpy()
        assert found.shape == (len(positions), FRAMES, WIDTH) and all(map(np.array_equal, found, rows))
        video = snapshot.gather(positions)
        assert np.array_equal(video.video_embeds.numpy(), found) and len(video.video_mask) == len(positions)
        assert sum(len(part.video_mask) for part in snapshot.widened(positions)) == len(positions)


@pytest.mark.parametrize("segments", [WHOLE, HOLED])
def test_scenes_score_as_row_by_row(segments, monkeypatch):
    monkeypatch.setattr(snapshots, "SCENE_ROWS", 7)
    snapshot, rng = Snapshot(segments), np.random.default_rng(1)
    query = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    positions = np.sort(rng.choice(len(snapshot), 50, replace=False))
    expected = []
    for position in positions:
        arrays = snapshot.segments[snapshot.owner[position]].arrays
        scenes, factors = (arrays[name][snapshot.number[position]].astype(np.float64) for name in snapshots.SCENES)
        products = [scale * (scene @ query.numpy()) for scene, (scale, _) in zip(scenes, factors)]
        expected.append((max(products) + sum(w * x for (_, w), x in zip(factors, products))) / 2)
    np.testing.assert_allclose(snapshot.scene_scores(query, positions), expected, atol=1e-5)
    assert len(snapshot.scene_scores(query, positions[:0])) == 0


def test_memory_that_is_used_again_has_the_shape_that_is_asked_for():
    name = "of this test alone"
    first = snapshots._scratch(name, (2, 3), torch.float32)
    assert first.shape == (2, 3) and first.dtype == torch.float32
    assert snapshots._scratch(name, (2, 3), torch.float32) is first
    other = snapshots._scratch(name, (3, 2), torch.float32)
    assert other.shape == (3, 2) and snapshots._scratch(name, (3, 2), torch.int8).dtype == torch.int8
    assert snapshots._scratch("another of this test", (3, 2), torch.int8) is not snapshots._scratch(
        name, (3, 2), torch.int8
    )


def test_rows_are_where_their_roots_are_now():
    made = segment(0, 2).arrays
    columns = {name: made[name] for name in (*ROW_TENSORS, *snapshots.SCENES)}
    rows = [{"video_id": name, "path": f"{name}.mp4", "root": "films", "start": 0.0, "end": 1.0} for name in "ab"]
    snapshot = Snapshot([Segment(segment_arrays(**columns, rows=rows))], {"films": "/disk"})
    assert snapshot.row(1)["path"] == "/disk/b.mp4" and snapshot.rows()[0]["path"] == "/disk/a.mp4"


def test_a_row_read_alone_is_that_of_all_rows_however_many_were_read(monkeypatch):
    monkeypatch.setattr(snapshots, "RECENT", 5)
    snapshot, every = Snapshot(WHOLE), Snapshot(WHOLE).rows()
    for position in np.random.default_rng(3).integers(0, 20, 200):
        assert snapshot.row(position) == every[position] and len(snapshot._recent) <= 5
    snapshot = Snapshot(WHOLE)
    first = snapshot.row(0)
    assert [snapshot.row(position) for position in range(1, 5)] and snapshot.row(0) is first, "it stays parsed"


def test_a_second_of_a_video_is_shown_by_the_first_row_that_reaches_it():
    """What is said at a second is looked for where it is seen; words without a second, in the first row."""
    names, ends = ["a", "b", "a", "a"], [4.0, 9.0, 6.0, 8.0]
    rows = [{"video_id": name, "path": f"{name}.mp4", "start": end - 4.0, "end": end} for name, end in zip(names, ends)]
    made = segment(0, 4).arrays
    columns = {name: made[name] for name in (*ROW_TENSORS, *snapshots.SCENES)}
    snapshot = Snapshot([Segment(segment_arrays(**columns, rows=rows))])
    asked = [None, 0.0, 4.0, 4.01, 6.0, 7.9, 8.0, 99.0]
    assert [snapshot.shown_by("a", second) for second in asked] == [0, 0, 0, 2, 2, 3, 3, 0]
    assert [snapshot.shown_by("b", second) for second in (None, 1.0, 99.0)] == [1, 1, 1]
    assert snapshot.shown_by("c", None) is snapshot.shown_by("c", 1.0) is None

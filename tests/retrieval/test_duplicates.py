"""What two videos share is found with its times; what any two videos may have alike makes no pair."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmae.cli import app
from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.retrieval import duplicates
from dmae.retrieval.duplicates import find_duplicates
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.segments import Segment, segment_arrays
from dmae.retrieval.snapshot import Snapshot

WIDTH, FRAMES = 32, 12


def scenes(seed: int, seconds: int) -> np.ndarray:
    """One picture a second, each another one. -> (seconds, WIDTH)"""
    vectors = np.random.default_rng(seed).normal(size=(seconds, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def encoded_again(video: np.ndarray) -> np.ndarray:
    return video + 0.03 * np.random.default_rng(99).normal(size=video.shape)


FILM, BLACK, INTRO = scenes(0, 60), np.repeat(scenes(1, 1), 24, 0), scenes(2, 12)
VIDEOS = {
    "film": FILM,
    "again": encoded_again(FILM),
    "report": np.concatenate([scenes(3, 12), encoded_again(FILM[24:48]), scenes(4, 36)]),
    "episode 1": np.concatenate([INTRO, scenes(5, 48)]),
    "episode 2": np.concatenate([INTRO, scenes(6, 48)]),
    "dark 1": np.concatenate([scenes(7, 12), BLACK, scenes(8, 12)]),
    "dark 2": np.concatenate([scenes(9, 24), BLACK, scenes(10, 12)]),
    "credits 1": np.concatenate([scenes(11, 48), scenes(12, 12)]),
    "credits 2": np.concatenate([scenes(13, 24), scenes(12, 12)]),
}


@pytest.fixture(scope="module")
def index(model, processor):
    items, frames, times = [], [], []
    for name, pictures in VIDEOS.items():
        for start in range(0, len(pictures), FRAMES):
            items.append({"video_id": name, "path": f"/{name}.mp4", "start": start, "end": start + FRAMES})
            frames.append(pictures[start : start + FRAMES])
            times.append(np.arange(start, start + FRAMES) + 0.5)
    values, mask = torch.tensor(np.stack(frames), dtype=torch.float32), torch.ones(len(items), FRAMES, dtype=torch.bool)
    videos = VideoEmbeddings(values, values, mask / FRAMES, mask)
    return VideoIndex.build(EncodedVideos(videos, items, torch.tensor(np.stack(times)), []), model, processor)


def test_pairs_and_times_are_those_the_videos_were_made_with(index):
    pairs = {(pair.first, pair.second): pair for pair in find_duplicates(index.snapshot)}
    assert set(pairs) == {("again", "film"), ("film", "report"), ("again", "report")}
    assert pairs["again", "film"].kind == "near duplicate"
    (whole,) = pairs["again", "film"].passages
    assert whole.first == whole.second == (0.5, 59.5)
    for name in ("film", "again"):
        pair = pairs[name, "report"]
        (passage,) = pair.passages
        assert pair.kind == "shared passage"
        assert (passage.first, passage.second) == ((24.5, 47.5), (12.5, 35.5)) and passage.likeness > 0.9


def test_a_film_in_reverse_is_another_film(model, processor):
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    values = torch.tensor(np.stack([FILM[:FRAMES], FILM[:FRAMES][::-1]]), dtype=torch.float32)
    items = [{"video_id": name, "path": name, "start": 0, "end": FRAMES} for name in "ab"]
    times = torch.arange(FRAMES).expand(2, -1).float()
    encoded = EncodedVideos(VideoEmbeddings(values, values, mask / FRAMES, mask), items, times, [])
    assert find_duplicates(VideoIndex.build(encoded, model, processor).snapshot) == []


def snapshot_of(rows: list, width: int = 6) -> Snapshot:
    """Rows of (video, [(second, vector), …]), of at most four frames."""
    frames, times, mask = np.zeros((len(rows), 4, width)), np.zeros((len(rows), 4)), np.zeros((len(rows), 4), bool)
    for row, (_, shown) in enumerate(rows):
        for place, (second, vector) in enumerate(shown):
            frames[row, place], times[row, place], mask[row, place] = vector, second, True
    frames[~mask] = 7.0  # garbage
    lines = [{"video_id": name, "path": f"/{name}", "start": s[0][0], "end": s[-1][0] + 1} for name, s in rows]
    coarse = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    columns = {"frames": frames, "frame_weights": mask / 4, "video_mask": mask, "timestamps": times, "coarse": coarse}
    return Snapshot([Segment(segment_arrays(ids=np.arange(len(rows)), rows=lines, **columns))])


def direction(vector):
    return vector / np.linalg.norm(vector)


def test_frames_are_measured_from_the_mean_of_all(monkeypatch):
    """Of real frames alone, each as long as any other; a second that two windows show counts once."""
    vectors = np.random.default_rng(3).normal(size=(7, 6)).astype(np.float16).astype(np.float64)
    shown = [("a", [(0.1, vectors[0]), (0.2004, vectors[1])]), ("a", [(0.2, vectors[2]), (0.3, vectors[3])])]
    snapshot = snapshot_of([*shown, ("b", [(5.0, vectors[4]), (6.0, vectors[5]), (7.0, vectors[6])])])
    mean = np.mean([direction(vector) for vector in vectors], 0)
    np.testing.assert_allclose(duplicates._mean_frame(snapshot), mean, atol=1e-3)
    found = duplicates._frames(snapshot, np.array([0, 1]), mean, (0.1, 1.3))
    np.testing.assert_allclose(found.times, [0.1, 0.2, 0.3], atol=1e-6)
    assert (found.start, found.end) == (0.1, 1.3)
    expected = [direction(direction(vectors[n]) - mean) for n in (0, 1, 3)]
    np.testing.assert_allclose(found.vectors, expected, atol=2e-3)


@pytest.mark.parametrize("block", [1, 25, 2**25])
def test_near_rows_are_those_of_other_videos_that_lie_nearest(block, monkeypatch):
    monkeypatch.setattr(duplicates, "NEAR_ROWS", 3)
    monkeypatch.setattr(duplicates, "BLOCK", block)
    vectors = np.random.default_rng(5).normal(size=(12, 3)).astype(np.float16).astype(np.float64)
    names = np.array(list("abcabcabcabd"), dtype=object)
    snapshot = snapshot_of([(name, [(0.0, np.append(vector, [0, 0, 0]))]) for name, vector in zip(names, vectors)])
    mean = duplicates._mean_frame(snapshot)
    centred = [direction(direction(np.append(vector, [0, 0, 0])) - mean) for vector in vectors]
    expected, pairs = {}, {}
    for row, vector in enumerate(centred):
        others = sorted((n for n in range(12) if names[n] != names[row]), key=lambda n: -(vector @ centred[n]))[:3]
        expected[row] = {n for n in others if vector @ centred[n] >= 0.3}
        for n in expected[row]:
            sides = pairs.setdefault(tuple(sorted((names[row], names[n]))), (set(), set()))
            for at in (row, n):
                sides[names[at] > names[n if at == row else row]].add(at)
    assert {row: set(others.tolist()) for row, others in duplicates._neighbours(snapshot, names, mean)} == expected
    found = duplicates._near_rows(snapshot, names, mean)
    assert {pair: tuple(set(side.tolist()) for side in sides) for pair, sides in found.items()} == pairs
    assert all((np.diff(side) > 0).all() for sides in found.values() for side in sides)


def test_two_rows_are_enough_for_a_pair():
    pictures = [(float(second), vector) for second, vector in enumerate(np.eye(6)[:4])]
    (pair,) = find_duplicates(snapshot_of([("x", pictures), ("b", pictures)]))
    assert (pair.kind, pair.first, pair.second, pair.paths) == ("near duplicate", "b", "x", ("/b", "/x"))
    assert [passage[:2] for passage in pair.passages] == [((0.0, 3.0), (0.0, 3.0))]


def test_the_command_prints_pairs_and_copies(index, tmp_path):
    index.save(tmp_path / "index")
    index.rewrite({"film": {"copies": [{"path": "/elsewhere/film.mp4", "signature": [1, 2]}]}})
    shown = CliRunner().invoke(app, ["duplicates", str(tmp_path / "index"), "--json"])
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [one["kind"] for one in found] == ["near duplicate", "shared passage", "shared passage", "same content"]
    assert found[-1]["paths"] == ["/film.mp4", "/elsewhere/film.mp4"] and "4 pairs among 9 videos" in shown.stderr
    lines = CliRunner().invoke(app, ["duplicates", str(tmp_path / "index")]).stdout.splitlines()
    assert lines[0] == "near duplicate\t0:00-0:59=0:00-0:59\t/again.mp4\t/film.mp4"
    refused = CliRunner().invoke(app, ["duplicates", str(tmp_path / "index"), "--threshold", "2"])
    assert refused.exit_code == 1 and "--threshold 2.0" in refused.stderr

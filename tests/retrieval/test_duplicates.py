"""What two videos share is found with its times; what any two videos may have alike makes no pair."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmae.cli import app
from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.retrieval.duplicates import find_duplicates
from dmae.retrieval.index import VideoIndex

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

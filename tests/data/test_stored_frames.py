"""Frames that are kept are those that decoding gives, and only of the clips that are asked for."""

import copy
from contextlib import contextmanager

import pytest
import torch

from dmae import FrameSampler
from dmae.data.frame_cache import stored_frames
from dmae.data.frame_cache.builder import build_frame_cache
from dmae.data.frame_cache.store import CachedFrames
from dmae.data.frame_cache.stored_frames import MemoryFrames, with_stored_frames
from dmae.files import partial_name


@pytest.fixture
def rows(clips, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [clips / "clip00.mp4", tmp_path / "broken.mp4", clips / "clip01.mp4"]
    rows = [{"video_id": f"v{n}", "video": str(path), "start": None, "end": None} for n, path in enumerate(paths)]
    return [*rows, {**rows[0], "video_id": "part", "start": 0.5, "end": 1.0}]


def test_frames_in_memory_are_the_decoded_ones_of_each_window(processor, rows, monkeypatch):
    plain = processor.feature_extractor
    expected = [plain.decode(row["video"], row["start"], row["end"]) for row in rows if row["video_id"] != "v1"]
    shown = []

    @contextmanager
    def progress(*told, **words):
        shown.append((told, words))
        yield shown.append

    monkeypatch.setattr(stored_frames, "progress", progress)
    reading, broken = with_stored_frames(processor, "memory", rows, 0)
    kept = reading.feature_extractor
    assert shown == [((4, "decoding into memory"), {"unit": "clips"}), 1, 1, 1, 1], "broken ones are done too"
    assert processor.feature_extractor is plain and isinstance(kept, MemoryFrames)
    assert kept.num_frames == plain.num_frames and "clip00" not in repr(kept), "a message shows no frames"
    assert [(one["video_id"], one["path"]) for one in broken] == [("v1", rows[1]["video"])]
    assert "broken.mp4" in broken[0]["error"]
    asked = []
    monkeypatch.setattr(FrameSampler, "decode", lambda self, *arguments: asked.append(arguments) or "decoded")
    for row, decoded in zip([rows[0], rows[2], rows[3]], expected, strict=True):
        found = kept.decode(row["video"], row["start"], row["end"])
        assert torch.equal(found.frames, decoded.frames) and torch.equal(found.timestamps, decoded.timestamps)
    assert asked == [] and len(expected[0].frames) != len(expected[2].frames)
    generator = torch.Generator()
    assert kept.decode(rows[0]["video"], 0.25, 1.0, generator, "more") == "decoded"
    assert asked == [(rows[0]["video"], 0.25, 1.0, generator, "more")]


def test_where_frames_come_from(processor, rows, tmp_path):
    assert with_stored_frames(processor, "none", rows, 0) == (processor, [])
    drawn = copy.copy(processor)
    drawn.feature_extractor = FrameSampler(num_frames=2, size=16, sampling="segment_random")
    with pytest.raises(ValueError, match="segment_random draws new frames each time; use fps"):
        with_stored_frames(drawn, "memory", rows, 0)
    build_frame_cache(rows, tmp_path / "frames", processor.feature_extractor, "lossless", workers=0)
    reading, broken = with_stored_frames(processor, str(tmp_path), rows, 0)
    assert isinstance(reading.feature_extractor, CachedFrames) and broken == []


def test_a_build_in_full(processor, rows, tmp_path):
    """What is made, kept and told, in one process; what a killed build left is gone."""
    folder, counts = tmp_path / "frames", []
    folder.mkdir()
    left = partial_name(folder / "shard-000009.arrow")
    left.write_bytes(b"x")
    report = build_frame_cache(rows, folder, processor.feature_extractor, "lossless", 0, counts.append)
    assert (report.kept, report.made, report.remade, report.damaged_shards) == (0, 3, [], [])
    (bad,) = report.unreadable
    assert (bad["video_id"], bad["video"]) == ("v1", rows[1]["video"]) and "broken.mp4" in bad["reason"]
    assert (
        counts == [0, 1, 1, 1, 1]
        and not left.exists()
        and sorted(path.suffix for path in folder.glob("shard-*")) == [".arrow"]
    )
    counts.clear()
    again = build_frame_cache(rows, folder, processor.feature_extractor, "lossless", 0, counts.append)
    assert (again.kept, again.made, again.bytes_made) == (3, 0, 0) and counts == [3, 1] and report.bytes_made > 1_000

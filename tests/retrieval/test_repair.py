"""What a repair takes out of an index, what it leaves, and what it says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.repair import _names, repair


@pytest.fixture
def index(make_videos, model, processor, tmp_path) -> VideoIndex:
    """Three segments: a b c d, e f g, and a second window of a with h."""
    made = VideoIndex.empty(model, processor, path=tmp_path / "index")
    for seed, (names, extend) in enumerate((("abcd", ""), ("efg", ""), ("ah", "a"))):
        made.add(make_videos(names, seed), extend=extend)
    return made


def files_of(index: VideoIndex) -> list:
    return [index.path / entry["file"] for entry in storage.read_manifest(index.path)["segments"]]


def flip(path, tensor: str, row: int | None = None) -> None:
    """Another bit in a row of a tensor, or in its first byte."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    (start, end), (rows, *_) = (json.loads(content[8 : 8 + size])[tensor][name] for name in ("data_offsets", "shape"))
    content[8 + size + start + (0 if row is None else row * ((end - start) // rows))] ^= 1
    path.write_bytes(content)


def left(index: VideoIndex) -> list[tuple]:
    return [(row["video_id"], row["start"]) for row in VideoIndex.open(index.path).rows()]


def test_a_sound_index_is_left_as_it_is(index):
    before = {path.name: path.read_bytes() for path in index.path.iterdir()}
    assert repair(index.path) == []
    assert {path.name: path.read_bytes() for path in index.path.iterdir()} == before


@pytest.mark.parametrize("tensor", ["frames", "scenes"])
def test_only_wrong_rows_go_and_with_them_their_videos_other_windows(index, tensor):
    """One commit; the rows of a deleted video are nobody's any more, damaged or not."""
    index.delete(["c"])
    first, second, _ = files_of(index)
    for path, row in ((first, 2), (first, 3), (first, 0), (second, 1)):
        flip(path, tensor, row)
    generation = storage.read_manifest(index.path)["generation"]
    assert repair(index.path) == ["a", "d", "f"]
    assert left(index) == [("b", 0.0), ("e", 0.0), ("g", 0.0), ("h", 0.0)]
    manifest = storage.read_manifest(index.path)
    assert manifest["generation"] == generation + 1 and manifest["id"] == index.manifest["id"]
    assert [(entry["rows"], entry["deleted"]) for entry in manifest["segments"]] == [(4, [0, 2, 3]), (3, [1]), (2, [0])]
    assert repair(index.path) == []


def test_a_damaged_tensor_takes_its_segment_whose_file_goes(index):
    first, second, third = files_of(index)
    flip(second, "timestamps")
    flip(third, "coarse")
    assert repair(index.path) == ["e", "f", "g", "a", "h"]
    assert left(index) == [("b", 0.0), ("c", 0.0), ("d", 0.0)]
    assert first.exists() and not second.exists() and not third.exists()


def test_rows_whose_names_are_lost_are_counted(index):
    index.delete(["b", "g"])
    first, second, third = files_of(index)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    assert repair(index.path) == [
        f"{n} rows of {path.name}, whose names cannot be read" for n, path in ((3, first), (2, second))
    ]
    assert left(index) == [("a", 0.0), ("h", 0.0)]
    flip(third, "frames", 0)
    flip(third, "frames", 1)
    assert repair(index.path) == ["a", "h"]
    assert storage.read_manifest(index.path)["segments"] == [] and not third.exists()


def test_names_that_can_still_be_read_are_given():
    lines = [b'{"video_id": "a"}', b"{bad", b'{"video_id": 3}', b'{"name": "x"}', b"[1]", b'{"video_id": "b"}', b""]
    rows = np.frombuffer(b"\n".join(lines), np.uint8)
    segment = SimpleNamespace(file="segment-1", arrays=SimpleNamespace(arrays={"rows": rows}))
    told = "4 rows of segment-1, whose names cannot be read"
    assert _names(segment, np.arange(6)[[0, 1, 2, 3, 4]]) == ["a", "3", told.replace("4", "3")]
    assert _names(segment, np.array([5, 6, 1, 3, 99])) == ["b", told]
    assert _names(segment, np.array([5, 0])) == ["b", "a"]


def test_a_faiss_file_that_is_not_what_was_written_is_forgotten(index):
    """It is built again from the rows; one without a checksum is of an earlier format, and believed."""
    file = storage.fresh_name("coarse", "faiss")
    (index.path / file).write_bytes(b"codes")
    sound = {"file": file, "sum": 3_853_369_677}
    for faiss, kept in (({**sound, "sum": 1}, False), (sound, True), ({"file": file}, True)):
        index.keep(faiss=faiss)
        before = storage.read_manifest(index.path)
        assert repair(index.path) == []
        after = storage.read_manifest(index.path)
        assert ("faiss" in after, after == before) == (kept, kept)
        (index.path / file).write_bytes(b"codes")
        index.refresh()
    flip(files_of(index)[1], "frames", 0)
    assert repair(index.path) == ["e"] and storage.read_manifest(index.path)["faiss"] == {"file": file}
    index.refresh()
    (index.path / file).unlink()
    assert repair(index.path) == [] and "faiss" not in storage.read_manifest(index.path)

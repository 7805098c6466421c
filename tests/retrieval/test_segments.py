"""A segment file: what is in it, what is checked on the way to it, and when it is worth writing again."""

import json
import os
import re
import zlib
from hashlib import blake2b

import numpy as np
import pytest
from safetensors.numpy import save_file

from dmae.retrieval import segments
from dmae.retrieval.segments import (
    DamagedSegment,
    Segment,
    Tensors,
    common_tensors,
    map_safetensors,
    merge_segments,
    segment_arrays,
    video_keys,
    worth_merging,
    write_segment,
)

KEY_OF_A = int.from_bytes(blake2b(b"a", digest_size=8).digest(), "little")
AGAIN = "run `dmae index` again: it names the videos of the damaged rows and embeds them anew"


def arrays(names: str, first: int = 10, **more) -> dict[str, np.ndarray]:
    rows, draw = [{"video_id": name, "n": n} for n, name in enumerate(names)], np.random.default_rng(first)
    count = len(names)
    return segment_arrays(
        ids=range(first, first + count),
        frames=draw.normal(size=(count, 2, 3)),
        frame_weights=np.full((count, 2), 0.5),
        video_mask=np.ones((count, 2)),
        timestamps=draw.random((count, 2)),
        coarse=draw.normal(size=(count, 3)),
        rows=rows,
        **more,
    )


def test_tensors_have_their_types_and_sums():
    scenes = {"scenes": np.arange(12, dtype=np.int8).reshape(2, 2, 3), "scene_factors": np.ones((2, 2, 2), np.float32)}
    made = arrays("ab", **scenes)
    assert {name: (str(array.dtype), len(array)) for name, array in made.items() if name != "rows"} == {
        "scenes": ("int8", 2), "scene_factors": ("float32", 2), "scene_sums": ("uint32", 2), "ids": ("int64", 2),
        "frames": ("float16", 2), "frame_sums": ("uint32", 2), "frame_weights": ("float32", 2),
        "video_mask": ("bool", 2), "timestamps": ("float32", 2), "coarse": ("float16", 2), "row_ends": ("int64", 2),
        "video_keys": ("uint64", 2),
    }  # fmt: skip
    assert made["rows"].tobytes() == b'{"video_id": "a", "n": 0}\n{"video_id": "b", "n": 1}\n'
    assert made["row_ends"].tolist() == [26, 52] and made["ids"].tolist() == [10, 11]
    for name, sums in (("frames", "frame_sums"), ("scenes", "scene_sums")):
        assert made[sums].tolist() == [zlib.crc32(row.tobytes()) for row in made[name]]
    narrow = arrays("a", frame_scales=[[1, 2]])
    assert (narrow["frames"].dtype, narrow["frame_scales"].dtype) == (np.int8, np.float32)
    assert video_keys(["a", "\udce9"]).tolist()[0] == made["video_keys"][0] == KEY_OF_A


def test_rows_of_videos_are_found_by_their_keys_and_by_name():
    """Two names may share a key; the segments of the first formats have none; what is deleted is not there."""
    made = Segment(arrays("abcab"), "f", deleted=[np.int64(3)])
    older = Segment({name: array for name, array in made.arrays.items() if name != "video_keys"}, deleted=[3])
    keys = video_keys("abc")
    for segment in (made, older):
        assert segment.rows_of({"a"}, keys) == [(0, "a")] and segment.rows_of({"z"}, keys) == []
        assert segment.rows_of({"b", "c"}, keys) == [(1, "b"), (2, "c"), (4, "b")]
        assert segment.all_rows()[3] == segment.row(3) == {"video_id": "a", "n": 3}
    assert made.rows_of({"a", "b"}, video_keys("b")) == [(1, "b"), (4, "b")]
    assert (len(made), made.alive.tolist(), made.deleted) == (5, [True, True, True, False, True], [3])
    fewer = made.without([4, 0, 3])
    assert (fewer.deleted, fewer.file, fewer.arrays, made.deleted) == ([0, 3, 4], "f", made.arrays, [3])
    assert made.without([3]) is made and made.without([]) is made and type(fewer.deleted[0]) is int
    assert fewer.manifest_entry() == {"file": "f", "rows": 5, "deleted": [0, 3, 4]}
    assert Segment(made.arrays, "f", [], 7).without([1]).manifest_entry() == {
        "file": "f", "rows": 5, "deleted": [1], "header": 7,
    }  # fmt: skip


def test_a_tensor_is_checked_when_it_is_first_touched_and_a_row_once(tmp_path):
    made = arrays("abcd")
    sums = {name: zlib.crc32(array.tobytes()) for name, array in made.items() if name != "frames"}
    tensors = Tensors(dict(made), sums | {"coarse": 1}, tmp_path)
    assert len(tensors) == len([*tensors]) == len(made) and tensors["timestamps"] is made["timestamps"]
    for _ in range(2):
        with pytest.raises(DamagedSegment) as error:
            tensors["coarse"]
        assert str(error.value) == f"{tmp_path}: damaged segment ('coarse' has another checksum); {AGAIN}"
    assert tensors.unchecked == {*sums} - {"timestamps"}
    made["frames"] = made["frames"].copy()
    made["frames"][2, 1, 0] += 1
    tensors = Tensors(made, sums, tmp_path)
    assert tensors.wrong_rows("frames", np.arange(4)).tolist() == [2]
    tensors.check_rows("frames", np.array([0, 3]))
    assert tensors.checked_rows["frames"].tolist() == [True, False, False, True]
    with pytest.raises(DamagedSegment) as error:
        tensors.check_rows("frames", np.array([0, 1, 2]))
    assert str(error.value) == f"{tmp_path}: damaged segment (the frames of row 2); {AGAIN}"
    assert not tensors.checked_rows["frames"][1:3].any()
    made["frames"][0] = 9.0
    tensors.check_rows("frames", np.array([0, 3])), Tensors(made).check_rows("frames", np.arange(4))


def test_a_segment_comes_back_from_its_file(tmp_path):
    made = write_segment(tmp_path, arrays("abc"))
    path = tmp_path / made.file
    assert re.fullmatch(r"segment-[0-9a-f]{16}\.safetensors", made.file) and [*tmp_path.iterdir()] == [path]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask, "whoever may read the folder may search it"
    entry = made.manifest_entry()
    content = path.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    assert entry == {"file": made.file, "rows": 3, "deleted": [], "header": zlib.crc32(header)}
    again = Segment.open(tmp_path, {**entry, "deleted": [1]})
    assert (again.file, again.deleted, again.header) == (made.file, [1], entry["header"])
    assert {*again.arrays.sums} == {*made.arrays} - {"frames"} and again.arrays.path == path
    for name, array in arrays("abc").items():
        assert np.array_equal(again.arrays[name], array) and again.arrays[name].dtype == array.dtype
    oldest = {name: value for name, value in entry.items() if name != "header"}
    assert Segment.open(tmp_path, oldest).header == entry["header"]
    save_file(dict(made.arrays.arrays), path)
    assert Segment.open(tmp_path, oldest).header is None, "the first format had no checksums"
    plain = map_safetensors(path)[2]
    for wrong, told in (
        (entry, "ValueError: the header has another checksum"),
        ({**entry, "header": plain}, "ValueError: the checksums are missing"),
        ({**oldest, "rows": 2}, "ValueError: 'ids' has 3 rows and the manifest says 2"),
        ({**oldest, "deleted": [3]}, "IndexError: index 3 is out of bounds for axis 0 with size 3"),
    ):
        with pytest.raises(DamagedSegment) as error:
            Segment.open(tmp_path, wrong)
        assert str(error.value) == f"{path}: damaged segment ({told}); {AGAIN}"


def file_of(path, header: dict, data: bytes, size: int | None = None):
    content = json.dumps(header).encode()
    path.write_bytes((len(content) if size is None else size).to_bytes(8, "little") + content + data)
    return 8 + len(content)


def test_what_does_not_fit_together_in_a_file_is_said(tmp_path):
    path = tmp_path / "f"
    entry = {"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4]}
    before = file_of(path, {"a": entry, "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [4, 4]}}, b"\1\2\3\4")
    found, sums, checksum = map_safetensors(path)
    assert found["a"].tolist() == [[1, 2], [3, 4]] and type(found["a"]) is np.ndarray and sums == {}
    assert found["none"].shape == (0, 5) and checksum == zlib.crc32(path.read_bytes()[:before])
    for change, told in (
        ({"data_offsets": [0, 5], "shape": [5]}, r"tensor 'a' ends at byte (\d+) and the file has (\d+)"),
        ({"data_offsets": [-1, 3]}, r"tensor 'a' ends at byte \d+ and the file has \d+"),
        ({"data_offsets": [4, 0]}, r"tensor 'a' ends at byte \d+ and the file has \d+"),
        ({"shape": [3]}, r"tensor 'a' of shape \(3,\) has 4 bytes"),
        ({"dtype": "F16"}, r"tensor 'a' of shape \(2, 2\) has 4 bytes"),
    ):
        before = file_of(path, {"a": {**entry, **change}}, b"\1\2\3\4")
        with pytest.raises(ValueError) as error:
            map_safetensors(path)
        match = re.fullmatch(told, str(error.value))
        assert match and [int(n) for n in match.groups()] in ([], [before + 5, before + 4])
    size = file_of(path, {}, b"", size=3)
    for claimed in (size - 8, size - 7):
        file_of(path, {}, b"", size=claimed)
        if claimed == size - 8:
            assert map_safetensors(path)[:2] == ({}, {})
        else:
            with pytest.raises(ValueError, match=f"^the header claims {claimed} bytes and the file has {size}$"):
                map_safetensors(path)


def test_only_living_rows_are_merged_and_no_damaged_one():
    one, other = Segment(arrays("abc"), deleted=[1]), Segment(arrays("de", 50))
    merged = merge_segments([one, other])
    assert [json.loads(line)["video_id"] for line in merged["rows"].tobytes().splitlines()] == list("acde")
    assert merged["ids"].tolist() == [10, 12, 50, 51]
    whole = np.concatenate([one.arrays["frames"][[0, 2]], other.arrays["frames"]])
    assert np.array_equal(merged["frames"], whole) and merged["video_keys"].tolist() == video_keys("acde").tolist()
    narrow = Segment(arrays("a", frame_scales=np.ones((1, 2))))
    assert "frame_scales" in common_tensors([narrow]) and "frame_scales" not in common_tensors([narrow, one])
    assert common_tensors([one]) == list(segments.ROW_TENSORS)
    damaged = dict(one.arrays.arrays)
    damaged["frame_sums"] = damaged["frame_sums"] + np.array([0, 1, 0], np.uint32)
    sums = {"ids": zlib.crc32(damaged["ids"].tobytes())}
    assert len(merge_segments([Segment(Tensors(damaged, sums), deleted=[1])])["ids"]) == 2, "nobody's row any more"
    with pytest.raises(DamagedSegment, match="the frames of row 1"):
        merge_segments([Segment(Tensors(damaged, sums), deleted=[2])])


class Sized:
    def __init__(self, name: str):
        rows, _, gone = name.partition("-")
        self.name, self.deleted = name, [*range(int(gone or 0))]
        self.alive = np.arange(int(rows)) >= len(self.deleted)

    def __len__(self):
        return len(self.alive)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ("4 4 4", []),  # no more than are allowed
        ("4 4 4 4", [("4 4 4", True), ("4", True)]),  # up to 12 together
        ("4 4 12 4 4", [("4 4", True), ("12", False), ("4 4", True)]),  # in the order of their ids
        ("5 6 5 5 5", [("5", True), ("6", False), ("5 5", True), ("5", True)]),  # half of the full is not small
        ("12-3", []),  # a quarter is not yet more than a quarter
        ("12 12-4", [("12", False), ("12-4", True)]),
        ("8-3 5-2 8-3", [("8-3 5-2", True), ("8-3", True)]),  # its deleted rows count for the one that comes
        ("8-3 8-3", [("8-3", True), ("8-3", True)]),
        ("8-3 7-3 5", [("8-3 7-3", True), ("5", False)]),
        ("", []),
    ],
)
def test_which_segments_are_worth_another_file(sizes, expected):
    """12 rows are full; up to three that live with fewer than 6 are left alone."""
    made = [Sized(name) for name in sizes.split()]
    found = worth_merging(made, full=12, small_allowed=3)
    assert [(" ".join(segment.name for segment in group), merge) for group, merge in found] == expected

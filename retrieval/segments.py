"""Segments: rows that were committed together, in one safetensors file that is never changed, memory-mapped.

Tensors, n rows: `ids` int64 (n,), given once and never used again; `frames` float16 (n,F,D), the attended frame
embeddings, or int8 with `frame_scales` float32 (n,F), see `narrow.py`; `frame_sums` uint32 (n,), the CRC-32 of each
row's frames; `frame_weights` float32 (n,F); `video_mask` bool (n,F); `timestamps` float32 (n,F) seconds; `coarse`
float16 (n,D), see `bound.py`; `scenes` int8 (n,S,D), the frames merged to a quarter (beside float16 frames only), with
their scales and weights in `scene_factors` float32 (n,S,2), and `scene_sums`; `rows` uint8, one JSON line per row, and
`row_ends` int64 (n,), where each line ends; `video_keys` uint64 (n,), a hash of the row's video id, so that a video's
rows are found without reading all lines.

Every byte is under a checksum and every checksum is met on the way to the bytes: the manifest has that of the header,
the header those of the tensors, and `frame_sums` and `scene_sums` those of the rows of the two that are too large to
be read as a whole. A tensor is checked when it is first touched, a row of these when it is first scored. (Format 1 had
none.)
"""

import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dmae import files

DTYPES = {"F16": np.float16, "F32": np.float32, "BOOL": np.bool_}
DTYPES |= {"I8": np.int8, "I64": np.int64, "U64": np.uint64, "U32": np.uint32, "U8": np.uint8}
ROW_TENSORS = ("ids", "frames", "frame_weights", "video_mask", "timestamps", "coarse")
SCENES = ("scenes", "scene_factors")  # not in every segment
SUMS = {"frames": "frame_sums", "scenes": "scene_sums"}  # checked row by row
AGAIN = "run `dmae index` again: it names the videos of the damaged rows and embeds them anew"


class DamagedSegment(ValueError):
    """A segment is not what was committed."""


class Tensors(Mapping):
    """The arrays of a segment by name. Those of a file are checked when first touched. Raises DamagedSegment."""

    def __init__(self, arrays: dict[str, np.ndarray], sums: dict[str, int] | None = None, path: Path | None = None):
        self.arrays, self.sums, self.path = arrays, dict(sums or {}), path
        self.unchecked = set(self.sums)
        self.checked_rows = {name: np.full(len(arrays["ids"]), not self.sums) for name in SUMS if name in arrays}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.unchecked:
            if zlib.crc32(self.arrays[name].data) != self.sums[name]:
                raise DamagedSegment(f"{self.path}: damaged segment ({name!r} has another checksum); {AGAIN}")
            self.unchecked.discard(name)
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def check_rows(self, name: str, numbers: np.ndarray) -> None:
        """Compare these rows of `frames` or `scenes` with their checksums, once in the life of the segment."""
        checked = self.checked_rows[name][numbers]
        if checked.all():
            return
        new = numbers[~checked]
        wrong = self.wrong_rows(name, new)
        if len(wrong):
            raise DamagedSegment(f"{self.path}: damaged segment (the {name} of row {wrong[0]}); {AGAIN}")
        self.checked_rows[name][new] = True

    def wrong_rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Those of these rows whose `frames` or `scenes` are not what was committed."""
        sums, values = self[SUMS[name]], self.arrays[name]
        wrong = [number for number in numbers if zlib.crc32(values[number].data) != sums[number]]
        return np.array(wrong, dtype=np.int64)


class Segment:
    """Rows committed together, read-only. Arrays are memory maps of the file, or plain arrays of an index in memory."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], file: str | None = None, deleted=(), header: int | None = None
    ):
        self.arrays = arrays if isinstance(arrays, Tensors) else Tensors(dict(arrays))
        self.file, self.header = file, header
        self.deleted = sorted(int(number) for number in deleted)
        self.alive = np.ones(len(self.arrays.arrays["ids"]), dtype=bool)
        self.alive[self.deleted] = False

    def __len__(self) -> int:
        return len(self.alive)

    @classmethod
    def open(cls, folder: Path, entry: dict) -> "Segment":
        """The segment of a manifest's entry. Only the header is read. Raises DamagedSegment, FileNotFoundError."""
        path = folder / entry["file"]
        try:
            arrays, sums, header = map_safetensors(path)
            if entry.get("header", header) != header:
                raise ValueError("the header has another checksum")
            if "header" in entry and not sums:
                raise ValueError("the checksums are missing")
            _check_shapes(arrays, entry["rows"])
            return cls(Tensors(arrays, sums, path), entry["file"], entry["deleted"], header if sums else None)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedSegment(f"{path}: damaged segment ({type(error).__name__}: {error}); {AGAIN}") from error

    def row(self, number: int) -> dict:
        ends = self.arrays["row_ends"]
        start = int(ends[number - 1]) if number else 0
        return json.loads(str(self.arrays["rows"][start : int(ends[number])].data, "utf-8"))

    def all_rows(self) -> list[dict]:
        return [json.loads(line) for line in self.arrays["rows"].tobytes().splitlines()]

    def rows_of(self, videos: set[str], keys: np.ndarray) -> list[tuple[int, str]]:
        """(row, video id) of the living rows of these videos, whose `video_keys` are `keys`."""
        if "video_keys" in self.arrays:
            likely = np.flatnonzero(np.isin(self.arrays["video_keys"], keys) & self.alive)
            named = [(number, self.row(number)["video_id"]) for number in likely.tolist()]
        else:  # formats 1 and 2
            named = [(number, row["video_id"]) for number, row in enumerate(self.all_rows()) if self.alive[number]]
        return [(number, name) for number, name in named if name in videos]  # two names may share a key

    def manifest_entry(self) -> dict:
        entry = {"file": self.file, "rows": len(self), "deleted": self.deleted}
        return entry if self.header is None else {**entry, "header": self.header}

    def without(self, numbers: Iterable[int]) -> "Segment":
        """The same file with these rows marked deleted."""
        gone = set(numbers) - set(self.deleted)
        return Segment(self.arrays, self.file, {*self.deleted, *gone}, self.header) if gone else self


def open_segments(folder: Path, entries: Iterable[dict], known: Iterable[Segment] = ()) -> list[Segment]:
    """The segments of these manifest entries; a file that is open in `known` is not opened again."""
    opened = {segment.file: segment for segment in known}
    return [
        Segment(before.arrays, before.file, entry["deleted"], before.header)
        if (before := opened.get(entry["file"]))
        else Segment.open(folder, entry)
        for entry in entries
    ]


def video_keys(videos: Iterable[str]) -> np.ndarray:
    """64-bit hashes of video ids."""
    digests = [blake2b(video.encode("utf-8", "surrogatepass"), digest_size=8).digest() for video in videos]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def segment_arrays(
    ids, frames, frame_weights, video_mask, timestamps, coarse, rows: Sequence[dict], frame_scales=None, **scenes
) -> dict[str, np.ndarray]:
    """The tensors of a segment file in their stored types; `rows` become JSON lines. scenes: as `scenes_of` gives
    them, or none."""
    # escaped: a name that is not UTF-8 reaches us as lone surrogates, which have no bytes of their own
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    frames = np.ascontiguousarray(frames, dtype=np.float16 if frame_scales is None else np.int8)
    scales = {} if frame_scales is None else {"frame_scales": np.asarray(frame_scales, dtype=np.float32)}
    if scenes:
        scenes["scene_sums"] = np.array([zlib.crc32(row) for row in scenes["scenes"]], dtype=np.uint32)
    return {
        **scales,
        **scenes,
        "ids": np.asarray(ids, dtype=np.int64),
        "frames": frames,
        "frame_sums": np.array([zlib.crc32(row) for row in frames], dtype=np.uint32),
        "frame_weights": np.asarray(frame_weights, dtype=np.float32),
        "video_mask": np.asarray(video_mask, dtype=bool),
        "timestamps": np.asarray(timestamps, dtype=np.float32),
        "coarse": np.asarray(coarse, dtype=np.float16),
        "rows": np.frombuffer(b"".join(lines), dtype=np.uint8),
        "row_ends": np.cumsum([len(line) for line in lines], dtype=np.int64),
        "video_keys": video_keys(row["video_id"] for row in rows),
    }


def merge_segments(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """The living rows of several segments as the arrays of one."""
    for segment in segments:  # else damage would get a checksum of its own
        for name in segment.arrays.checked_rows:
            segment.arrays.check_rows(name, np.flatnonzero(segment.alive))
    names = common_tensors(segments)
    arrays = {name: np.concatenate([segment.arrays[name][segment.alive] for segment in segments]) for name in names}
    rows = [row for segment in segments for row, alive in zip(segment.all_rows(), segment.alive) if alive]
    return segment_arrays(**arrays, rows=rows)


def common_tensors(segments: Sequence[Segment]) -> list[str]:
    """What all these segments have for a row. Indexes of earlier versions, and narrow frames, have no scenes."""
    return [name for name in (*ROW_TENSORS, "frame_scales", *SCENES) if all(name in s.arrays for s in segments)]


def worth_merging(segments: Sequence[Segment], full: int, small_allowed: int = 8) -> list[tuple[list[Segment], bool]]:
    """Which segments to rewrite: [(segments in order, merge them?)], or [] when nothing is worth it.

    Small segments are joined up to `full` rows once there are more than `small_allowed` of them, and any segment is
    rewritten once a quarter of it is deleted: adding one video at a time costs little, and nothing grows without end.
    """
    small = [segment for segment in segments if int(segment.alive.sum()) < full // 2]
    holed = [segment for segment in segments if len(segment.deleted) * 4 > len(segment)]
    if len(small) <= small_allowed and not holed:
        return []
    groups: list[tuple[list[Segment], bool]] = []
    for segment in segments:
        rewrite = segment in holed or (segment in small and len(small) > small_allowed)
        room = bool(groups) and groups[-1][1] and sum(int(s.alive.sum()) for s in groups[-1][0]) + len(segment) <= full
        if rewrite and room:
            groups[-1][0].append(segment)
        else:
            groups.append(([segment], rewrite))
    return groups


def write_segment(folder: Path, arrays: Mapping[str, np.ndarray]) -> Segment:
    """Write a segment under a fresh name, synced to disk; it belongs to the index once a manifest names it."""
    file = f"segment-{secrets.token_hex(8)}.safetensors"
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sums = {name: zlib.crc32(array.data) for name, array in arrays.items() if name not in SUMS}
    with files.new_file(folder / file) as partial:
        save_file(arrays, partial, {"sums": json.dumps(sums)})
        partial.chmod(0o666 & ~_umask())  # the library makes it private; whoever may read the folder may search it
    return Segment.open(folder, {"file": file, "rows": len(arrays["ids"]), "deleted": []})


def map_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """Memory maps of the tensors of a safetensors file, their stored checksums, and the checksum of the header.

    The file is an 8-byte length, a JSON header, then the bytes. Raises ValueError where they do not fit together.
    """
    files.reached("read", path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = stream.read(8)
        header_size = int.from_bytes(length, "little")
        if header_size > size - 8:
            raise ValueError(f"the header claims {header_size} bytes and the file has {size}")
        content = stream.read(header_size)
    header = json.loads(content)
    sums = json.loads(header.pop("__metadata__", {}).get("sums", "{}"))
    arrays = {}
    for name, entry in header.items():
        (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]])
        if not 0 <= start <= end or 8 + header_size + end > size:
            raise ValueError(f"tensor {name!r} ends at byte {8 + header_size + end} and the file has {size}")
        if int(np.prod(shape)) * dtype.itemsize != end - start:
            raise ValueError(f"tensor {name!r} of shape {shape} has {end - start} bytes")
        if start == end:  # an empty array cannot be mapped
            arrays[name] = np.empty(shape, dtype)
        else:
            mapped = np.memmap(path, dtype, mode="r", offset=8 + header_size + start, shape=shape)
            arrays[name] = mapped.view(np.ndarray)  # the subclass makes every row that is taken slower
    return arrays, sums, zlib.crc32(length + content)


def _check_shapes(arrays: dict[str, np.ndarray], rows: int) -> None:
    for name in (*ROW_TENSORS, "row_ends"):
        if len(arrays[name]) != rows:
            raise ValueError(f"{name!r} has {len(arrays[name])} rows and the manifest says {rows}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

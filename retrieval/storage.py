"""The index on disk: immutable segment files and one manifest whose renaming is the commit.

    INDEX/manifest.json            what the index is and which segments belong to it; all else is reached from here
    INDEX/segment-XXXX.safetensors rows that were committed together; memory-mapped, never changed
    INDEX/coarse-XXXX.faiss        a FAISS index over the coarse vectors (only with that backend)
    INDEX/query_bank.npz, .txt     what QB-Norm needs of a bank of captions, and the captions (only when one was stored)
    INDEX/skipped.jsonl            files that could not be read, with the reason

A row is a video or one window of it. Tensors of a segment, n rows: `ids` int64 (n,), given once and never used again;
`frames` float16 (n,F,D), the attended frame embeddings; `frame_weights` float32 (n,F); `video_mask` bool (n,F);
`timestamps` float32 (n,F) seconds; `coarse` float16 (n,D), see `bound.py`; `rows` uint8, one JSON line per row, and
`row_ends` int64 (n,), where each line ends. A process killed at any moment leaves the last manifest, hence a whole
index; files that no manifest names are swept by the next writer.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FORMAT = 1
MANIFEST = "manifest.json"
DTYPES = {"F16": np.float16, "F32": np.float32, "BOOL": np.bool_, "I64": np.int64, "U8": np.uint8}
REQUIRED = ("format", "generation", "next_id", "model", "config", "segments")


class Segment:
    """Rows committed together, read-only. Arrays are memory maps of the file, or plain arrays of an index in memory."""

    def __init__(self, arrays: dict[str, np.ndarray], file: str | None = None, deleted: Sequence[int] = ()):
        self.arrays, self.file = arrays, file
        self.deleted = sorted(deleted)
        self.alive = np.ones(len(arrays["ids"]), dtype=bool)
        self.alive[self.deleted] = False

    def __len__(self) -> int:
        return len(self.alive)

    @classmethod
    def open(cls, folder: Path, file: str, deleted: Sequence[int] = ()) -> "Segment":
        try:
            return cls(map_safetensors(folder / file), file, deleted)
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"{folder / file}: damaged segment ({error}); remove the index folder and index the videos again"
            ) from error

    def row(self, number: int) -> dict:
        ends = self.arrays["row_ends"]
        start = int(ends[number - 1]) if number else 0
        return json.loads(self.arrays["rows"][start : int(ends[number])].tobytes())

    def all_rows(self) -> list[dict]:
        return [json.loads(line) for line in self.arrays["rows"].tobytes().splitlines()]

    def manifest_entry(self) -> dict:
        return {"file": self.file, "rows": len(self), "deleted": [int(number) for number in self.deleted]}

    def without(self, ids: np.ndarray) -> "Segment":
        """The same file with these ids marked deleted."""
        gone = np.flatnonzero(np.isin(self.arrays["ids"], ids)).tolist()
        return Segment(self.arrays, self.file, set(self.deleted) | set(gone)) if gone else self


def segment_arrays(ids, frames, frame_weights, video_mask, timestamps, coarse, rows: Sequence[dict]) -> dict:
    """The tensors of a segment file in their stored types; `rows` become JSON lines."""
    lines = [json.dumps(row).encode() + b"\n" for row in rows]  # ASCII: a file's name need not be valid Unicode
    return {
        "ids": np.asarray(ids, dtype=np.int64),
        "frames": np.asarray(frames, dtype=np.float16),
        "frame_weights": np.asarray(frame_weights, dtype=np.float32),
        "video_mask": np.asarray(video_mask, dtype=bool),
        "timestamps": np.asarray(timestamps, dtype=np.float32),
        "coarse": np.asarray(coarse, dtype=np.float16),
        "rows": np.frombuffer(b"".join(lines), dtype=np.uint8),
        "row_ends": np.cumsum([len(line) for line in lines], dtype=np.int64),
    }


def merge_segments(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """The living rows of several segments as the arrays of one."""
    arrays = {
        name: np.concatenate([segment.arrays[name][segment.alive] for segment in segments])
        for name in ("ids", "frames", "frame_weights", "video_mask", "timestamps", "coarse")
    }
    rows = [row for segment in segments for row, alive in zip(segment.all_rows(), segment.alive) if alive]
    return segment_arrays(**arrays, rows=rows)


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


def fresh_name(kind: str, suffix: str) -> str:
    return f"{kind}-{secrets.token_hex(8)}.{suffix}"


def write_segment(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write a segment under a fresh name, synced to disk; it belongs to the index once a manifest names it."""
    file = fresh_name("segment", "safetensors")
    temporary = folder / f"{file}.tmp"
    try:
        save_file(arrays, temporary)
    except Exception as error:  # the library has its own exception for a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"{temporary} could not be written: {error}") from error
    temporary.chmod(0o666 & ~_umask())  # the library makes it private; whoever may read the folder may search it
    _sync_and_rename(temporary, folder / file)
    return file


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Memory maps of the tensors of a safetensors file: an 8-byte length, a JSON header, then the bytes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if header_size > size - 8:
            raise ValueError(f"the header claims {header_size} bytes and the file has {size}")
        header = json.loads(stream.read(header_size))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if 8 + header_size + end > size:
            raise ValueError(f"tensor {name!r} ends at byte {8 + header_size + end} and the file has {size}")
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        if start == end:  # an empty array cannot be mapped
            arrays[name] = np.empty(shape, dtype)
        else:
            arrays[name] = np.memmap(path, dtype, mode="r", offset=8 + header_size + start, shape=shape)
    return arrays


def read_manifest(folder: Path) -> dict:
    """The committed manifest. FileNotFoundError: no index here; ValueError: damaged, or of a newer format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing); make one with `dmae index`")
    again = "index the videos again into a new folder"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged manifest ({type(error).__name__}: {error}); {again}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(f"{path}: format {version!r}, and this version of dmae reads up to {FORMAT}; upgrade dmae")
    missing = [name for name in REQUIRED if name not in manifest]
    if missing:
        raise ValueError(f"{path}: damaged manifest, {', '.join(missing)} missing; {again}")
    return manifest


def read_state(path: Path, known: Sequence[Segment] = ()) -> tuple[dict, list[Segment]]:
    """Manifest and segments of one commit. A writer may merge a segment away between the two reads: read again."""
    arrays = {segment.file: segment.arrays for segment in known}
    for attempt in range(5):
        manifest = read_manifest(path)
        try:
            segments = [
                Segment(arrays[entry["file"]], entry["file"], entry["deleted"])
                if entry["file"] in arrays
                else Segment.open(path, entry["file"], entry["deleted"])
                for entry in manifest["segments"]
            ]
        except FileNotFoundError as error:
            if attempt == 4:
                missing = Path(error.filename).name
                raise ValueError(f"{path}: damaged index, {missing} is missing; index the videos again") from error
            continue
        return manifest, segments


def write_manifest(folder: Path, manifest: dict) -> None:
    """The commit: after this rename, and not before, readers see the new state."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: written aside, synced, renamed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync_and_rename(temporary, path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the index for writing; the lock falls with the process. A second writer is refused, readers go on."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{folder} is being written by another process; try again when it has finished") from None
        yield


def remove_if_new(folder: Path) -> None:
    """Undo what `only_writer` made, when nothing was committed."""
    if not (folder / MANIFEST).exists():
        (folder / ".lock").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def sweep(folder: Path, manifest: dict) -> None:
    """Remove what an interrupted writer left behind. Only the writer may call this."""
    named = {entry["file"] for entry in manifest["segments"]} | {(manifest.get("faiss") or {}).get("file")}
    for pattern in ("segment-*", "coarse-*", "*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_and_rename(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

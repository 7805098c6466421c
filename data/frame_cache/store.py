"""The frame cache: chosen, cropped frames of every clip, compressed, so that later epochs do not decode video.

A folder with `cache.json` (which frames: the sampler's settings) and `shard-*.arrow` (Arrow IPC, one row per clip:
video_id, start, end, the source file's size and time, timestamps, the pictures, their CRC-32). Shards are written whole
and then renamed into place, so a cache is readable at every moment, and an interrupted build goes on where it stopped.
A clip that occurs in several shards counts as the last one has it.
"""

import copy
import json
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from dmae.data.frame_cache.codec import checked, decode_frames
from dmae.files import new_file
from dmae.processing.frames_dmae import LATER, DecodedFrames, FrameSampler
from dmae.processing.sources_dmae import file_holding

logger = logging.getLogger(__name__)

FORMAT = 1
SETTINGS_FILE = "cache.json"
SAMPLER_SETTINGS = ("num_frames", "size", "sampling", "fps")
SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("source_bytes", pa.int64()),
        ("source_mtime_ns", pa.int64()),
        ("timestamps", pa.list_(pa.float64())),
        ("pictures", pa.list_(pa.binary())),
        ("crc32", pa.uint32()),
    ]
)
Key = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Entry:
    """One clip's stored frames. source: (bytes, mtime in ns) of the video file they were decoded from."""

    key: Key
    source: tuple[int, int]
    timestamps: list[float]
    pictures: list

    def columns(self) -> dict:
        """The row of SCHEMA."""
        video_id, start, end = self.key
        return {
            "video_id": video_id,
            "start": start,
            "end": end,
            "source_bytes": self.source[0],
            "source_mtime_ns": self.source[1],
            "timestamps": self.timestamps,
            "pictures": self.pictures,
            "crc32": self.checksum(),
        }

    def checksum(self) -> int:
        """CRC-32 over all of it, the key and the times included."""
        value = zlib.crc32(json.dumps([self.key, self.source, self.timestamps]).encode())
        for picture in self.pictures:
            value = zlib.crc32(picture, value)
        return value


def key_of(row: dict) -> Key:
    """What names a clip: its id and its window; the folder it lies in may change."""
    return row["video_id"], row.get("start"), row.get("end")


def source_of(path: str | Path) -> tuple[int, int]:
    """What tells that a video file is still the one that was decoded."""
    status = os.stat(file_holding(path))
    return status.st_size, status.st_mtime_ns


class FrameCache:
    """Reads what `build_frame_cache` wrote. Cheap to pickle and to fork: the shards are memory-mapped.

    cache = FrameCache("prepared/frames", sampler)
    cache.frames(key_of(row))     # what sampler.decode(row["video"], row["start"], row["end"]) gives, from the store
    """

    def __init__(self, folder: str | Path, sampler):
        """folder: the cache, or the `dmae prepare` output that holds it. ValueError: made for other frames."""
        self.folder = find_cache(Path(folder))
        self.codec = read_settings(self.folder, sampler)["codec"]
        self._open()

    def _open(self):
        self._tables: dict[str, pa.Table] = {}
        self._places: dict[Key, tuple[str, int]] = {}
        self.damaged_shards: list[tuple[Path, str]] = []
        for path in sorted(self.folder.glob("shard-*.arrow")):
            try:
                table = read_shard(path)
            except (pa.ArrowException, OSError, ValueError) as error:
                logger.warning("%s: this shard of the frame cache is damaged (%s)", path, error)
                self.damaged_shards.append((path, str(error)))
                continue
            self._tables[path.name] = table
            keys = zip(*(table.column(name).to_pylist() for name in ("video_id", "start", "end")))
            self._places.update({key: (path.name, number) for number, key in enumerate(keys)})

    def __getstate__(self):
        return {"folder": self.folder, "codec": self.codec}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, row: dict) -> bool:
        return key_of(row) in self._places

    def entry(self, key: Key) -> Entry:
        """The stored pictures, without a copy, their checksum verified. KeyError: not there; ValueError: damaged."""
        shard, number = self._places[key]
        row = self._tables[shard].slice(number)
        source = (row.column("source_bytes")[0].as_py(), row.column("source_mtime_ns")[0].as_py())
        pictures = [value.as_buffer() for value in row.column("pictures")[0]]
        entry = Entry(key, source, row.column("timestamps")[0].as_py(), pictures)
        if entry.checksum() != row.column("crc32")[0].as_py():
            raise ValueError(f"{self.folder / shard}: the frames of {key[0]} are damaged (checksum)")
        return entry

    def frames(self, key: Key) -> DecodedFrames:
        """uint8 frames and times. KeyError: not there; ValueError: damaged."""
        entry = self.entry(key)
        frames = decode_frames(entry.pictures, self.codec)
        return DecodedFrames(frames, torch.tensor(entry.timestamps, dtype=torch.float64))


class CachedFrames(FrameSampler):
    """A FrameSampler that takes the frames of `rows` from a cache; what the cache lacks is decoded as usual."""

    def __init__(self, cache: FrameCache, sampler: FrameSampler, rows: Iterable[dict]):
        super().__init__(**sampler.to_dict())
        self.cache = cache
        self.keys = {(row["video"], row["start"], row["end"]): key_of(row) for row in rows if row in cache}

    def decode(self, video, start=None, end=None, generator=None, *of_frames) -> DecodedFrames:
        key = self.keys.get((video, start, end)) if isinstance(video, str) else None
        if key is not None:
            try:
                return self.cache.frames(key)
            except ValueError as error:
                logger.warning("%s; decoding the video. `dmae prepare` with the same options repairs the cache", error)
        return super().decode(video, start, end, generator, *of_frames)


def with_frame_cache(processor, rows: list[dict], folder: str | Path):
    """A copy of the processor that reads the frames of `rows` from a cache; the original is the one to save.

    Raises FileNotFoundError without a cache there, ValueError for a cache of other frames or of none of the rows.
    """
    cache = FrameCache(folder, processor.feature_extractor)
    copied = copy.copy(processor)
    copied.feature_extractor = CachedFrames(cache, processor.feature_extractor, rows)
    found = len(copied.feature_extractor.keys)
    if not found:
        raise ValueError(
            f"{folder}: this frame cache has none of the {len(rows)} clips; was it made for another dataset?"
        )
    if found < len(rows):
        logger.warning(
            "%s: %d of %d clips are not in the frame cache and will be decoded", folder, len(rows) - found, len(rows)
        )
    return copied


def find_cache(folder: Path) -> Path:
    for candidate in (folder, folder / "frames"):
        if (candidate / SETTINGS_FILE).is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder}: no frame cache here (no {SETTINGS_FILE}); make one with `dmae prepare --frame-cache`"
    )


def read_shard(path: Path) -> pa.Table:
    """A memory-mapped, fully validated shard: offsets that a damaged byte sends outside the file raise here."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    if table.schema != SCHEMA:
        raise ValueError(f"unknown columns {', '.join(table.schema.names)}")
    table.validate(full=True)
    return table


def write_shard(folder: Path, entries: list[Entry]) -> Path:
    """Write the next shard; it is there whole or not at all."""
    numbers = [int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.arrow")]
    path = folder / f"shard-{max(numbers, default=-1) + 1:06d}.arrow"
    table = pa.Table.from_pylist([entry.columns() for entry in entries], schema=SCHEMA)
    with new_file(path) as partial, open(partial, "wb") as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
        writer.write_table(table)
    return path


def settings_of(sampler, codec: str) -> dict:
    """What a cache was made with. Random frames differ at every visit, so one choice of them is not stored."""
    if sampler.sampling == "segment_random":
        raise ValueError(
            'sampling="segment_random" draws new frames each time and cannot be cached; use "fps" or "uniform"'
        )
    settings = {name: getattr(sampler, name) for name in SAMPLER_SETTINGS}
    later = {name: value for name, value in sampler.to_dict().items() if name in LATER}  # those that are not as before
    return {"format": FORMAT, "codec": checked(codec)} | settings | later


def read_settings(folder: Path, sampler) -> dict:
    """`cache.json`, checked against the sampler that wants to read."""
    path = folder / SETTINGS_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        wanted = settings_of(sampler, stored["codec"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); delete the folder and run `dmae prepare` again") from None
    differing = [name for name in wanted | LATER if stored.get(name) != wanted.get(name)]
    if differing:
        details = ", ".join(f"{name} {stored.get(name)!r} instead of {wanted[name]!r}" for name in differing)
        raise ValueError(f"{folder}: this frame cache was made with {details}; make another one, or set the same")
    return stored

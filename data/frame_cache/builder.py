"""Building the frame cache: decode what is not there yet in worker processes, store it shard by shard."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dmae.data.frame_cache.codec import encode_frames
from dmae.data.frame_cache.store import (
    SETTINGS_FILE,
    Entry,
    FrameCache,
    key_of,
    read_settings,
    settings_of,
    source_of,
    write_shard,
)
from dmae.data.workers import map_in_workers
from dmae.files import locked, make_folder, tidy, write_file

SHARD_CLIPS = 256
SHARD_BYTES = 64 * 2**20


@dataclass
class BuildReport:
    """What a build did. unreadable: `{video_id, video, reason}`; remade: ids whose entry was damaged or out of date."""

    kept: int = 0
    made: int = 0
    bytes_made: int = 0
    remade: list[str] = field(default_factory=list)
    unreadable: list[dict] = field(default_factory=list)
    damaged_shards: list[str] = field(default_factory=list)


def build_frame_cache(
    rows: Iterable[dict],
    folder: str | Path,
    sampler,
    codec: str = "jpeg",
    workers: int = 2,
    on_progress: Callable[[int], None] = lambda count: None,
) -> BuildReport:
    """Bring the cache in `folder` up to date with `rows` (`{video_id, video, start, end}`), decoding what it lacks.

    Every stored entry is checked: one whose checksum is wrong or whose video file changed is made again. Videos that
    cannot be decoded are named in the report. Ctrl-C stores what is finished; the next call resumes. Raises ValueError
    when the folder's cache holds other frames, or when one id names two files.
    """
    folder = Path(folder)
    make_folder(folder)
    with locked(folder / ".lock", f"{folder}: another `dmae prepare` is building this frame cache; wait for it"):
        tidy(folder)  # what a killed build left
        if (folder / SETTINGS_FILE).exists():
            stored = read_settings(folder, sampler)["codec"]
            if stored != codec:
                raise ValueError(f"{folder}: this frame cache is stored as {stored}, not {codec}; name another folder")
        else:
            write_file(folder / SETTINGS_FILE, json.dumps(settings_of(sampler, codec), indent=2))
        report = BuildReport()
        todo = _outstanding(_one_row_per_clip(rows), FrameCache(folder, sampler), report)
        on_progress(report.kept)
        _decode_and_store(
            todo, folder, partial(decode_clip, sampler=sampler, codec=codec), workers, report, on_progress
        )
    return report


def decode_clip(row: dict, sampler, codec: str) -> Entry:
    """One row -> its entry. Raises VideoDecodeError (a ValueError) or OSError. Runs in a worker."""
    source = source_of(row["video"])
    decoded = sampler.decode(row["video"], start=row.get("start"), end=row.get("end"))
    return Entry(key_of(row), source, decoded.timestamps.tolist(), encode_frames(decoded.frames, codec))


def _one_row_per_clip(rows: Iterable[dict]) -> list[dict]:
    """Splits may share clips; one key for two files would mix up their frames."""
    clips: dict = {}
    for row in rows:
        first = clips.setdefault(key_of(row), row)
        if first["video"] != row["video"]:
            raise ValueError(
                f"video_id {row['video_id']!r} names both {first['video']} and {row['video']}; give each video its own "
                "`video_id`, or prepare the splits into different folders"
            )
    return list(clips.values())


def _outstanding(rows: list[dict], cache: FrameCache, report: BuildReport) -> list[dict]:
    """The rows without a sound, current entry. Shards that cannot be read at all are removed: they hold nothing."""
    for path, reason in cache.damaged_shards:
        report.damaged_shards.append(f"{path.name}: {reason}")
        path.unlink()
    todo = []
    for row in rows:
        if row not in cache:
            todo.append(row)
        elif _is_current(row, cache):
            report.kept += 1
        else:
            report.remade.append(row["video_id"])
            todo.append(row)
    return todo


def _is_current(row: dict, cache: FrameCache) -> bool:
    try:
        return cache.entry(key_of(row)).source == source_of(row["video"])
    except ValueError:
        return False


def _decode_and_store(rows, folder: Path, decode: Callable, workers: int, report: BuildReport, on_progress) -> None:
    waiting: list[Entry] = []
    try:
        with closing(map_in_workers(decode, rows, workers)) as results:
            for row, result in results:
                if isinstance(result, Exception):
                    report.unreadable.append(
                        {"video_id": row["video_id"], "video": row["video"], "reason": str(result)}
                    )
                else:
                    waiting.append(result)
                    report.bytes_made += sum(map(len, result.pictures))
                if len(waiting) >= SHARD_CLIPS or sum(len(p) for e in waiting for p in e.pictures) >= SHARD_BYTES:
                    report.made += _store(folder, waiting)
                on_progress(1)
    finally:
        report.made += _store(folder, waiting)


def _store(folder: Path, waiting: list[Entry]) -> int:
    """Write the waiting entries as one shard and empty the list."""
    count = len(waiting)
    if waiting:
        write_shard(folder, waiting)
        waiting.clear()
    return count

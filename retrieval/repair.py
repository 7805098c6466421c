"""Damaged rows are taken out of an index by name, so that the next run of `dmae index` embeds their videos anew."""

import json
from pathlib import Path

import numpy as np

from dmae.retrieval import storage
from dmae.retrieval.cascade import file_checksum
from dmae.retrieval.segments import DamagedSegment, Segment, video_keys


def repair(folder: Path) -> list[str]:
    """Read every byte of the index; take out the videos of damaged rows in one commit and return their names.

    Frames and scenes are under a checksum for each row: only the rows that are wrong go. Damage elsewhere takes the
    segment. A row whose name cannot be read either is listed by its segment. A damaged FAISS file is forgotten; it is
    built again from the rows. Raises ValueError for a damaged manifest.
    """
    with storage.only_writer(folder):
        manifest = storage.read_manifest(folder)
        lost, segments = [], []
        for entry in manifest["segments"]:
            segment, videos = _sound_part(folder, entry)
            lost += videos
            segments += [segment] if segment is not None else []
        faiss = manifest.get("faiss")
        if faiss and not _is_sound(folder, faiss):
            del manifest["faiss"]
        elif not lost:
            return []
        gone = set(lost)
        keys = video_keys(gone)
        segments = [segment.without(row for row, _ in segment.rows_of(gone, keys)) for segment in segments]
        entries = [segment.manifest_entry() for segment in segments if segment.alive.any()]
        manifest = {**manifest, "generation": manifest["generation"] + 1, "segments": entries}
        storage.write_manifest(folder, manifest)
        storage.sweep(folder, manifest)
        return list(dict.fromkeys(lost))


def _is_sound(folder: Path, faiss: dict) -> bool:
    path = folder / faiss["file"]
    return path.is_file() and ("sum" not in faiss or faiss["sum"] == file_checksum(path))  # formats 1, 2: unknown


def _sound_part(folder: Path, entry: dict) -> tuple[Segment | None, list[str]]:
    """The segment if it can be kept, and the ids of the videos that must be embedded again."""
    alive = np.setdiff1d(np.arange(entry["rows"]), entry["deleted"])
    try:
        segment = Segment.open(folder, entry)
    except (DamagedSegment, FileNotFoundError):
        return None, [f"{len(alive)} rows of {entry['file']}, whose names cannot be read"]
    try:
        for name in segment.arrays.sums:
            segment.arrays[name]
        by_row = segment.arrays.checked_rows if segment.arrays.sums else ()
        wrong = [number for name in by_row for number in segment.arrays.wrong_rows(name, alive)]
    except DamagedSegment:
        return None, _names(segment, alive)
    rows = segment.all_rows() if len(wrong) else []
    return segment, [rows[number]["video_id"] for number in sorted(set(wrong))]


def _names(segment: Segment, alive: np.ndarray) -> list[str]:
    """The video ids of a damaged segment's rows, as far as their lines can still be read."""
    names, unreadable = [], 0
    lines = segment.arrays.arrays["rows"].tobytes().split(b"\n")
    for number in alive:
        try:
            names.append(str(json.loads(lines[number])["video_id"]))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            unreadable += 1
    return names + ([f"{unreadable} rows of {segment.file}, whose names cannot be read"] if unreadable else [])

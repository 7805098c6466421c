"""Hits for other programs: a table, JSON, and a cut list (EDL, CMX 3600) that editing programs read."""

import csv
import io
import json
import os
from collections.abc import Sequence

from dmae.retrieval.results import SearchResult

COLUMNS = ("video_id", "path", "score", "start", "end", "moment")
KINDS = {"csv": "text/csv; charset=utf-8", "json": "application/json", "edl": "text/plain; charset=utf-8"}


def exported(hits: Sequence[SearchResult], query: str, format: str, fps: float = 25.0) -> tuple[bytes, str]:
    """(content, media type) in one of KINDS."""
    if format == "json":
        text = json.dumps({"query": query, "results": [hit.to_dict() for hit in hits]}, indent=1)
        return text.encode("ascii"), KINDS[format]
    text = as_csv(hits) if format == "csv" else as_edl(hits, query, fps)
    return text.encode("utf-8", "backslashreplace"), KINDS[format]


def as_csv(hits: Sequence[SearchResult]) -> str:
    """One line per hit, the metadata's columns behind the fixed ones."""
    names = sorted({str(name) for hit in hits for name in hit.metadata})
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*COLUMNS, *map(_cell, names)])
    for hit in hits:
        fixed = [getattr(hit, name) for name in COLUMNS]
        writer.writerow([_cell(value) for value in [*fixed, *(hit.metadata.get(name, "") for name in names)]])
    return stream.getvalue()


def _cell(value):
    """A text that a spreadsheet would take for a formula gets an apostrophe: names come from anywhere."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def as_edl(hits: Sequence[SearchResult], title: str, fps: float) -> str:
    """The hits one after the other, whole frames at `fps`, non-drop timecode."""
    lines, position = [f"TITLE: {_line(title) or 'search'}", "FCM: NON-DROP FRAME", ""], 0
    for number, hit in enumerate(hits, start=1):
        first, last = round(hit.start * fps), max(round(hit.start * fps) + 1, round(hit.end * fps))
        times = (first, last, position, position + last - first)
        lines.append(f"{number:03}  AX       V     C        " + " ".join(timecode(frame, fps) for frame in times))
        lines.append(f"* FROM CLIP NAME: {_line(os.path.basename(hit.path))}")
        lines.append(f"* SOURCE FILE: {_line(hit.path)}")
        position += last - first
    return "\n".join(lines) + "\n"


def timecode(frame: int, fps: float) -> str:
    """Frame 90 at 25 a second -> 00:00:03:15."""
    rate = max(1, round(fps))
    seconds = frame // rate
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frame % rate:02}"


def _line(text: str) -> str:
    """One line of it: a name may hold a newline."""
    return " ".join(text.split())

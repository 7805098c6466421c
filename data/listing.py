"""The one reader of a list of videos: a .jsonl or .csv whose rows name a file, and perhaps a clip of it.

`file_name` (or `path`, `video`) below the list's folder; optionally `video_id`, and `start`, `end` in seconds: rows of
one file with other windows are other clips. All further columns belong to whoever reads: captions to training, anything
that describes a video to search. Files may begin with a byte-order mark; a CSV may have commas, semicolons or tabs.
"""

import math
from pathlib import Path

from dmae.data.files import read_csv, read_json_lines

VIDEO_EXTENSIONS = (  # in the order in which one is preferred, where files differ in their extension only
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".mts", ".m2ts"),
    *(".ts", ".flv", ".f4v", ".ogv", ".ogm", ".vob", ".asf", ".mpe", ".m2v", ".divx", ".dv", ".mxf", ".rm", ".rmvb"),
    *(".mod", ".tod", ".y4m", ".gif"),
)
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
LISTS = (".jsonl", ".json", ".csv", ".tsv")
FILE_COLUMNS = ("file_name", "path", "video")
CAPTION_COLUMNS = ("captions", "text", "caption")


def metadata_in(folder: Path) -> Path | None:
    """The list that a folder of videos brings along."""
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def read_rows(path: Path) -> list[tuple[int, dict]]:
    """(line number, row) of a list; ValueError with the line for what cannot be read, and for another kind of file."""
    if path.suffix.lower() not in LISTS:
        raise ValueError(f"{path}: give a folder of videos, or a .jsonl or .csv that lists them")
    return read_csv(path) if path.suffix.lower() in (".csv", ".tsv") else read_json_lines(path)


def file_of(row: dict, where: str) -> str:
    """The file that a row names, as it stands there."""
    name = one_of(row, FILE_COLUMNS, where, " or ".join(map(repr, FILE_COLUMNS)))
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{where}: {name!r} is no file name")
    return name.strip()


def one_of(row: dict, names: tuple[str, ...], where: str, wanted: str):
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"{where}: no column {wanted}; it has {', '.join(row)}")


def window_of(row: dict, where: str) -> tuple[float | None, float | None]:
    """`start` and `end` in seconds, each optional; empty cells count as absent."""
    try:
        start, end = (_seconds(row.get(name)) for name in ("start", "end"))
    except (TypeError, ValueError):
        raise ValueError(f"{where}: start {row.get('start')!r}, end {row.get('end')!r} must be seconds") from None
    if not all(value is None or (math.isfinite(value) and value >= 0) for value in (start, end)):
        raise ValueError(f"{where}: start {start}, end {end} must be finite and not negative")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end {end:g} s is not after start {start or 0:g} s")
    return start, end


def _seconds(value) -> float | None:
    # "1,5" is how a spreadsheet with semicolons writes one and a half
    return None if value in (None, "") else float(value.replace(",", ".") if isinstance(value, str) else value)


def clip_id(name: str, start: float | None, end: float | None) -> str:
    """The id of a clip without one of its own: the file's, plus the window where there is one."""
    if start is None and end is None:
        return name
    return f"{name}#{start or 0:g}-{'' if end is None else format(end, 'g')}"

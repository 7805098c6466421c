"""What to index: a folder of videos or a metadata file -> one record per file, with the signature that shows change."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv", ".3gp", ".gif"}
)
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file_name", "video", "path")


@dataclass(frozen=True)
class SourceVideo:
    """A file to index. signature = [size, mtime in ns]: another signature means another content."""

    video_id: str
    path: str
    signature: tuple[int, int]
    metadata: dict = field(default_factory=dict, compare=False)


def find_videos(source: str | Path) -> tuple[list[SourceVideo], list[dict]]:
    """Videos under a folder (recursively, with the columns of its metadata file), or those that a .jsonl or .csv lists.

    Returns them sorted by path, and {video_id, path, error} for listed files that are missing.
    Raises FileNotFoundError for a missing source, ValueError for one without any video or with a wrong column.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or metadata file")
    listing = source if source.is_file() else _metadata_file(source)
    root = source.parent if source.is_file() else source
    listed = _read_listing(listing, root.resolve()) if listing else {}
    missing = [
        {"video_id": row["video_id"], "path": str(path), "error": f"listed in {listing.name}, not found"}
        for path, row in sorted(listed.items())
        if not path.is_file()
    ]
    files = (
        listed if source.is_file() else {path.resolve() for path in _video_files(source)}
    )  # a link is the file it leads to
    present = sorted(path for path in files if path.is_file())
    if not present:
        raise ValueError(f"{source}: no videos found (looked for {', '.join(sorted(SUFFIXES))})")
    return _records(present, root.resolve(), listed), missing


def _video_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _read_listing(path: Path, root: Path) -> dict[Path, dict]:
    """Absolute video path -> its row; `video_id` is filled in."""
    rows = {}
    for number, row in enumerate(_rows_of(path), start=1):
        column = next((name for name in FILE_COLUMNS if row.get(name)), None)
        if column is None:
            raise ValueError(
                f"{path}, row {number}: no column {' or '.join(map(repr, FILE_COLUMNS))}; it has {sorted(row)}"
            )
        file = (root / str(row.pop(column))).resolve()
        row["video_id"] = str(row.get("video_id") or _relative_id(file, root))
        rows[file] = row
    return rows


def _rows_of(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path}: give a folder of videos, or a .jsonl or .csv that lists them")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: each line is one object, got {type(row).__name__}")
        rows += [row] if row else []
    return rows


def _records(files: list[Path], root: Path, listed: dict[Path, dict]) -> list[SourceVideo]:
    """Ids are the listed ones, or paths without suffix; where files would share an id, all of them keep the suffix."""
    ids = {file: listed.get(file, {}).get("video_id") or _relative_id(file, root) for file in files}
    seen: dict[str, list[Path]] = {}
    for file, video_id in ids.items():
        seen.setdefault(video_id, []).append(file)
    records = []
    for file in files:
        unique = len(seen[ids[file]]) == 1
        video_id = ids[file] if unique else _relative_id(file, root, keep_suffix=True)
        stat = file.stat()
        metadata = {name: value for name, value in listed.get(file, {}).items() if name != "video_id"}
        records.append(SourceVideo(video_id, str(file), (stat.st_size, stat.st_mtime_ns), metadata))
    return records


def _relative_id(file: Path, root: Path, keep_suffix: bool = False) -> str:
    relative = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return (relative if keep_suffix else relative.with_suffix("")).as_posix()

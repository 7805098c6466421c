"""What to index: a folder of videos or a metadata file -> one record per file, with the signature that shows change."""

import csv
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv", ".3gp", ".gif"}
)
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file_name", "video", "path")
NOT_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True)
class SourceVideo:
    """A file to index. signature = [size, mtime in ns]: another signature means another content."""

    video_id: str
    path: str
    signature: tuple[int, int]
    metadata: dict = field(default_factory=dict, compare=False)


def find_videos(source: str | Path) -> tuple[list[SourceVideo], list[dict]]:
    """Videos under a folder (recursively, with the columns of its metadata file), or those that a .jsonl or .csv lists.

    Returns them sorted by path, and {video_id, path, error} for what cannot be read: listed files that are missing,
    broken links, pipes, folders without permission. Links are followed, each folder once; a link is what it leads to.
    Raises FileNotFoundError for a missing source, ValueError for one without any video or with a wrong column.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or metadata file")
    listing = source if source.is_file() else _metadata_file(source)
    root = (source.parent if source.is_file() else source).resolve()
    listed = _read_listing(listing, root) if listing else {}
    problems: dict[Path, str] = {}
    found = set() if source.is_file() else _video_files(root, problems)
    for path in listed:
        error = unreadable(path)
        if error:
            problems[path] = f"listed in {listing.name}, {error}"
        elif source.is_file():
            found.add(path)
    if not found:
        reason = "".join(f"; {path}: {error}" for path, error in list(problems.items())[:1])
        raise ValueError(f"{source}: no videos found (looked for {', '.join(sorted(SUFFIXES))}){reason}")
    skipped = []
    for path, error in sorted(problems.items()):
        video_id = listed[path]["video_id"] if path in listed else _relative_id(path, root)
        skipped.append({"video_id": video_id, "path": str(path), "error": error})
    return _records(sorted(found), root, listed), skipped


def unreadable(path: str | Path) -> str | None:
    """Why there is no file to be read at `path`, or None. Opens nothing: opening a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link that leads nowhere" if os.path.islink(path) else "not found"
    except (OSError, ValueError) as error:  # ValueError: a null character in a listed name
        return getattr(error, "strerror", None) or str(error)
    if not stat.S_ISREG(mode):
        return f"{NOT_FILES.get(stat.S_IFMT(mode), 'something else')}, not a file"
    return None if os.access(path, os.R_OK) else "no permission to read it"


def _video_files(folder: Path, problems: dict[Path, str]) -> set[Path]:
    """The files with a video's suffix under `folder`, links as what they lead to; into `problems`, what is none."""
    files, walked = set(), set()

    def note(error: OSError) -> None:
        problems[Path(error.filename)] = f"the folder cannot be read ({error.strerror})"

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in walked:  # reached by a link again, or by a link to a folder above
            folders.clear()
            continue
        walked.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            error = unreadable(path)
            if error:
                problems[path] = error
            else:
                files.add(path.resolve())
    return files


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
        file = Path(os.path.realpath(root / str(row.pop(column)).replace("\0", "\ufffd")))  # no name holds a null
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
    # U+2028 and the like end no line of JSON: they may stand in a name
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
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
        status = file.stat()
        metadata = {name: value for name, value in listed.get(file, {}).items() if name != "video_id"}
        records.append(SourceVideo(video_id, str(file), (status.st_size, status.st_mtime_ns), metadata))
    return records


def _relative_id(file: Path, root: Path, keep_suffix: bool = False) -> str:
    relative = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return (relative if keep_suffix else relative.with_suffix("")).as_posix()

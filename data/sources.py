"""What to index: a folder of videos, or a list of them -> one record per file or clip, and what could not be read."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dmae.data.listing import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    VIDEO_EXTENSIONS,
    clip_id,
    file_of,
    metadata_in,
    read_rows,
    window_of,
)

NOT_OURS = (".*", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found")
NOT_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True)
class SourceVideo:
    """A file to index, or a clip of it. signature = [size, mtime in ns]: another signature may
    mean another content. metadata: the columns of its row."""

    video_id: str
    path: str
    signature: tuple[int, int]
    metadata: dict = field(default_factory=dict, compare=False)
    clip: list | None = None  # [start, end], each a number of seconds or None; None: the whole file


def find_videos(source: str | Path, exclude: Sequence[str] = ()) -> tuple[list[SourceVideo], list[dict]]:
    """Videos under a folder (recursively, with the columns of its metadata file), or those that a .jsonl or .csv lists.

    Returns them sorted by path, and {video_id, path, error} for what cannot be read: listed files that are missing,
    broken links, pipes, folders without permission. Links are followed, each folder once; a link is what it leads to.
    Hidden names, what systems keep for themselves (NOT_OURS) and what `exclude` names, as patterns of a name or of a
    path below the folder, are left out.
    Raises FileNotFoundError for a missing source, ValueError for one without any video or with a wrong column.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or metadata file")
    listing = source if source.is_file() else metadata_in(source)
    root = (source.parent if source.is_file() else source).resolve()
    listed = _read_listing(listing, root) if listing else {}
    problems: dict[Path, str] = {}
    found = set() if source.is_file() else _video_files(root, problems, (*NOT_OURS, *exclude))
    for path in listed:
        error = unreadable(path)
        if error:
            problems[path] = f"listed in {listing and listing.name}, {error}"
        elif source.is_file():
            found.add(path)
    if not found:
        reason = "".join(f"; {path}: {error}" for path, error in list(problems.items())[:1])
        raise ValueError(f"{source}: no videos found (looked for {', '.join(VIDEO_EXTENSIONS)}){reason}")
    skipped = []
    for path, error in sorted(problems.items()):
        video_id = _id_of(path, listed.get(path, [{}])[0], root)
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


def _video_files(folder: Path, problems: dict[Path, str], exclude: Sequence[str]) -> set[Path]:
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
        folders[:] = sorted(name for name in folders if not _excluded(folder, parent, name, exclude))
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() not in VIDEO_EXTENSIONS or _excluded(folder, parent, name, exclude):
                continue
            error = unreadable(path)
            if error:
                problems[path] = error
            else:
                files.add(path.resolve())
    return files


def _excluded(folder: Path, parent: str, name: str, patterns: Sequence[str]) -> bool:
    relative = os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
    return any(fnmatch(name, pattern) or fnmatch(relative, pattern.rstrip("/")) for pattern in patterns)


def _read_listing(path: Path, root: Path) -> dict[Path, list[dict]]:
    """Absolute video path -> one row for each of its clips, with `start`, `end`; rows of one clip are merged."""
    clips: dict[tuple, dict] = {}
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        file = Path(os.path.realpath(root / file_of(row, where)))
        start, end = window_of(row, where)
        columns = {name: value for name, value in row.items() if name not in (*FILE_COLUMNS, "start", "end")}
        clip = clips.setdefault((file, start, end), {"start": start, "end": end})
        for name, value in columns.items():
            _merge(clip, name, value)
    rows: dict[Path, list[dict]] = {}
    for (file, _, _), clip in clips.items():
        rows.setdefault(file, []).append(clip)
    return rows


def _merge(clip: dict, name: str, value) -> None:
    """A further row of the same clip adds its captions; of other columns the first that says something counts."""
    if name in CAPTION_COLUMNS and clip.get(name):
        known, new = (entry if isinstance(entry, list) else [entry] for entry in (clip[name], value))
        clip[name] = known + [text for text in new if text not in known]
    elif clip.get(name) in (None, ""):
        clip[name] = value


def _records(files: list[Path], root: Path, listed: dict[Path, list[dict]]) -> list[SourceVideo]:
    """Ids are the listed ones, or paths without suffix; where files would share an id, all of them keep the suffix."""
    clips = [(file, clip) for file in files for clip in listed.get(file, [{}])]
    ids = [_id_of(file, clip, root) for file, clip in clips]
    count = Counter(ids)
    records = []
    for (file, clip), video_id in zip(clips, ids):
        if count[video_id] > 1:
            video_id = _id_of(file, {**clip, "video_id": None}, root, keep_suffix=True)
        status = file.stat()
        metadata = {name: value for name, value in clip.items() if name not in ("video_id", "start", "end")}
        signature = (status.st_size, status.st_mtime_ns)
        window = [clip.get("start"), clip.get("end")]
        records.append(SourceVideo(video_id, str(file), signature, metadata, window if any(window) else None))
    return records


def _id_of(file: Path, clip: dict, root: Path, keep_suffix: bool = False) -> str:
    given = clip.get("video_id")
    return str(given) if given else clip_id(_relative_id(file, root, keep_suffix), clip.get("start"), clip.get("end"))


def _relative_id(file: Path, root: Path, keep_suffix: bool = False) -> str:
    relative = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return (relative if keep_suffix else relative.with_suffix("")).as_posix()

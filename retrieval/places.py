"""Where the files of an index are. A file is its content; its path is kept relative to a named root, so that a folder
that moves or is mounted elsewhere changes one line of the manifest and no row."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

SAMPLE = 2**20  # bytes


def content_id(path: str | Path) -> str:
    """Size and a hash of the first, middle and last MB: the whole of a small file, and 3 MB of a film on a slow disk.

    Raises OSError.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(digest_size=16)
        for start in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return f"{size}-{digest.hexdigest()}"


def with_root(roots: Mapping[str, str], folder: str | Path) -> dict[str, str]:
    """The roots, and `folder` under its own name (made unique) unless it lies below one of them already."""
    path = os.path.realpath(folder)
    if any(_below(path, root) is not None for root in roots.values()):
        return dict(roots)
    base = name = os.path.basename(path) or "root"
    number = 2
    while name in roots:
        name, number = f"{base}-{number}", number + 1
    return {**roots, name: path}


def remapped(roots: Mapping[str, str], pairs: Iterable[str]) -> dict[str, str]:
    """The roots after `old=new` pairs: old is the name of a root or the path it had. ValueError for an unknown one."""
    changed = dict(roots)
    for pair in pairs:
        old, separator, new = pair.partition("=")
        name = old if old in roots else next((n for n, path in roots.items() if path == os.path.abspath(old)), None)
        if not separator or name is None or not os.path.isdir(new):
            known = ", ".join(f"{name}={path}" for name, path in roots.items()) or "none"
            raise ValueError(f"--root {pair!r}: give OLD=NEW, a root and the folder it is now; the index has: {known}")
        changed[name] = os.path.realpath(new)
    return changed


def stored(row: dict, roots: Mapping[str, str]) -> dict:
    """A row as it is written: its path, and those of its copies, relative to the root they lie below."""
    row = {**row, **_placed(row["path"], roots)}
    if row.get("copies"):
        row["copies"] = [{**copy, **_placed(copy["path"], roots)} for copy in row["copies"]]
    return row


def located(row: dict, roots: Mapping[str, str]) -> dict:
    """A row as it is used: with absolute paths."""
    if "root" in row:
        row = {**row, "path": _absolute(row, roots)}
        del row["root"]
    if row.get("copies"):
        copies = [{**copy, "path": _absolute(copy, roots)} for copy in row["copies"]]
        row = {**row, "copies": [{name: copy[name] for name in ("path", "signature")} for copy in copies]}
    return row


def files_of(row: dict) -> list[str]:
    """The paths of a row: its file, and the others with the same content."""
    return [row["path"], *(copy["path"] for copy in row.get("copies", ()))]


def is_gone(path: str) -> bool:
    """There is no such file; one that cannot be reached just now is not gone."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _placed(path: str, roots: Mapping[str, str]) -> dict:
    """{"root", "path"} below the innermost root, or {"path"} as it is."""
    above = [name for name, root in roots.items() if _below(path, root)]
    name = max(above, key=lambda name: len(roots[name]), default=None)
    return {"path": path} if name is None else {"root": name, "path": _below(path, roots[name])}


def _absolute(place: dict, roots: Mapping[str, str]) -> str:
    root = roots.get(place["root"]) if "root" in place else None
    return place["path"] if root is None else os.path.join(root, *place["path"].split("/"))


def _below(path: str, root: str) -> str | None:
    """`path` relative to `root` with forward slashes, "" for the root itself, None outside of it."""
    if path == root:
        return ""
    prefix = root.rstrip(os.sep) + os.sep
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else None

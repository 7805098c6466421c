"""Faults that strike at the named points of `dmae.files`, and a disk that forgets what was not synced."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dmae import files

Point = tuple[str, str]  # name of the point, name of the file


@contextmanager
def striking(strike: Callable[[int, str, Path], None]) -> Iterator[list[Point]]:
    """`strike(n, point, path)` at the n-th point that is reached, from 0; gives the points as they are reached."""
    seen: list[Point] = []

    def fault(point: str, path: Path) -> None:
        seen.append((point, kind_of(path)))
        strike(len(seen) - 1, point, path)

    files.fault = fault
    try:
        yield seen
    finally:
        files.fault = None


def kind_of(path: Path) -> str:
    """manifest.json -> manifest, segment-0f….safetensors -> segment: points are counted by what is written."""
    return path.name.lstrip(".").split("-")[0].split(".")[0] or path.name


def kill_at(place: int) -> Callable[[int, str, Path], None]:
    def strike(number, point, path):
        if number == place:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def fail_at(kind: str, nth: int, error: int) -> Callable[[int, str, Path], None]:
    """The nth point of this kind (from 0) raises OSError(error)."""
    seen = Counter()

    def strike(number, point, path):
        seen[point] += point == kind
        if point == kind and seen[kind] == nth + 1:
            raise OSError(error, os.strerror(error), str(path))

    return strike


class ForgetfulDisk:
    """What a power failure leaves of some folders: contents that were fsynced, names whose folder was fsynced.

    `watch` wraps os.fsync. `crash(target, rng)` writes what could be found afterwards: every name is as it was at its
    folder's last fsync or as it is now, by chance and independently of the others; a file holds what it held at its
    last fsync, or, where there never was one, nothing, the first half or all of what was written.
    """

    def __init__(self, root: Path):
        self.root, self.synced, self.names, self.held = root, {}, {}, []
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            self._note_names(folder)
        for path in root.rglob("*"):
            if path.is_file():
                self._note_content(path)

    @contextmanager
    def watch(self) -> Iterator["ForgetfulDisk"]:
        fsync = os.fsync

        def noted(handle):
            fsync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if self.root in (path, *path.parents):
                self._note_names(path) if path.is_dir() else self._note_content(path)

        os.fsync = noted
        try:
            yield self
        finally:
            os.fsync = fsync
            for stream in self.held:
                stream.close()

    def crash(self, target: Path, rng: np.random.Generator) -> None:
        self._restore(self.root, target, rng)

    def _restore(self, folder: Path, target: Path, rng: np.random.Generator) -> None:
        target.mkdir(parents=True)
        before, now = self.names.get(folder, {}), self._listing(folder)
        for name in sorted(before | now):
            inode = (before if rng.random() < 0.5 else now).get(name)
            if inode is None:
                continue
            if inode in self.names_of_folders():
                self._restore(folder / name, target / name, rng)
            else:
                (target / name).write_bytes(self._content(folder / name, inode, rng))

    def names_of_folders(self) -> set[int]:
        return {folder.stat().st_ino for folder in self.names if folder.exists()}

    def _content(self, path: Path, inode: int, rng: np.random.Generator) -> bytes:
        if inode in self.synced:
            return self.synced[inode]
        written = path.read_bytes() if path.exists() and path.stat().st_ino == inode else b""
        return written[: int(len(written) * rng.choice([0, 0.5, 1]))]

    def _listing(self, folder: Path) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(folder)} if folder.exists() else {}

    def _note_names(self, folder: Path) -> None:
        self.names[folder] = self._listing(folder)

    def _note_content(self, path: Path) -> None:
        stream = path.open("rb")
        self.held.append(stream)  # an open file keeps its inode number from being given to another
        self.synced[path.stat().st_ino] = stream.read()

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
    last fsync, or, where there never was one, nothing, the first half or all of what was written. Files and folders
    are told apart by their inodes, so that a folder that was renamed keeps what is in it.
    """

    def __init__(self, root: Path):
        self.root, self.contents, self.names, self.held = root, {}, {}, []
        for path in [root, *root.rglob("*")]:
            self._note(path)

    @contextmanager
    def watch(self) -> Iterator["ForgetfulDisk"]:
        fsync = os.fsync

        def noted(handle):
            fsync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if self.root in (path, *path.parents):
                self._note(path)

        os.fsync = noted
        try:
            yield self
        finally:
            os.fsync = fsync
            for handle in self.held:
                os.close(handle)

    def _note(self, path: Path) -> None:
        """What stands at `path` is on the disk now."""
        inode = path.stat().st_ino
        if inode not in self.names and inode not in self.contents:
            self.held.append(os.open(path, os.O_RDONLY))  # what is open keeps its inode from being given to another
        if path.is_dir():
            self.names[inode] = _listing(path)
        else:
            self.contents[inode] = path.read_bytes()

    def crash(self, target: Path, rng: np.random.Generator) -> None:
        """Write into `target` what the power failure leaves of the root."""
        folders = [path for path in [self.root, *self.root.rglob("*")] if path.is_dir()]
        now = {path.stat().st_ino: _listing(path) for path in folders}
        written = {path.stat().st_ino: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self._restore(self.root.stat().st_ino, target, now, written, rng)

    def _restore(self, folder: int, target: Path, now: dict, written: dict, rng: np.random.Generator) -> None:
        target.mkdir(parents=True)
        before, after = self.names.get(folder, {}), now.get(folder, {})
        for name in sorted(before | after):
            inode = (before if rng.random() < 0.5 else after).get(name)
            if inode is None:
                continue
            if inode in self.names or inode in now:
                self._restore(inode, target / name, now, written, rng)
            elif inode in self.contents:
                (target / name).write_bytes(self.contents[inode])
            else:
                content = written.get(inode, b"")
                (target / name).write_bytes(content[: int(len(content) * rng.choice([0, 0.5, 1]))])


def _listing(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}

"""Files and folders that are whole or absent, and locks: the one place that writes what must survive a kill.

A new file or folder is written under a name of this project's own (`.NAME.dmae-new`), synced to disk, renamed to its
place, and the renaming is synced too. Whoever is killed in between leaves the old content and, at worst, a file that
carries the mark; `tidy` removes those and nothing else. Nothing here imports any other room, so any room may use it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

NEW, OLD = ".dmae-new", ".dmae-old"

# Fault tests put a function here: it is called with a point's name and the path, and may raise or kill.
fault: Callable[[str, Path], None] | None = None


def reached(point: str, path: Path) -> None:
    """A named point at which a fault test may strike; costs one comparison otherwise."""
    if fault is not None:
        fault(point, Path(path))


def partial_name(path: Path) -> Path:
    """Where `path` is written before it is published. The same on every rank, so that ranks can fill one folder."""
    return path.with_name(f".{path.name}{NEW}")


def replaced_name(path: Path) -> Path:
    """Where a folder waits while another takes its place."""
    return path.with_name(f".{path.name}{OLD}")


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; a reader sees the old or the new one, never half. Text is UTF-8."""
    with new_file(Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """`with new_file(path) as partial:` write `partial`; on success it is synced and takes the place of `path`.

    On any failure, Ctrl-C included, the partial file goes and what stood at `path` stays. Raises OSError with the path
    when the disk refuses (torch and safetensors report a full disk in exceptions of their own).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{NEW}")  # two processes never share one
    with disk_errors_named(path):
        try:
            reached("write", path)
            yield partial
            sync_file(partial)
            _rename(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_names(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """`with new_folder(path) as partial:` fill `partial`; on success it is synced and takes the place of `path`.

    On any failure, Ctrl-C included, the partial folder goes and what stood at `path` stays. Where a kill falls between
    the two renames, `tidy` puts the old folder back. Raises OSError with the path when the disk refuses.
    """
    path = Path(path)
    partial, replaced = partial_name(path), replaced_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(path.parent)
    with disk_errors_named(path):
        try:
            reached("write", path)
            partial.mkdir()
            yield partial
            for file in sorted(partial.rglob("*")):
                if file.is_file():
                    sync_file(file)
                elif file.is_dir():
                    sync_names(file)
            sync_names(partial)
            if path.exists():
                _rename(path, replaced)
                sync_names(path.parent)  # else a power failure could lose the old name and the new one
            _rename(partial, path)
        except BaseException:
            if replaced.exists() and not path.exists():
                os.rename(replaced, path)
            shutil.rmtree(partial, ignore_errors=True)
            raise
    sync_names(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def make_folder(path: Path) -> None:
    """`mkdir -p` whose new names survive a power failure."""
    with disk_errors_named(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_names(folder.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in the middle never leaves half of it under its name."""
    going = partial_name(path)
    shutil.rmtree(going, ignore_errors=True)
    _rename(path, going)
    sync_names(path.parent)  # else a power failure could leave the old name on half of it
    shutil.rmtree(going, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Undo what a killed writer left in `folder`. Touches only names that carry this project's mark."""
    for partial in folder.glob(f".*{NEW}"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    for replaced in folder.glob(f".*{OLD}"):
        original = replaced.with_name(replaced.name[1 : -len(OLD)])
        if original.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, original)


@contextmanager
def locked(path: Path, held: str) -> Iterator[None]:
    """Hold the lock file `path`; it falls with the process. Raises OSError(held) at once when another holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(held) from None
    try:
        yield
    finally:
        lock.release()


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    reached("fsync", path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Make new names and renamings in `folder` durable (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            reached("fsync", folder)
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """An error of the disk becomes an OSError that names `path`, keeps the errno, and says that nothing is lost."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        told = OSError(f"{path}: could not be written ({error}); what was there before is kept")
        told.errno = getattr(error, "errno", None)
        raise told from error


def _rename(source: Path, target: Path) -> None:
    reached("rename", target)
    os.replace(source, target)
    reached("renamed", target)

"""Where posters and previews are made and kept: worker processes, and a bounded folder of what they made."""

import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as PoolTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dmae import files

WORKERS = 2
MAKE_SECONDS = 90.0
WORKER_BYTES = 6 * 2**30  # of address space, several times what 4096 x 4096 frames need


class Studio:
    """Makes media files in worker processes, each once, and keeps the newest `max_bytes` of them in `folder`."""

    def __init__(self, folder: Path, max_bytes: int, workers: int = WORKERS):
        self.folder, self.max_bytes, self.workers = Path(folder), max_bytes, workers
        self.folder.mkdir(parents=True, exist_ok=True)
        files.tidy(self.folder)
        self._pool: ProcessPoolExecutor | None = None
        self._guard, self._making = threading.Lock(), {}
        self._since_swept = 0

    def run(self, function, *arguments):
        """Call a function of `media.py` in a worker. ValueError when it died or took MAKE_SECONDS."""
        pool = self._running_pool()
        try:
            return pool.submit(function, *arguments).result(timeout=MAKE_SECONDS)
        except BrokenProcessPool:
            self._drop(pool)
            raise ValueError("the video made the decoder crash; it cannot be shown") from None
        except PoolTimeout:  # before Python 3.11 another than the built-in one
            self._drop(pool)
            raise ValueError(f"making this took more than {MAKE_SECONDS:.0f} seconds; it cannot be shown") from None

    def made(self, function, suffix: str, path: str, *arguments) -> Path:
        """The file that `function(path, *arguments, target)` writes: from the cache, or made now."""
        stat = os.stat(path)
        key = ascii((function.__name__, path, stat.st_size, stat.st_mtime_ns, arguments))
        target = self.folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + suffix)
        with self._only_one(target):  # twelve clients that ask for one poster cost one
            if target.is_file():
                os.utime(target)  # the sweep takes the longest unused first
            else:
                self.run(function, path, *arguments, str(target))
                self._sweep(target.stat().st_size)
        return target

    def close(self) -> None:
        if self._pool is not None:
            self._drop(self._pool)

    def bytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    @contextlib.contextmanager
    def _only_one(self, target: Path):
        with self._guard:
            lock, waiting = self._making.get(target, (threading.Lock(), 0))
            self._making[target] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, waiting = self._making.pop(target)
                if waiting > 1:
                    self._making[target] = lock, waiting - 1

    def _running_pool(self) -> ProcessPoolExecutor:
        with self._guard:
            if self._pool is None:
                # spawned: a fork of a process with torch's threads may hang
                self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin)
            return self._pool

    def _drop(self, pool: ProcessPoolExecutor) -> None:
        """End the workers at once: one may hang inside a decoder."""
        with self._guard:
            if self._pool is pool:
                self._pool = None
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for file in self.folder.iterdir():
            with contextlib.suppress(OSError):
                found.append((file.stat().st_mtime, file.stat().st_size, file))
        return found

    def _sweep(self, added: int) -> None:
        """Look at the folder once in a while, and leave nine tenths of what it may hold."""
        self._since_swept += added
        if self._since_swept < self.max_bytes // 20:
            return
        self._since_swept = 0
        held = sorted(self._files())
        excess = sum(size for _, size, _ in held) - self.max_bytes
        if excess <= 0:
            return
        for _, size, file in held:
            file.unlink(missing_ok=True)
            excess -= size
            if excess <= -self.max_bytes // 10:
                break


def _begin() -> None:
    """A worker ends with its server however that ends, ignores Ctrl-C, gives way to searches, has bounded memory."""
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.nice(5)
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(0)

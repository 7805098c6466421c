"""Progress for people: a bar with rate and time left on a terminal, a line now and then elsewhere, only on rank 0."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 10.0


def is_main_process() -> bool:
    """True in the one process that may print (rank 0 of an `accelerate launch`, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def progress(total: int | None, description: str, unit: str = "videos") -> Iterator[Callable[..., None]]:
    """`with progress(len(items), "embedding") as advance: … advance(n)`; written to stderr, so stdout stays clean.

    n may be a share of one, and a second number counts the moments among them: a film is hours of one video.
    """
    if not is_main_process():
        yield lambda count=1, moments=0: None
    elif sys.stderr.isatty():
        with _bar(total, description, unit) as advance:
            yield advance
    else:
        lines = _Lines(total, description, unit)
        yield lines.advance
        lines.finish()


@contextmanager
def _bar(total: int | None, description: str, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="", done="")
        counted, started = _Counted(total), time.monotonic()

        def advance(count: float = 1, moments: int = 0) -> None:
            counted.add(count, moments)
            elapsed = max(time.monotonic() - started, 1e-6)
            rate = f"{counted.done / elapsed:.1f} {unit}/s"
            bar.update(task, completed=counted.done, done=str(counted), rate=rate)

        yield advance


class _Counted:
    """How far a job is: "3/12", or "3/12 (1,240 moments)" where some videos have several."""

    def __init__(self, total: int | None):
        self.total, self.done, self.moments = total, 0.0, 0

    def add(self, count: float, moments: int) -> None:
        self.done, self.moments = round(self.done + count, 6), self.moments + moments

    def __str__(self) -> str:
        of_total = f"/{self.total}" if self.total else ""
        return f"{int(self.done)}{of_total}" + (f" ({self.moments:,} moments)" if self.moments > self.done else "")


class _Lines:
    """Lines for logs: at most one every LINE_EVERY_SECONDS, and one at the end of a long job."""

    def __init__(self, total: int | None, description: str, unit: str):
        self.total, self.description, self.unit = total, description, unit
        self.counted = _Counted(total)
        self.started = self.printed = time.monotonic()
        self.told = ""  # how far the last line said it is

    def advance(self, count: float = 1, moments: int = 0) -> None:
        self.counted.add(count, moments)
        if time.monotonic() - self.printed >= LINE_EVERY_SECONDS:
            self._print()

    def finish(self) -> None:
        if self.told not in ("", str(self.counted)):
            self._print()

    def _print(self) -> None:
        self.printed, self.told = time.monotonic(), str(self.counted)
        done, left = self.counted.done, ""
        rate = done / max(self.printed - self.started, 1e-6)
        if self.total and done >= self.total:
            left = f", took {self.printed - self.started:.0f} s"
        elif self.total and rate:
            left = f", about {(self.total - done) / rate:.0f} s left"
        line = f"{self.description}: {self.told} {self.unit}, {rate:.1f} {self.unit}/s{left}"
        print(line, file=sys.stderr, flush=True)

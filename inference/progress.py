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
def progress(total: int | None, description: str, unit: str = "videos") -> Iterator[Callable[[int], None]]:
    """`with progress(len(items), "embedding") as advance: … advance(n)`; written to stderr, so stdout stays clean."""
    if not is_main_process():
        yield lambda count=1: None
    elif sys.stderr.isatty():
        with _bar(total, description, unit) as advance:
            yield advance
    else:
        lines = _Lines(total, description, unit)
        yield lines.advance
        lines.finish()


@contextmanager
def _bar(total: int | None, description: str, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")
        started = time.monotonic()

        def advance(count: int = 1) -> None:
            bar.advance(task, count)
            elapsed = max(time.monotonic() - started, 1e-6)
            bar.update(task, rate=f"{bar.tasks[task].completed / elapsed:.1f} {unit}/s")

        yield advance


class _Lines:
    """Lines for logs: at most one every LINE_EVERY_SECONDS, and one at the end of a long job."""

    def __init__(self, total: int | None, description: str, unit: str):
        self.total, self.description, self.unit = total, description, unit
        self.done = 0
        self.started = self.printed = time.monotonic()
        self.ended: float | None = None  # when the line of the last item was printed

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.printed >= LINE_EVERY_SECONDS:
            self._print()

    def finish(self) -> None:
        if self.printed not in (self.started, self.ended):
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        rate = self.done / max(self.printed - self.started, 1e-6)
        of_total = f"/{self.total}" if self.total else ""
        left = ""
        if self.total and self.done >= self.total:
            self.ended, left = self.printed, f", took {self.printed - self.started:.0f} s"
        elif self.total and rate:
            left = f", about {(self.total - self.done) / rate:.0f} s left"
        line = f"{self.description}: {self.done}{of_total} {self.unit}, {rate:.1f} {self.unit}/s{left}"
        print(line, file=sys.stderr, flush=True)

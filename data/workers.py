"""Run a function over many jobs in worker processes, where a job may even kill its worker."""

import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class WorkerDied(ValueError):
    """The process that worked on a job ended without an answer, as a crash in a decoder ends it."""


def map_in_workers(function: Callable, jobs: Iterable, workers: int) -> Generator[tuple[Any, Any], None, None]:
    """Yield (job, result) as jobs finish, in no fixed order; `workers=0` runs them here, in order.

    A ValueError or OSError of `function` is yielded as the result, any other exception is raised. When a worker dies,
    the jobs that were running are repeated one at a time, each in a process of its own; one that kills it again yields
    WorkerDied.
    """
    if workers == 0:
        yield from ((job, _attempt(function, job)) for job in jobs)
        return
    jobs, running = iter(jobs), {}
    pool = _pool(workers)
    try:
        while True:
            suspects = _fill(pool, function, jobs, running, 2 * workers)
            if not running and not suspects:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(job)
                else:
                    yield job, future.result()
            if suspects:
                suspects += running.values()
                running.clear()
                pool.shutdown()
                pool = _pool(workers)
                yield from ((job, _alone(function, job)) for job in suspects)
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(pool: ProcessPoolExecutor, function: Callable, jobs: Iterator, running: dict, limit: int) -> list:
    """Submit jobs until `limit` are running. Returns the job that a broken pool would not take."""
    while len(running) < limit:
        try:
            job = next(jobs)
        except StopIteration:
            return []
        try:
            running[pool.submit(_attempt, function, job)] = job
        except BrokenProcessPool:
            return [job]
    return []


def _alone(function: Callable, job):
    with _pool(1) as pool:
        try:
            return pool.submit(_attempt, function, job).result()
        except BrokenProcessPool:
            return WorkerDied("the process that decoded it crashed")


def _attempt(function: Callable, job):
    try:
        return function(job)
    except (ValueError, OSError) as error:
        return error


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_start_worker)


def _start_worker() -> None:
    """Ctrl-C is for the main process, which keeps what is finished; one thread each, as there are many workers."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

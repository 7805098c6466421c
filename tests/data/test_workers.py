"""Jobs in worker processes: every job has its answer, and no more jobs are taken than workers can have at hand."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from dmae.data import workers
from dmae.data.workers import WorkerDied, map_in_workers


def square_or_fail(number: int) -> int:
    if number == 3:
        os._exit(1)
    if number in (5, 6):
        raise {5: ValueError, 6: OSError}[number](str(number))
    return number * number


def threads() -> int:
    import torch

    return torch.get_num_threads()


def refuse(number: int) -> int:
    raise KeyError(number)


def taken(numbers, log):
    for number in numbers:
        log.append(number)
        yield number


def test_without_workers_jobs_run_here_in_order_one_at_a_time():
    log = []
    results = map_in_workers(square_or_fail, taken([2, 5, 6, 4], log), 0)
    assert next(results) == (2, 4) and log == [2]
    (five, wrong), (six, missing), last = results
    assert (five, type(wrong), str(wrong)) == (5, ValueError, "5") and (six, str(missing)) == (6, "6")
    assert isinstance(missing, OSError) and last == (4, 16)
    with pytest.raises(KeyError):
        next(map_in_workers(refuse, [1], 0))
    with pytest.raises(KeyError):
        list(map_in_workers(refuse, [1], 1))


def test_twice_as_many_jobs_as_workers_are_at_hand_and_none_once_it_is_closed(monkeypatch):
    log, pools = [], []
    make = workers._pool
    monkeypatch.setattr(workers, "_pool", lambda count: pools.append(make(count)) or pools[-1])
    results = map_in_workers(square_or_fail, taken([1, 2, 4] * 5, log), 2)
    assert next(results)[0] in (1, 2, 4) and len(log) == 4
    assert len(list(results)) == 14
    assert [pool._max_workers for pool in pools] == [2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pools[0].submit(threads)


def test_a_job_that_kills_its_worker_is_tried_alone_and_named(monkeypatch):
    pools = []
    make = workers._pool
    monkeypatch.setattr(workers, "_pool", lambda count: pools.append(count) or make(count))
    for jobs in ([3], [0, 1, 2, 3], [3, 5, 4, 7, 8]):
        results = list(map_in_workers(square_or_fail, jobs, 2))
        assert sorted(job for job, _ in results) == sorted(jobs)
        answers = dict(results)
        assert isinstance(answers.pop(3), WorkerDied) and str(answers.pop(5, 5)) == "5"
        assert answers == {job: job * job for job in answers}
    assert set(pools) == {1, 2}, "a suspect has a process of its own"
    assert sorted(job for job, _ in map_in_workers(square_or_fail, [3, 0, 1, 2], 1)) == [0, 1, 2, 3]


def test_jobs_that_ran_beside_the_one_that_killed_its_worker_are_done_once(monkeypatch):
    """The futures of a broken pool fail one after the other: here no more than one is ever seen at a time."""
    wait = workers.wait

    def one_at_a_time(running, return_when):
        wait(running)
        return SimpleNamespace(done=[next(iter(running))])

    monkeypatch.setattr(workers, "wait", one_at_a_time)
    results = list(map_in_workers(square_or_fail, [3, 1, 2, 4, 7], 2))
    assert sorted(job for job, _ in results) == [1, 2, 3, 4, 7]
    assert isinstance(dict(results)[3], WorkerDied)


def test_a_pool_that_is_broken_takes_no_job_and_loses_none():
    with workers._pool(1) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 1).result()
        running, rest = {}, iter([7, 8])
        assert workers._fill(pool, square_or_fail, rest, running, 2) == [7]
        assert running == {} and list(rest) == [8]
    assert workers._alone(square_or_fail, 4) == 16
    assert str(workers._alone(square_or_fail, 3)) == "the process that decoded it crashed"


def test_a_worker_has_one_thread_and_leaves_ctrl_c_to_the_main_process():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with workers._pool(1) as pool:
            assert pool.submit(threads).result() == 1
    finally:
        torch.set_num_threads(before)
    here = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with workers._pool(1) as pool:
            assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, here)

"""What a worker makes of every kind of failure, how batches are weighed, and which failures are nobody's item."""

import signal
from types import SimpleNamespace

import pytest

from dmae.inference import guarded
from dmae.inference.guarded import in_worker


class Work:
    """Doubles numbers, raises what is to be raised; an item weighs what its number says."""

    cpu_seconds = 7.0

    def __call__(self, item):
        if isinstance(item, BaseException):
            raise item
        return 2 * item


ODD = {
    ValueError("said"): "said",
    OSError("gone"): "gone",
    ValueError(): "ValueError: ",
    KeyError("name"): "KeyError: 'name'",
    RuntimeError("said"): "RuntimeError: said",
}


def test_every_failure_becomes_one_line_beside_its_item():
    items = [1, *ODD, 2]
    batches = list(in_worker(Work(), iter(items), 3, 0))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [sample for batch in batches for sample in batch] == [
        (1, 2, None), *((error, None, said) for error, said in ODD.items()), (2, 4, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "size", "batches"),
    [
        ([1, 1, 1], 2, [[1, 1], [1]]),
        ([1, 1], 2, [[1, 1]]),
        ([3, 1, 1, 2, 1], 2, [[3], [1, 1], [2], [1]]),
        ([1, 5, 1], 4, [[1, 5], [1]]),
        ([], 4, []),
    ],
)
def test_a_batch_holds_what_weighs_enough(weights, size, batches):
    assert list(guarded._batches(weights, size, lambda item: item)) == batches


def test_items_weigh_what_the_work_says():
    class Weighed(Work):
        def weight(self, item):
            return item

    assert [len(batch) for batch in in_worker(Weighed(), [2, 1, 1, 1], 2, 0)] == [1, 2, 1]
    assert [len(batch) for batch in in_worker(Work(), [2, 1, 1, 1], 2, 0)] == [2, 2]
    loader = guarded._loader(Weighed(), [1], 2, 2)
    assert (loader.num_workers, loader.prefetch_factor) == (2, guarded.PREFETCH)
    assert guarded._loader(Weighed(), [1], 2, 0).prefetch_factor is None


def test_only_in_a_worker_is_the_time_of_an_item_bounded(monkeypatch):
    timers = []
    monkeypatch.setattr(signal, "setitimer", lambda *words: timers.append(words))
    dataset = guarded._Guarded(Work())
    assert dataset[3] == (3, 6, None) and not timers
    monkeypatch.setattr(guarded, "get_worker_info", lambda: SimpleNamespace(id=0))
    for item in (3, ValueError("x")):
        dataset[item]
    assert timers == [(signal.ITIMER_PROF, 14.0), (signal.ITIMER_PROF, 0)] * 2
    monkeypatch.delattr(signal, "setitimer")  # Windows
    assert dataset[3] == (3, 6, None)


def broken(message, after=0):
    """Items of which the reading itself fails."""
    yield from range(after)
    raise RuntimeError(message)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_to_read_the_items_is_no_worker_s(workers):
    message = "DataLoader worker (pid 1) is killed" if workers == 0 else "the list of videos is broken"
    with pytest.raises(RuntimeError, match=message[:10]):
        list(in_worker(Work(), broken(message, 1), 1, workers))


def test_the_item_that_ended_its_worker_is_named_and_the_others_are_read(monkeypatch):
    """As DataLoader tells it: a RuntimeError in place of the batch, after which each pending item is tried alone."""
    real, alone = guarded._loader, []

    def loader(work, items, batch_size, workers):
        if batch_size == 1 and workers == 1 and isinstance(items, list):
            alone.append(items)
            if items == [3]:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Segmentation fault.")
            if items == [5]:
                raise RuntimeError("cannot allocate")
            return real(work, items, batch_size, 0)
        return dying(items)

    def dying(items):
        for item in items:
            next_one = next(items)
            if item == 2 and not alone:
                raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
            yield [(item, 2 * item, None), (next_one, 2 * next_one, None)]

    monkeypatch.setattr(guarded, "_loader", loader)
    found = list(in_worker(Work(), [0, 1, 2, 3, 6, 7], 2, 2))
    assert found == [
        [(0, 0, None), (1, 2, None)], [(2, 4, None)], [(3, None, guarded.ENDED)], [(6, 12, None), (7, 14, None)],
    ]  # fmt: skip
    assert alone == [[2], [3]]
    with pytest.raises(RuntimeError, match="cannot allocate"):
        guarded._alone(Work(), 5)

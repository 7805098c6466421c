"""Work on many files in worker processes, so that no error, crash or endless loop over one stops the rest."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

PREFETCH = 2  # batches per worker
ENDED = "reading it ended the process that did (a crash of the decoder, too little memory, or work without end)"


def in_worker(work: Callable, items: Iterable, batch_size: int, workers: int) -> Iterator[list[tuple]]:
    """Batches of (item, work(item), None), or (item, None, error) with the error as one line, in the order of `items`.

    items is read no further than the workers need. A worker that dies over an item is replaced, and the item is given
    back with an error; a worker that uses more than twice `work.cpu_seconds` of CPU time on one item is such a one.
    workers=0: in this process, which a crash then ends. batch_size: what the items of a batch weigh together, each
    `work.weight(item)`, or 1.
    """
    items = iter(items)
    while True:
        issued: deque = deque()
        try:
            for batch in _loader(work, _noted(items, issued), batch_size, workers):
                for _ in batch:
                    issued.popleft()
                yield batch
            return
        except RuntimeError as error:
            if not workers or "DataLoader worker" not in str(error):
                raise
        # One of those that were under way did it: each gets a process of its own.
        for item in issued:
            yield [_alone(work, item)]


def _alone(work: Callable, item: Any) -> tuple:
    try:
        ((sample,),) = _loader(work, [item], 1, 1)
        return sample
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        return item, None, ENDED


def _noted(items: Iterator, issued: deque) -> Iterator:
    for item in items:
        issued.append(item)
        yield item


def _loader(work: Callable, items: Iterable, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(
        _Guarded(work),
        batch_sampler=_batches(items, batch_size, getattr(work, "weight", lambda item: 1)),
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=PREFETCH if workers else None,
    )


def _batches(items: Iterable, size: int, weight: Callable[[Any], int]) -> Iterator[list]:
    """The items in order, as many at a time as together weigh `size`."""
    batch, held = [], 0
    for item in items:
        batch.append(item)
        held += weight(item)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _as_it_is(samples: list) -> list:
    return samples


class _Guarded(Dataset):
    """A map-style dataset whose keys are the items themselves."""

    def __init__(self, work: Callable):
        self.work = work

    def __getitem__(self, item: Any) -> tuple:
        # A decoder in an endless loop never returns to Python: the kernel ends the worker by the CPU time it used.
        bounded = get_worker_info() is not None and hasattr(signal, "setitimer")
        if bounded:
            signal.setitimer(signal.ITIMER_PROF, 2 * self.work.cpu_seconds)
        try:
            return item, self.work(item), None
        except Exception as error:  # whatever it is, it travels as text: not every exception survives pickling
            known = isinstance(error, (ValueError, OSError)) and str(error)
            return item, None, str(error) if known else f"{type(error).__name__}: {error}"
        finally:
            if bounded:
                signal.setitimer(signal.ITIMER_PROF, 0)

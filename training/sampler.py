"""Which (video, caption) pairs make up each batch: a pure function of seed and epoch, the same on every rank.

Nothing here has a state to save: a resumed run asks for the same epoch and starts at a later batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """One training example: a row of the dataset, one of its captions, and a draw that seeds what is random in it."""

    row: int
    caption: int
    draw: int


def epoch_pairs(
    caption_counts: list[int],
    seed: int,
    epoch: int,
    captions: str = "all",
    rows: Sequence[int] | None = None,
    window: int | None = None,
) -> list[Pair]:
    """All pairs of an epoch in their order. rows: those of the epoch, some of them several times; None: each once.
    window: which stretch of the epoch they are, if it is more than one.

    `captions="all"`: every caption once, those of a video spread evenly over the epoch ((i + u)/n for the i-th of n),
    so that one video hardly ever comes twice in a batch. `"one"`: every video once, with one drawn caption.
    """
    random = np.random.default_rng([seed, epoch] if window is None else [seed, epoch, window])
    rows = range(len(caption_counts)) if rows is None else rows
    if captions == "one":
        order = random.permutation(rows)
        return [Pair(int(row), int(random.integers(caption_counts[row])), _draw(random)) for row in order]
    times, pairs = [], []
    for row in rows:
        count = caption_counts[row]
        times.append((np.arange(count) + random.random(count)) / count)
        pairs += [Pair(row, int(caption), _draw(random)) for caption in random.permutation(count)]
    order = np.argsort(np.concatenate(times), kind="stable") if pairs else []
    return [pairs[index] for index in order]


def weighted_rows(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    """The rows of an epoch, a row of weight w w times: 2.5 is twice, and once more in every second epoch.

    Rows of one weight take turns: of weight 1/3, each third of them comes in one of three epochs.
    """
    each = np.asarray(weights, dtype=np.float64)
    whole = np.floor(each).astype(int)
    turns = np.zeros(len(each), dtype=int)
    for weight in np.unique(each):
        rows = np.flatnonzero(each == weight)
        places = np.random.default_rng([seed, len(rows)]).permutation(len(rows)) / len(rows)
        # how often (epoch + place) * share passes a whole number in this epoch
        share = weight - np.floor(weight)
        turns[rows] = np.floor(share * (epoch + 1) + places + 1e-9) - np.floor(share * epoch + places + 1e-9)
    return np.repeat(np.arange(len(each)), whole + turns).tolist()


def windows(rows: Sequence[int], shards: Sequence[int], at_once: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows in stretches of an epoch, each of `at_once` shards in a new order: only these are read at a time."""
    held: dict[int, list[int]] = {}
    for row in rows:
        held.setdefault(shards[row], []).append(row)
    names = list(held)
    order = [names[place] for place in np.random.default_rng([seed, epoch, len(names)]).permutation(len(names))]
    return [
        [row for name in order[first : first + at_once] for row in held[name]]
        for first in range(0, len(order), at_once)
    ]


def global_batches(pairs: list[Pair], batch_size: int, smallest: int = 1, drop_last: bool = False) -> list[list[Pair]]:
    """Cut pairs into batches in which no video comes twice; a second caption of a video waits for the next batch.

    Batches smaller than `batch_size` appear only at the end; with `drop_last`, or below `smallest`, they are left out.
    """
    batches, waiting, remaining = [], [], iter(pairs)
    while True:
        batch, waiting = _fill(waiting, remaining, batch_size)
        if not batch:
            return batches
        if len(batch) == batch_size or (len(batch) >= smallest and not drop_last):
            batches.append(batch)


def _fill(waiting: list[Pair], remaining: Iterator[Pair], size: int) -> tuple[list[Pair], list[Pair]]:
    batch, rows, later = [], set(), []
    for source in (iter(waiting), remaining):
        while len(batch) < size or source is not remaining:
            pair = next(source, None)
            if pair is None:
                break
            if pair.row in rows or len(batch) == size:
                later.append(pair)
            else:
                batch.append(pair)
                rows.add(pair.row)
    return batch, later


def rank_share(batch: list[Pair], rank: int, world: int) -> list[Pair]:
    """This rank's contiguous part of a global batch; sizes differ by at most one, in rank order."""
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]


@dataclass(frozen=True)
class Schedule:
    """All batches of a run, from the number of captions of each training video and the options that decide them."""

    caption_counts: list[int]
    batch_size: int  # global
    seed: int
    captions: str = "all"
    drop_last: bool = False
    accumulation: int = 1
    world: int = 1
    weights: list[float] | None = None  # of each row: how often it comes in an epoch
    shards: list[int] | None = None  # of each row: which file holds it
    shards_at_once: int | None = None

    def pairs(self, epoch: int) -> list[Pair]:
        """All pairs of an epoch, in their order."""
        rows = None if self.weights is None else weighted_rows(self.weights, self.seed, epoch)
        if self.shards is None or self.shards_at_once is None:
            return epoch_pairs(self.caption_counts, self.seed, epoch, self.captions, rows)
        rows = range(len(self.caption_counts)) if rows is None else rows
        parts = windows(rows, self.shards, self.shards_at_once, self.seed, epoch)
        stretches = [
            epoch_pairs(self.caption_counts, self.seed, epoch, self.captions, part, window)
            for window, part in enumerate(parts)
        ]
        return [pair for stretch in stretches for pair in stretch]

    def batches(self, epoch: int) -> list[list[Pair]]:
        """The global batches of an epoch; none is too small to give every rank a pair and every pair a negative."""
        pairs = self.pairs(epoch)
        return global_batches(pairs, self.batch_size, smallest=max(2, self.world), drop_last=self.drop_last)

    @property
    def pairs_per_epoch(self) -> int:
        """Of the first epoch; with weights that are no whole numbers others differ by a few."""
        if self.weights is not None:
            return len(self.pairs(0))
        return len(self.caption_counts) if self.captions == "one" else sum(self.caption_counts)

    def total_steps(self, epochs: int, max_steps: int = -1) -> int:
        """Optimiser steps of a run. Raises ValueError when the videos do not fill a batch."""
        steps = sum(math.ceil(len(self.batches(epoch)) / self.accumulation) for epoch in range(epochs))
        if not steps:
            raise ValueError(
                f"{len(self.caption_counts)} training videos give no batch of {self.batch_size} pairs over "
                f"{self.world} processes: make it smaller, add videos, or set training.dataloader_drop_last to false"
            )
        return min(steps, max_steps) if max_steps > 0 else steps


def _draw(random: np.random.Generator) -> int:
    return int(random.integers(2**31))

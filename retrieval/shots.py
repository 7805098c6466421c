"""Where a video cuts, on the grid of frames that are embedded anyway, and the windows that follow its shots.

d_i = half the L1 distance between the colour histograms of frames i-1 and i (8 bins of each channel in each quarter of
the picture), in [0, 1]. A cut is a d above CHANGE that stands out from the changes around it, so that a pan or a
flickering light is none.
"""

import math
from itertools import pairwise

import numpy as np
import torch

from dmae.retrieval.windows import AUTO_WINDOW

CHANGE = 0.25
STANDS_OUT = 2.5  # times the median of the changes within AROUND grid steps
AROUND = 5
BINS = 8
LEAST_SECONDS = 2.0  # of a shot; shorter ones go with the next
STRETCH = 30.0  # seconds that are decoded at once
BEFORE = 1e-3  # a window ends just before the frame that its neighbour begins with


def cuts(frames: torch.Tensor) -> np.ndarray:
    """(n,3,H,W) uint8 -> the places i at which a shot begins, ascending, 0 not among them."""
    if len(frames) < 2:
        return np.empty(0, dtype=np.int64)
    histograms = _histograms(frames)
    changes = np.abs(np.diff(histograms, axis=0)).sum(1) / 2
    found = []
    for place, change in enumerate(changes):
        around = np.delete(changes[max(0, place - AROUND) : place + AROUND + 1], min(place, AROUND))
        usual = float(np.median(around)) if len(around) else 0.0
        if change > max(CHANGE, STANDS_OUT * usual):
            found.append(place + 1)
    return np.array(found, dtype=np.int64)


def _histograms(frames: torch.Tensor) -> np.ndarray:
    """(n,3,H,W) uint8 -> (n, 4·3·BINS), each row summing to 1."""
    count, _, height, width = frames.shape
    rows, columns = (torch.arange(size) * 2 // size for size in (height, width))
    place = (2 * rows[:, None] + columns) * 3
    cell = (place[None] + torch.arange(3)[:, None, None]) * BINS
    values = cell[None] + (frames.to(torch.int64) * BINS >> 8)
    size = 12 * BINS
    values = (values.flatten(1) + size * torch.arange(count)[:, None]).flatten()
    counted = torch.bincount(values, minlength=size * count).view(count, size)
    return (counted / counted.sum(1, keepdim=True)).numpy()


class FollowShots:
    """Splits a stretch of a video into windows of at most AUTO_WINDOW seconds that do not straddle a cut.

    end: seconds at which the stretch ends; num_frames: of a window at most; done: (start, end) to leave out.
    Calling it: (seconds (n,), frames) -> a list of (start, end, places of its frames).
    """

    def __init__(self, end: float, num_frames: int, done: frozenset = frozenset()):
        self.end, self.num_frames, self.done = end, num_frames, done

    def __call__(self, times: np.ndarray, frames: torch.Tensor) -> list[tuple[float, float, np.ndarray]]:
        starts = _long_enough(times, [0, *cuts(frames).tolist()], self.end)
        windows = []
        for first, after in zip(starts, [*starts[1:], len(times)]):
            until = self.end if after == len(times) else float(times[after]) - BEFORE
            for start, end in _pieces(times[first:after], until):
                inside = np.flatnonzero((times >= start - 1e-9) & (times <= end + 1e-9))
                if len(inside) > self.num_frames:
                    inside = inside[np.linspace(0, len(inside) - 1, self.num_frames).astype(np.int64)]
                if len(inside) and (round(start, 3), round(end, 3)) not in self.done:
                    windows.append((start, end, inside))
        return windows


def _long_enough(times: np.ndarray, starts: list[int], end: float) -> list[int]:
    """The starts of shots of LEAST_SECONDS; a shorter one goes with the shot after it, the last with the one before."""
    kept = [starts[0]]
    for start in starts[1:]:
        if times[start] - times[kept[-1]] >= LEAST_SECONDS - 1e-6:
            kept.append(start)
    if len(kept) > 1 and end - times[kept[-1]] < LEAST_SECONDS - 1e-6:
        kept.pop()
    return kept


def _pieces(times: np.ndarray, end: float) -> list[tuple[float, float]]:
    """A shot in windows that begin with a frame and overlap by half; the last may be shorter."""
    window, stride = AUTO_WINDOW
    count = max(1, 1 + math.ceil((end - times[0] - window) / stride - 1e-6))
    nearest = [int(np.abs(times - (times[0] + number * stride)).argmin()) for number in range(count)]
    starts = [float(times[place]) for place in dict.fromkeys(nearest)]
    return [(start, min(start + window, end)) for start in starts]


def stretches(start: float, end: float) -> list[tuple[float, float]]:
    """A video in parts of STRETCH seconds, the last up to half as long again."""
    count = max(1, int((end - start) / STRETCH + 0.5))
    bounds = [start + number * STRETCH for number in range(count)] + [end]
    return list(pairwise(bounds))

"""Windows of long videos: where to cut, and how the hits of neighbouring windows become one moment. Pure functions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

AUTO_SECONDS = 60.0  # without --window, only videos longer than this are cut
AUTO_WINDOW = (10.0, 5.0)
MARGIN = 0.05  # windows of one moment score within this share of its best


class Hit(NamedTuple):
    """One scored row: its video, exact score, span in seconds, and its position in the index."""

    video: str
    score: float
    start: float
    end: float
    position: int


@dataclass(frozen=True)
class WindowPlan:
    """How videos are cut: every `window` seconds-long piece starts `stride` after the one before.

    window=None is automatic: videos up to AUTO_SECONDS stay whole, longer ones are cut by AUTO_WINDOW (`dmae index`
    lets them follow the shots where it can, see `shots.py`). 0: never cut.
    """

    window: float | None = None
    stride: float | None = None

    def __post_init__(self):
        if self.window is not None and not 0 <= self.window < math.inf:
            raise ValueError(f"window={self.window}: give seconds, or 0 for whole videos")
        if self.stride is not None:
            if not self.window:
                raise ValueError(f"stride={self.stride} needs a window; give one, e.g. --window {2 * self.stride:g}")
            if not 0 < self.stride <= self.window:
                raise ValueError(f"stride={self.stride} must be above 0 and at most the window of {self.window} s")

    def cut(
        self, span: tuple[float, float] | None, times: np.ndarray | None = None
    ) -> Iterator[tuple[float | None, float | None]]:
        """The windows of a video that plays from span[0] to span[1], one after the other; (None, None) is all of it.

        times: seconds at which frames begin; then only windows in which one does, so that the work follows the frames
        and not the length that a file claims. The last window may be shorter.

        >>> list(WindowPlan(10, 5).cut((0, 13)))
        [(0.0, 10.0), (5.0, 13.0)]
        """
        duration = span[1] - span[0] if span else None
        window, stride = self.window, self.stride
        if window is None and duration and duration > AUTO_SECONDS:
            window, stride = AUTO_WINDOW
        if span is None or not window or not duration or duration <= window:
            yield None, None
            return
        stride = stride or window / 2
        count = 1 + math.ceil((duration - window) / stride - 1e-6)
        for number in range(count) if times is None else _windows_at(times - span[0], window, stride, count):
            start = span[0] + number * stride
            yield start, min(start + window, span[1])


def _windows_at(times: np.ndarray, window: float, stride: float, count: int) -> Iterator[int]:
    """The numbers n below `count` for which some time lies in [n * stride, n * stride + window], ascending."""
    latest = np.floor(times / stride + 1e-6)
    numbers = latest[:, None] - np.arange(math.ceil(window / stride) + 1)
    holds = (numbers >= 0) & (numbers < count) & (times[:, None] <= numbers * stride + window + 1e-6)
    return iter(np.unique(numbers[holds]).astype(np.int64).tolist())


def merge_hits(hits: Sequence[Hit], top_k: int, hits_per_video: int = 1, margin: float = MARGIN) -> list[Hit]:
    """The best moments, best first: a hit absorbs the windows beside it that score within `margin` of it (relatively).

    A merged moment keeps its best window's score and position. At most `hits_per_video` moments per video; equal scores
    keep the order of `hits`.
    """
    left = sorted(hits, key=lambda hit: -hit.score)
    kept: list[Hit] = []
    per_video: dict[str, int] = {}
    by_video: dict[str, list[Hit]] = {}
    for hit in left:
        by_video.setdefault(hit.video, []).append(hit)
    used: set[int] = set()
    for hit in left:
        if len(kept) == top_k:
            break
        if hit.position in used or per_video.get(hit.video, 0) == hits_per_video:
            continue
        kept.append(_grow(hit, by_video[hit.video], used, margin))
        per_video[hit.video] = per_video.get(hit.video, 0) + 1
    return kept


def _grow(best: Hit, windows: Sequence[Hit], used: set[int], margin: float) -> Hit:
    """Widen `best` over touching windows of its video whose score is near; what it covers is used up."""
    start, end = best.start, best.end
    threshold = best.score - margin * abs(best.score)
    near = [hit for hit in windows if hit.score >= threshold]
    grown = True
    while grown:
        grown = False
        for hit in near:
            if hit.position not in used and hit.start <= end and hit.end >= start:
                used.add(hit.position)
                start, end = min(start, hit.start), max(end, hit.end)
                grown = True
    # windows that show part of the moment are no second one, however they score
    used.update(hit.position for hit in windows if hit.start < end and hit.end > start)
    return best._replace(start=start, end=end)

"""Where the bars of a timeline stand: scores over the time of a video, in a picture of 1000 by 100."""

from collections.abc import Sequence
from typing import NamedTuple

from dmae.retrieval.server.searching import Moment

WIDTH, HEIGHT, LEAST = 1000.0, 100.0, 8.0  # LEAST: a bar that can still be seen and clicked


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    moment: Moment
    best: bool


def timeline_bars(moments: Sequence[Moment]) -> list[Bar]:
    """One bar per moment: from its start to the next one's start, as high as its score among those of the video."""
    if not moments:
        return []
    first, last = moments[0].start, max(moment.end for moment in moments)
    low, high = min(moment.score for moment in moments), max(moment.score for moment in moments)
    best, bars = max(moments, key=lambda moment: moment.score), []
    for moment, following in zip(moments, [*moments[1:], None]):
        end = moment.end if following is None else following.start
        x = _share(moment.start, first, last) * WIDTH
        width = max(2.0, _share(end, first, last) * WIDTH - x)
        height = LEAST + (HEIGHT - LEAST) * (_share(moment.score, low, high) if high > low else 1.0)
        bars.append(
            Bar(round(x, 2), round(HEIGHT - height, 2), round(width, 2), round(height, 2), moment, moment is best)
        )
    return bars


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0

"""When a video plays, by its packets: what a header claims is checked before windows are cut from it."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dmae.inference.guarded import in_worker
from dmae.processing.container_dmae import VideoContainer
from dmae.processing.sources_dmae import DecodeLimits
from dmae.retrieval.windows import WindowPlan

THIN_BYTES = 1_000  # per second: of a file with less, every packet is read before its length is believed
CAPTURED = ("com.apple.quicktime.creationdate", "creation_time", "date", "DATE")  # tags, the most exact one first
LAST_FRAME_SECONDS = 10.0  # the longest that a header may say the last frame stays


class Timeline(NamedTuple):
    """start, end: seconds of the first frame and of the end. times: when each frame begins, only where the file is so
    small for its length that windows without a frame are to be expected. facts: what the file says of itself,
    `captured` (a date) and `duration` (seconds)."""

    start: float
    end: float
    times: np.ndarray | None = None
    facts: dict = {}


def read_timeline(path: str, limits: DecodeLimits | None = None) -> Timeline | None:
    """The timeline of a video file; None for a stream without times. Decodes nothing. Raises VideoDecodeError."""
    with VideoContainer(path, limits) as video:
        claimed = video.claimed_span()
        begin = video.packet_times(first=1)
        if claimed and len(begin) and len(last := video.packet_times(after=claimed[1] - 1.0)):
            start, end = float(min(begin[0], last[0])), float(last[-1])
            if video.size >= THIN_BYTES * (end - start):
                end = claimed[1] if 0 <= claimed[1] - end <= LAST_FRAME_SECONDS else end
                return Timeline(start, end, facts=_facts(video, end - start)) if end > start else None
        times = video.packet_times()
        if len(times) < 2:
            return None
        end = times[-1] + min(float(np.diff(times).mean()), LAST_FRAME_SECONDS)
        thin = video.size < THIN_BYTES * (end - times[0])
        facts = _facts(video, end - times[0])
        return Timeline(float(times[0]), float(end), times if thin else None, facts)


def _facts(video: VideoContainer, duration: float) -> dict:
    tags = {**video.stream.metadata, **video.container.metadata}
    captured = next((tags[name] for name in CAPTURED if tags.get(name)), "")
    known = {"captured": captured[:19]} if re.match(r"\d{4}(-\d\d(-\d\d)?)?", captured) else {}
    return {**known, "duration": round(float(duration), 3)}


def read_timelines(
    paths: Sequence[str], limits: DecodeLimits, in_process: bool = False
) -> Iterator[tuple[Timeline | None, str | None]]:
    """(timeline, error) of each file in order, read ahead in a worker process; an error is a line of text."""
    for batch in in_worker(_Timelines(limits), paths, batch_size=1, workers=0 if in_process else 1):
        yield from ((timeline, error) for _, timeline, error in batch)


class _Timelines:
    """What the worker runs: item -> timeline."""

    def __init__(self, limits: DecodeLimits):
        self.limits, self.cpu_seconds = limits, limits.max_cpu_seconds

    def __call__(self, path: str) -> Timeline | None:
        return read_timeline(path, self.limits)


def windows_of(item: dict, timeline: Timeline | None, plan: WindowPlan) -> Iterator[dict]:
    """The item once per window in which a frame begins, with `start`, `end`, `span`, and `last` on the final one."""
    span = None if timeline is None else (timeline.start, timeline.end)
    first, final = item.get("clip") or (None, None)
    part = span and (max(span[0], first or span[0]), min(span[1], final or span[1]))
    windows = plan.cut(part, None if timeline is None else timeline.times)
    window = next(windows, None)
    while window is not None:
        following = next(windows, None)
        start, end = (first, final) if window == (None, None) else window
        yield {**item, "start": start, "end": end, "span": span, "last": following is None}
        window = following

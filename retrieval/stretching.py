"""The work of indexing one video: stretches of it that are decoded at once, each for several windows."""

from collections.abc import Iterator

from dmae.retrieval.shots import BEFORE, STRETCH, FollowShots, stretches
from dmae.retrieval.timeline import Timeline, windows_of
from dmae.retrieval.windows import AUTO_SECONDS, AUTO_WINDOW, WindowPlan


def stretches_of(item: dict, timeline: Timeline | None, plan: WindowPlan, sampler, done: set) -> Iterator[dict]:
    """Items for `iter_videos`: fixed windows in groups of STRETCH seconds, or stretches whose windows follow the shots.

    done: (start, end) of windows that are in the index already.
    """
    if timeline is not None and _follows_shots(item, timeline, plan, sampler):
        yield from _shots(item, timeline, sampler, done)
        return
    group: list[dict] = []
    for window in windows_of(item, timeline, plan):
        if done and (round(window["start"] or 0, 3), round(window["end"] or 0, 3)) in done:
            continue
        if group and not _joins(group, window, sampler):
            yield _grouped(group)
            group = []
        group.append(window)
    if group:
        yield _grouped(group)


def _follows_shots(item: dict, timeline: Timeline, plan: WindowPlan, sampler) -> bool:
    """Whether windows are left to the video: no other plan, longer than AUTO_SECONDS, and no holes in it."""
    if timeline.times is not None or item.get("clip") or item["error"]:
        return False
    length = timeline.end - timeline.start
    return plan.window is None and length > AUTO_SECONDS and sampler.sampling == "fps" and not sampler.key_frames


def _shots(item: dict, timeline: Timeline, sampler, done: set) -> Iterator[dict]:
    span = (timeline.start, timeline.end)
    reached = max((end for _, end in done), default=span[0])
    for start, end in stretches(*span):
        last = end == span[1]
        if not last and end <= reached + 2 * BEFORE:  # windows are committed in the order of time
            continue
        until = end if last else end - BEFORE
        split = FollowShots(until, sampler.num_frames, frozenset(done))
        fixed = [window for window in WindowPlan(*AUTO_WINDOW).cut((start, until)) if window != (None, None)]
        windows = fixed or [(start, until)]
        yield {**item, "start": start, "end": until, "span": span, "last": last, "split": split, "windows": windows}


def _joins(group: list[dict], window: dict, sampler) -> bool:
    """Whether a window is decoded with those before it."""
    first, start, end = group[0]["start"], window["start"], window["end"]
    plain = sampler.sampling in ("fps", "uniform") and not sampler.key_frames and not window["error"]
    return first is not None and start is not None and end is not None and plain and end - first <= STRETCH


def _grouped(group: list[dict]) -> dict:
    if len(group) == 1:
        return group[0]
    first, final = group[0], group[-1]
    windows = [(window["start"], window["end"]) for window in group]
    return {**final, "start": first["start"], "windows": windows}

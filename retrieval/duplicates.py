"""Videos that show the same: near-duplicates and shared passages, found in the stored frames alone.

Rows that lie near each other name pairs of videos; their frames are matched one to one and put in line: a passage is a
run of matches at one offset in time, d = time in the second - time in the first. All cosines are of vectors less the
mean of the index, so that what every video has in common is no likeness.

A passage in which nothing changes proves nothing (black, a title card, a still), and neither does one that opens or
ends both videos and is less than half of the shorter (intros, credits).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dmae.retrieval.snapshot import Snapshot

THRESHOLD = 0.9  # centred cosine from which two frames show the same
NEAR_ROWS = 20  # of other videos, whose frames are compared with those of a row
ROWS_THRESHOLD = 0.3  # centred cosine of rows below which their frames are not looked at
LEAST_FRAMES, LEAST_SECONDS = 3, 1.0  # of a passage
WHOLE, HALF = 0.8, 0.5
BLOCK = 2**25  # cosines at once


class Passage(NamedTuple):
    """The same seconds in two videos. likeness: the mean centred cosine of the matched frames."""

    first: tuple[float, float]
    second: tuple[float, float]
    likeness: float

    @property
    def seconds(self) -> float:
        return self.first[1] - self.first[0]


class Pair(NamedTuple):
    """Two videos and what they share, in the order of time. kind: "near duplicate" where that is WHOLE of the shorter
    one, else "shared passage"."""

    kind: str
    first: str
    second: str
    paths: tuple[str, str]
    passages: list[Passage]

    def to_dict(self) -> dict:
        spans = [{"first": p.first, "second": p.second, "likeness": round(p.likeness, 4)} for p in self.passages]
        return {"kind": self.kind, "videos": [self.first, self.second], "paths": list(self.paths), "passages": spans}


class Frames(NamedTuple):
    """Frames of a video in the order of time, each time once: seconds (n,), centred unit vectors (n,D), and the seconds
    at which the video begins and ends."""

    times: np.ndarray
    vectors: np.ndarray
    start: float
    end: float

    @property
    def step(self) -> float:
        """Usual seconds between two frames."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0


def find_duplicates(snapshot: Snapshot, threshold: float = THRESHOLD) -> list[Pair]:
    """All pairs of different contents that share a passage; copies of one content are one video of the index.

    ValueError for a threshold that no cosine can have.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must be above 0 and at most 1")
    if len(snapshot) < 2:
        return []
    names = np.array([row["video_id"] for row in snapshot.rows()], dtype=object)
    mean = _mean_frame(snapshot)
    extents: dict[str, tuple[float, float]] = {}
    for row in snapshot.rows():
        start, end = extents.get(row["video_id"], (row["start"], row["end"]))
        extents[row["video_id"]] = min(start, row["start"]), max(end, row["end"])
    paths = {row["video_id"]: row["path"] for row in snapshot.rows()}
    pairs = []
    for (first, second), (left, right) in _near_rows(snapshot, names, mean).items():
        one, other = (_frames(snapshot, at, mean, extents[name]) for at, name in [(left, first), (right, second)])
        passages = shared_passages(one, other, threshold)
        if passages:
            kind = "near duplicate" if _covers(passages, one, other) else "shared passage"
            pairs.append(Pair(kind, first, second, (paths[first], paths[second]), passages))
    return sorted(pairs, key=lambda pair: (pair.kind, pair.first, pair.second))


def _plain(span: tuple) -> tuple[float, float]:
    return float(span[0]), float(span[1])


def shared_passages(first: Frames, second: Frames, threshold: float) -> list[Passage]:
    """The passages of two videos, in the order of time in the first."""
    cosines = first.vectors @ second.vectors.T
    best, back = cosines.argmax(1), cosines.argmax(0)
    mutual = (back[best] == np.arange(len(best))) & (cosines[np.arange(len(best)), best] >= threshold)
    rows = np.flatnonzero(mutual)
    step = max(first.step, second.step, 0.1)
    left = [(first.times[row], second.times[best[row]], row, best[row]) for row in rows]
    found = []
    while len(left) >= LEAST_FRAMES:
        run = _longest_run(left, 1.5 * step)
        left = [match for match in left if match not in run]
        passage = Passage(
            (run[0][0], run[-1][0]), (run[0][1], run[-1][1]), float(np.mean([cosines[m[2:]] for m in run]))
        )
        if len(run) >= LEAST_FRAMES and passage.seconds >= LEAST_SECONDS:
            vectors = first.vectors[[match[2] for match in run]]
            if (vectors @ vectors.T).min() < threshold and not _is_frame_of_both(passage, first, second, step):
                found.append(Passage(_plain(passage[0]), _plain(passage[1]), passage.likeness))
        if len(run) < LEAST_FRAMES:
            break
    return sorted(found)


def _covers(passages: list[Passage], first: Frames, second: Frames) -> bool:
    """Whether the passages are WHOLE of the shorter video, but for the step that its frames leave open."""
    shorter = min(first.end - first.start, second.end - second.start)
    return sum(passage.seconds for passage in passages) >= WHOLE * shorter - max(first.step, second.step)


def _longest_run(matches: list[tuple], tolerance: float) -> list[tuple]:
    """Most matches that follow one another at one offset, with no gap above twice the tolerance."""
    best: list[tuple] = []
    offsets = np.array([match[1] - match[0] for match in matches])
    for offset in np.unique(np.round(offsets / tolerance)) * tolerance:
        run: list[tuple] = []
        for match, its in zip(matches, offsets):
            if abs(its - offset) > tolerance:
                continue
            follows = not run or (match[1] > run[-1][1] and match[0] - run[-1][0] <= 2 * tolerance)
            run = [*run, match] if follows else [match]
            best = run if len(run) > len(best) else best
    return best


def _is_frame_of_both(passage: Passage, first: Frames, second: Frames, step: float) -> bool:
    """Whether it opens both videos, or ends both, and is less than half of the shorter one."""
    near = 2 * step
    opens = passage.first[0] - first.start <= near and passage.second[0] - second.start <= near
    ends = first.end - passage.first[1] <= near and second.end - passage.second[1] <= near
    shorter = min(first.end - first.start, second.end - second.start)
    return (opens or ends) and passage.seconds + step < HALF * shorter


def _mean_frame(snapshot: Snapshot) -> np.ndarray:
    """The mean of unit frames over some thousand rows. -> (D,)."""
    rows = np.unique(np.linspace(0, len(snapshot) - 1, min(len(snapshot), 2_000)).astype(np.int64))
    video = snapshot.gather(rows)
    return _unit(video.attended_embeds.float().numpy()[video.video_mask.numpy()]).mean(0)


def _frames(snapshot: Snapshot, positions: np.ndarray, mean: np.ndarray, extent: tuple[float, float]) -> Frames:
    video, times = snapshot.gather(positions), snapshot.tensor("timestamps", positions).numpy()
    mask = video.video_mask.numpy()
    times, first = np.unique(times[mask].round(3), return_index=True)
    vectors = _unit(video.attended_embeds.float().numpy()[mask])[first]
    return Frames(times, _unit(vectors - mean), *extent)


def _near_rows(
    snapshot: Snapshot, names: np.ndarray, mean: np.ndarray
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Pairs of videos with the rows that lie near each other: (first, second) -> (rows of it, rows of it)."""
    found: dict[tuple, tuple[set, set]] = defaultdict(lambda: (set(), set()))
    for one, others in _neighbours(snapshot, names, mean):
        for other in others:
            ordered = (one, other) if names[one] < names[other] else (other, one)
            sides = found[names[ordered[0]], names[ordered[1]]]
            for side, row in zip(sides, ordered):
                side.add(int(row))
    return {pair: (np.array(sorted(a)), np.array(sorted(b))) for pair, (a, b) in found.items()}


def _neighbours(snapshot: Snapshot, names: np.ndarray, mean: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each row with up to NEAR_ROWS rows of other videos, by the centred cosine of their mean frames."""
    rows = len(snapshot)
    centred = _unit(_unit(snapshot.tensor("coarse", np.arange(rows)).float().numpy()) - mean)
    step = max(1, BLOCK // rows)
    count = min(NEAR_ROWS, rows - 1)
    _, number = np.unique(names.astype(str), return_inverse=True)
    for start in range(0, rows, step):
        cosines = centred[start : start + step] @ centred.T
        cosines[number[start : start + step, None] == number[None]] = -1.0
        top = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for place, others in enumerate(top):
            yield start + place, others[cosines[place, others] >= ROWS_THRESHOLD]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

"""The index behind the page: it follows its folder, knows its videos by row, and what random captions score in it."""

import logging
import os
import stat
import threading
import time

import numpy as np

from dmae.retrieval.fit import fit, random_best_scores
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.snapshot import Snapshot

logger = logging.getLogger(__name__)
SEEN_SECONDS = 30.0  # how long a look at whether a file exists is believed: a disk over the network answers slowly


class NotIndexed(LookupError):
    """No such row, or its video is gone from the index."""


class LiveIndex:
    """An index that many threads may search while `dmae index` changes it."""

    def __init__(self, index: VideoIndex):
        self.index = index
        self.trouble: str | None = None  # why the folder could not be read again, if it could not
        self._refreshing = threading.Lock()
        self._videos: tuple[Snapshot | None, dict] = (None, {})
        self._seen: dict[str, tuple[float, bool]] = {}

    def fresh(self) -> VideoIndex:
        """The index at its latest commit; at an earlier one while the folder cannot be read."""
        if self._refreshing.acquire(blocking=False):  # one thread looks; the others need not wait for it
            try:
                self.index.refresh()
                self.trouble = None
            except (ValueError, OSError) as error:
                if self.trouble != str(error):
                    logger.error("the index cannot be read again, the last state is served: %s", error)
                self.trouble = str(error)
            finally:
                self._refreshing.release()
        return self.index

    def row(self, row: int) -> tuple[Snapshot, int, dict]:
        """(snapshot, position in it, what is stored) of a row."""
        snapshot = self.index.snapshot
        found = snapshot.positions(np.array([row]))
        if not len(found):
            raise NotIndexed(f"row {row} is not in this index; it may have been indexed again since")
        return snapshot, int(found[0]), snapshot.row(int(found[0]))

    def windows(self, snapshot: Snapshot, video_id: str) -> np.ndarray:
        """Positions of all rows of a video, in the order of time."""
        if self._videos[0] is not snapshot:
            places: dict[str, list[tuple[float, int]]] = {}
            for position, row in enumerate(snapshot.rows()):
                places.setdefault(row["video_id"], []).append((row["start"], position))
            self._videos = snapshot, places
        return np.array([position for _, position in sorted(self._videos[1].get(video_id, []))], dtype=np.int64)

    def available(self, path: str) -> bool:
        """Whether the file is there now, and a file."""
        now = time.monotonic()
        checked, there = self._seen.get(path, (-SEEN_SECONDS, False))
        if now - checked < SEEN_SECONDS:
            return there
        try:
            there = stat.S_ISREG(os.stat(path).st_mode)  # a FIFO or a device in its place is never opened
        except (OSError, ValueError):
            there = False
        if len(self._seen) > 100_000:
            self._seen.clear()
        self._seen[path] = now, there
        return there


class Background:
    """What random captions score in the index, measured beside the searches and again when the index has changed."""

    def __init__(self, live: LiveIndex):
        self.live, self.generation = live, -1
        self.best_scores = np.empty(0)
        self._measuring = threading.Lock()

    def fit(self, score: float) -> float | None:
        """The share of random captions whose best video scores lower; None until that is known."""
        if self.generation != self.live.index.manifest["generation"] and not self._measuring.locked():
            threading.Thread(target=self.measure, daemon=True, name="fit").start()
        return fit(score, self.best_scores)

    def measure(self) -> None:
        if not self._measuring.acquire(blocking=False):
            return
        try:
            generation = self.live.index.manifest["generation"]
            self.best_scores, self.generation = random_best_scores(self.live.index), generation
        except (ValueError, OSError) as error:
            logger.warning("how well hits fit is not known: %s", error)
        finally:
            self._measuring.release()

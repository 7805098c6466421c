"""One committed state of an index, read-only: a query that holds it sees that state from beginning to end."""

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.retrieval.places import located
from dmae.retrieval.segments import SCENES, SUMS, Segment
from dmae.retrieval.windows import Hit

SCORE_BYTES = 3 * 2**20  # of stored frames that are scored at a time, of widened ones with 8 bits
RECENT = 64  # rows that stay parsed: a search merges windows by its best ones, then describes some of them
SCENE_ROWS = 256  # whose scenes are scored at a time: 1.5 MB of float32 stay in cache
_memory = threading.local()


def _scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this thread's that is there again at the next call, with whatever it held."""
    kept = getattr(_memory, name, None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = torch.empty(shape, dtype=dtype)
        setattr(_memory, name, kept)
    return kept


class Snapshot:
    """The living rows of some segments; `position` p in [0, len) numbers them in the order of their ids."""

    def __init__(self, segments: Sequence[Segment], roots: Mapping[str, str] | None = None):
        self.segments, self.roots = tuple(segments), roots or {}
        ids, owner, number = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for index, segment in enumerate(self.segments):
            rows = np.flatnonzero(segment.alive).astype(np.int32)
            ids.append(np.asarray(segment.arrays["ids"])[rows])
            owner.append(np.full(len(rows), index, dtype=np.int32))
            number.append(rows)
        self.ids = np.concatenate(ids)
        self.owner, self.number = np.concatenate(owner), np.concatenate(number)
        if (np.diff(self.ids) < 0).any():  # a segment that was rewritten stands behind younger rows
            order = np.argsort(self.ids, kind="stable")
            self.ids, self.owner, self.number = self.ids[order], self.owner[order], self.number[order]
        self._gapless = bool(len(self.ids)) and int(self.ids[-1] - self.ids[0]) == len(self.ids) - 1
        self._rows: list[dict] | None = None
        self._recent: dict[int, dict] = {}
        self._positions_of: dict[str, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Where these ids are; ids that do not live here are left out."""
        if self._gapless:  # a search among a million for each id would take as long as scoring it by its scenes
            found = ids - self.ids[0]
            return found[(found >= 0) & (found < len(self.ids))]
        found = np.searchsorted(self.ids, ids)
        found[found == len(self.ids)] = 0
        return found[self.ids[found] == ids] if len(self.ids) else np.empty(0, dtype=np.int64)

    def gather(self, positions: np.ndarray) -> VideoEmbeddings:
        """The stored embeddings of these rows, from the memory maps; frames in float16, which `similarity` widens, or
        float32 where 8 bits are stored."""
        runs = self._runs(positions)
        frames, weights, mask = (self._taken(name, runs) for name in ("frames", "frame_weights", "video_mask"))
        if self.has_scales:
            frames = frames * self._taken("frame_scales", runs)[..., None]
        # only the attended frames are stored: `similarity` reads nothing else
        return VideoEmbeddings(frames, frames, weights, mask)

    def widened(self, positions: np.ndarray) -> Iterator[VideoEmbeddings]:
        """As `gather`, some rows at a time, in memory that the next part overwrites: new memory for each would cost
        more than the work. float16 stays as it is; `similarity` widens it while it is in cache."""
        frames, width = self.frame_shape if len(positions) else (1, 1)
        step = max(1, SCORE_BYTES // (frames * width * (4 if self.has_scales else 1)))
        stored = _scratch("stored", (step, frames, width), torch.int8 if self.has_scales else torch.float16)
        for start in range(0, len(positions), step):
            rows = positions[start : start + step]
            runs = self._runs(rows)
            video = self._taken("frames", runs, stored[: len(rows)])
            weights, mask = (self._taken(name, runs) for name in ("frame_weights", "video_mask"))
            if self.has_scales:
                wide = _scratch("wide", (step, frames, width), torch.float32)
                video = wide[: len(rows)].copy_(video)
                video *= self._taken("frame_scales", runs)[..., None]
            yield VideoEmbeddings(video, video, weights, mask)

    def scene_scores(self, query: torch.Tensor, positions: np.ndarray) -> np.ndarray:
        """½(max_j x·v_j + Σ_j c_j x·v_j) of a query x (D,), see `bound.py`, over the scenes of these rows. -> (n,)"""
        runs, query = self._runs(positions), query.float()
        scenes, factors = (self._taken(name, runs) for name in SCENES)
        products = torch.empty(scenes.shape[:2])
        wide = _scratch("scenes", (SCENE_ROWS, *scenes.shape[1:]), torch.float32)
        for start in range(0, len(scenes), SCENE_ROWS):
            part = scenes[start : start + SCENE_ROWS]
            products[start : start + SCENE_ROWS] = wide[: len(part)].copy_(part) @ query
        products *= factors[..., 0]  # the scales, at a width less than widening with them
        return ((products.amax(1) + (products * factors[..., 1]).sum(1)) / 2).numpy()

    @property
    def has_scenes(self) -> bool:
        """Whether every row has its scenes."""
        return bool(self.segments) and all(SCENES[0] in segment.arrays.arrays for segment in self.segments)

    @property
    def has_scales(self) -> bool:
        """Whether frames are stored in 8 bits."""
        return bool(self.segments) and "frame_scales" in self.segments[0].arrays.arrays

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(frames, width) of every row."""
        return self.segments[0].arrays.arrays["frames"].shape[1:]

    def tensor(self, name: str, positions: np.ndarray) -> torch.Tensor:
        """A stored tensor at these rows, in their order."""
        return self._taken(name, self._runs(positions))

    def _runs(self, positions: np.ndarray) -> list[tuple[Segment, np.ndarray]]:
        """Positions as runs of row numbers of one segment; at least one run, which may be empty."""
        owner, number = self.owner[positions], self.number[positions]
        cuts = np.flatnonzero(np.diff(owner)) + 1
        pairs = zip([0, *cuts.tolist()], [*cuts.tolist(), len(positions)])
        return [(self.segments[owner[start] if stop else 0], number[start:stop]) for start, stop in pairs]

    def _taken(self, name: str, runs: list[tuple[Segment, np.ndarray]], out: torch.Tensor | None = None):
        """A stored tensor at the rows of `_runs`, into `out` where one is given."""
        if out is None:
            like = runs[0][0].arrays.arrays[name]
            taken = np.empty((sum(len(rows) for _, rows in runs), *like.shape[1:]), dtype=like.dtype)
        else:
            taken = out.numpy()
        start = 0
        for segment, rows in runs:
            if not len(rows):
                continue
            if name in SUMS:
                segment.arrays.check_rows(name, rows)
            stored, part = segment.arrays[name], taken[start : start + len(rows)]
            if (np.diff(rows) == 1).all():
                part[:] = stored[rows[0] : rows[-1] + 1]  # one sequential read
            else:
                stored.take(rows, axis=0, out=part, mode="clip")  # no copy in between
            start += len(rows)
        return torch.from_numpy(taken)

    def row(self, position: int) -> dict:
        """{video_id, path, start, end, metadata, …} of a row."""
        if self._rows is not None:
            return self._rows[position]
        recent = self._recent
        row = recent.get(position)
        if row is None:
            if len(recent) >= RECENT:
                self._recent = recent = {}  # a new one: another thread may be at the old
            stored = self.segments[self.owner[position]].row(int(self.number[position]))
            row = recent[position] = located(stored, self.roots)
        return row

    def hit(self, position: int, score: float) -> Hit:
        """A scored row, with the seconds that it covers."""
        row = self.row(position)
        return Hit(row["video_id"], float(score), row["start"], row["end"], int(position))

    def rows(self) -> list[dict]:
        """All rows; parsed once and kept, for filters and for writers."""
        if self._rows is None:
            by_segment = [[located(row, self.roots) for row in segment.all_rows()] for segment in self.segments]
            self._rows = [by_segment[owner][number] for owner, number in zip(self.owner, self.number)]
        return self._rows

    def shown_by(self, video_id: str, second: float | None) -> int | None:
        """The position of the first row of a video that reaches this second, else of its first one; None without."""
        if self._positions_of is None:
            places: dict[str, list[int]] = {}
            for position, row in enumerate(self.rows()):
                places.setdefault(row["video_id"], []).append(position)
            self._positions_of = places  # whole before another thread sees it
        mine = self._positions_of.get(video_id, [])
        reaching = (p for p in mine if second is not None and self.row(p)["end"] >= second)
        return next(reaching, mine[0] if mine else None)

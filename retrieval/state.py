"""What one search needs, as a whole: a committed snapshot, the engine over it, and the plan measured for it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.asking import clock
from dmae.retrieval.backends import Backend, follow, open_backend
from dmae.retrieval.bound import coarse_queries
from dmae.retrieval.calibration import SearchPlan
from dmae.retrieval.filters import described
from dmae.retrieval.places import files_of, is_gone
from dmae.retrieval.qdrant import QdrantBackend
from dmae.retrieval.ray_shards import RayBackend
from dmae.retrieval.results import SearchResult, best_hits, best_moments
from dmae.retrieval.segments import Segment
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.windows import Hit

TOGETHER = 64  # queries that an engine is asked at once
EXACT_UP_TO = 2_000  # rows that are scored exactly without asking the engine


class IndexState(NamedTuple):
    """Swapped as a whole when the index changes; a running search keeps the one it began with."""

    manifest: dict
    snapshot: Snapshot
    backend: Backend
    plan: SearchPlan
    config: object

    @classmethod
    def make(cls, manifest: dict, segments: Sequence[Segment], config, path: Path | None, old: "IndexState | None"):
        """The state of a commit; the engine of the `old` one is brought up to date where it still fits."""
        snapshot = Snapshot(segments, manifest.get("roots") or {})
        plan = SearchPlan.of(manifest.get("plan", {}))
        if old is not None and isinstance(old.backend, RayBackend):
            return cls(manifest, snapshot, old.backend.at(manifest, snapshot, config), plan, config)
        if old is not None and isinstance(old.backend, QdrantBackend):  # whoever connected to a server stays with it
            return cls(manifest, snapshot, follow(old.backend, old.snapshot.ids, snapshot), plan, config)
        kind = manifest.get("backend", "auto")
        backend = open_backend(kind, manifest, snapshot, path, (old.backend, old.snapshot) if old else None)
        return cls(manifest, snapshot, backend, plan, config)

    def over(self, backend: Backend) -> "IndexState":
        """The same state with another engine, which holds the rows already."""
        return self._replace(backend=backend)

    def search_many(self, text: TextEmbeddings, top_k: int, wanted, allowed, per_video: int, bank=None) -> list[list]:
        """`search` of every query; the engine is asked for all of them at once, which costs it little more than one."""
        queries = one_by_one(text)
        total = len(self.snapshot) if allowed is None else len(allowed)
        wanted = None if total <= EXACT_UP_TO else wanted
        pairs = zip(queries, self.scored(text, wanted, allowed))
        return [self.search(query, top_k, wanted, allowed, per_video, bank, found) for query, found in pairs]

    def scored(
        self, text: TextEmbeddings, wanted: int | None, allowed: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per query the positions of about `wanted` candidates (None: all rows), ascending, and their exact scores."""
        for start in range(0, len(text.word_mask), TOGETHER):
            queries = text if len(text.word_mask) <= TOGETHER else text[start : start + TOGETHER]
            if isinstance(self.backend, RayBackend):
                yield from self.backend.scored(queries, wanted, allowed)
                continue
            engine = None if wanted is None else self._engine_positions(queries, wanted, allowed)
            for row, query in enumerate(one_by_one(queries)):
                positions = self.candidates(query, None, allowed) if engine is None else engine[row]
                yield positions, self.score(query, positions)

    def search(
        self,
        query: TextEmbeddings,
        top_k: int,
        wanted: int | None,
        allowed: np.ndarray | None,
        per_video: int,
        bank=None,
        first: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[SearchResult]:
        """One query: candidates (`wanted` of them, None: all rows), exact scores, moments.

        allowed: ids of the rows that a filter lets through. bank: a LiveBank that ranks the candidates by QB-Norm.
        first: what `scored` gave, where it was asked already.
        """
        total = len(self.snapshot) if allowed is None else len(allowed)
        if total <= EXACT_UP_TO:
            wanted = None
        while True:
            positions, scores = next(iter(self.scored(query, wanted, allowed))) if first is None else first
            first = None
            hits = best_hits(self.snapshot, positions, scores, top_k if bank is None else max(1, total), per_video)
            if len(hits) >= top_k or wanted is None or len(positions) >= total or wanted >= total:
                break
            wanted *= 4  # many windows of few videos: look further
        if bank is not None:
            hits = bank.rank(hits)[:top_k]
        return self.results(query, hits)

    def candidates(self, query: TextEmbeddings, wanted: int | None, allowed) -> np.ndarray:
        """Positions of about `wanted` rows that may score best (None: all), ascending, within `allowed` ids."""
        if wanted is None:
            return np.arange(len(self.snapshot)) if allowed is None else self.snapshot.positions(allowed)
        return self._engine_positions(query, wanted, allowed)[0]

    def _engine_positions(self, text: TextEmbeddings, wanted: int, allowed) -> list[np.ndarray]:
        queries, codes = coarse_queries(text, self.config), self.plan.codes_for(wanted)
        scenes = self.plan.scenes_for(wanted)
        found = self.backend.candidates(queries, max(scenes, wanted), allowed, codes)
        rows = [np.sort(self.snapshot.positions(ids)) for ids in found]
        if not scenes or not self.snapshot.has_scenes:
            return rows
        return [self.best_by_scenes(query, positions, wanted) for query, positions in zip(queries, rows)]

    def best_by_scenes(self, query: Tensor, positions: np.ndarray, wanted: int) -> np.ndarray:
        """Those of these rows whose scenes score best with a query of the engine (D,), ascending."""
        if len(positions) <= wanted:
            return positions
        scores = self.snapshot.scene_scores(query, positions)
        return positions[np.sort(np.argpartition(-scores, wanted)[:wanted])]

    def score(self, query: TextEmbeddings, positions: np.ndarray) -> np.ndarray:
        """The exact similarity of one query with these rows. -> (n,) float32."""
        parts = self.snapshot.widened(positions)
        scores = [similarity(query, part, self.config)[0].numpy() for part in parts]
        return np.concatenate(scores) if scores else np.empty(0, dtype=np.float32)

    def described(self, query: TextEmbeddings, positions: Sequence[int]) -> list[SearchResult]:
        """These rows as results, whatever their scores."""
        places = np.unique(np.asarray(positions, dtype=np.int64))
        pairs = zip(places.tolist(), self.score(query, places))
        return self.results(query, [self.snapshot.hit(place, score) for place, score in pairs])

    def results(self, query: TextEmbeddings, hits: list[Hit]) -> list[SearchResult]:
        """Scored rows with what a person needs of them: names, paths, moments, metadata."""
        positions = np.array([hit.position for hit in hits], dtype=np.int64)
        moments = best_moments(self.snapshot, query, positions, self.config)
        results = []
        for hit, moment in zip(hits, moments):
            row = self.snapshot.row(hit.position)
            path, *copies = sorted(files_of(row), key=is_gone)
            result = SearchResult(
                video_id=row["video_id"],
                path=path,
                score=hit.score,
                start=hit.start,
                end=hit.end,
                moment=moment,
                metadata=described(row),
                row=int(self.snapshot.ids[hit.position]),
                copies=tuple(copies),
                missing=is_gone(path),
                reasons=(f"seen at {clock(moment)}",),
            )
            results.append(result)
        return results


def one_by_one(text: TextEmbeddings) -> list[TextEmbeddings]:
    """Each text alone; slicing costs as much as a search of the scenes, and a single query needs none."""
    number = len(text.word_mask)
    return [text] if number == 1 else [text[row : row + 1] for row in range(number)]

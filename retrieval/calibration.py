"""The search plan, measured: how many rows each stage of the cascade must hand on to find what exact search finds."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.bound import coarse_queries
from dmae.retrieval.segments import SCENES
from dmae.retrieval.snapshot import Snapshot

CANDIDATES = (20, 50, 100, 150, 200, 250, 300, 350, 400, 500, 600, 700, 850, 1000, 1500, 2000, 3000, 5000)
CODES = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 16000)
CONFIDENCE = 0.95
SCORE_ROWS = 2_048
SCENE_CHOICES = 3  # numbers of rows whose scenes are scored, from the first that can be enough
NOWHERE = 2**40


@dataclass(frozen=True)
class SearchPlan:
    """How many rows each stage hands on.

    candidates: rows that are scored exactly. codes: rows that the 4-bit codes hand to the 8-bit vectors (0: all rows
    are scanned in 8 bits; engines of one stage have no codes). scenes: rows that these hand to the scenes, of which the
    best become candidates (0: they become candidates as they are). recall: the mean over the calibration queries of the
    share of exact search's top 10 that was found, None until `calibrate` has measured it; recall_low: what the mean
    over other queries of this kind is at least, with 95 % confidence.
    """

    candidates: int = 300
    codes: int = 4000
    scenes: int = 0
    recall: float | None = None
    recall_low: float | None = None
    target_recall: float | None = None
    queries: int = 0

    @classmethod
    def of(cls, stored: dict) -> "SearchPlan":
        """The plan in a manifest. What was measured for the engines of formats 1 and 2 says nothing here."""
        if "coarse" in stored:
            return cls()
        return cls(**{name: value for name, value in stored.items() if name in cls.__dataclass_fields__})

    def codes_for(self, wanted: int) -> int:
        """Codes to look at when `wanted` rows are asked for: in proportion, where that is more than was measured."""
        return 0 if not self.codes else self._in_proportion(self.codes, wanted)

    def scenes_for(self, wanted: int) -> int:
        """As `codes_for`, of rows whose scenes are scored."""
        return 0 if not self.scenes else self._in_proportion(self.scenes, wanted)

    def _in_proportion(self, rows: int, wanted: int) -> int:
        return max(rows, rows * wanted // max(1, self.candidates))


def measure_plan(
    snapshot: Snapshot,
    backend,
    config,
    text: TextEmbeddings,
    target_recall: float,
    top_k: int = 10,
    exact: np.ndarray | None = None,
) -> SearchPlan:
    """The SearchPlan that reads the fewest bytes a query among those whose `recall_low` reaches the target.

    If none does, because the engine leaves too much out or the queries are too few to show it, the plan with the
    highest bound is returned with what it has. exact: ids of the queries' exact top_k, where they are known.
    """
    exact = exact_top(snapshot, config, text, top_k) if exact is None else exact
    queries, plans = coarse_queries(text, config), []
    for codes in _depths(backend, len(snapshot)):
        deepest = min(CANDIDATES[-1], codes or len(snapshot))
        found = backend.candidates(queries, deepest, codes=codes)
        places = np.stack([_places(ids, truth) for ids, truth in zip(found, exact)])
        sizes = [size for size in CANDIDATES if size < deepest] + [deepest]
        direct = [_measured(SearchPlan(size, codes), places, top_k) for size in sizes]
        plans += direct
        if snapshot.has_scenes:
            enough = [plan.candidates for plan in direct if (plan.recall_low or 0.0) >= target_recall][:SCENE_CHOICES]
            chosen, at = enough or sizes[-1:], zip(found, places)
            ranks = [_scene_ranks(snapshot, query, *pair, chosen) for query, pair in zip(queries, at)]
            for scenes, by_scenes in zip(chosen, np.stack(ranks, 1)):
                smaller = [SearchPlan(size, codes, scenes) for size in sizes if size < scenes]
                plans += [_measured(plan, by_scenes, top_k) for plan in smaller]
    reaching = [plan for plan in plans if (plan.recall_low or 0.0) >= target_recall]
    if reaching:
        plan = min(reaching, key=lambda plan: _bytes(plan, snapshot))
    else:
        plan = max(plans, key=lambda plan: (plan.recall_low or 0.0, -_bytes(plan, snapshot)))
    return replace(plan, target_recall=target_recall, queries=len(exact))


def _measured(plan: SearchPlan, places: np.ndarray, top_k: int) -> SearchPlan:
    """The plan with its recall, where the exact top_k stand at these places (Q,top_k) of what is cut to candidates."""
    shares = (places < plan.candidates).mean(1)
    return replace(plan, recall=round(float(shares.mean()), 4), recall_low=round(recall_bound(shares, top_k), 4))


def _bytes(plan: SearchPlan, snapshot: Snapshot) -> int:
    """What a query reads of the rows after their codes, which all are read whatever the plan."""
    frames, width = snapshot.frame_shape
    scenes = snapshot.segments[0].arrays[SCENES[0]].shape[1] if plan.scenes else 0
    frame_bytes = frames * width * (1 if snapshot.has_scales else 2)
    return width * (plan.codes or len(snapshot)) + width * scenes * plan.scenes + frame_bytes * plan.candidates


def _places(ids: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where each id of `truth` stands in `ids`; NOWHERE for those that are not there."""
    order = np.argsort(ids)
    at = order[np.minimum(np.searchsorted(ids, truth, sorter=order), len(ids) - 1)]
    return np.where(ids[at] == truth, at, NOWHERE)


def _scene_ranks(snapshot: Snapshot, query, ids: np.ndarray, places: np.ndarray, chosen: list[int]) -> np.ndarray:
    """For each number of rows in `chosen`, the ranks by scenes that the rows at `places` have among so many of the
    first `ids`; NOWHERE for those that are not among them. -> (len(chosen), len(places))"""
    positions = snapshot.positions(ids[: chosen[-1]])
    order = np.argsort(positions)
    scores = np.empty(len(positions), np.float32)
    scores[order] = snapshot.scene_scores(query, positions[order])
    ranks = []
    for rows in chosen:
        inside = places < min(rows, len(scores))
        above = scores[:rows] > scores[np.where(inside, places, 0)][:, None]
        ranks.append(np.where(inside, above.sum(1), NOWHERE))
    return np.stack(ranks)


def _depths(backend, rows: int) -> list[int]:
    if backend.name not in ("faiss", "ray"):
        return [0]
    return [codes for codes in CODES if codes < rows] + [0]


def recall_bound(shares: np.ndarray, top_k: int) -> float:
    """What the mean recall over other queries is at least, with CONFIDENCE, given that of some queries (Q,).

    The lower end of Jeffreys' interval for a proportion, over as many independent hits as the spread between queries
    allows: hits of one query come and go together, so Q queries are worth between Q and top_k·Q hits.
    """
    from scipy.stats import beta  # slow to import, and only calibration needs it

    mean, queries = float(shares.mean()), len(shares)
    spread = float(shares.var(ddof=1)) / queries if queries > 1 else 1.0
    hits = np.clip(mean * (1 - mean) / spread if spread > 0 else queries, queries, top_k * queries)
    return float(beta.ppf(1 - CONFIDENCE, mean * hits + 0.5, (1 - mean) * hits + 0.5))


def exact_top(snapshot: Snapshot, config, text: TextEmbeddings, top_k: int) -> np.ndarray:
    """Ids of the exact top_k of every query, (Q, top_k), by one pass over all rows."""
    best = torch.full((len(text.word_mask), 0), 0.0)
    ids = torch.zeros((len(text.word_mask), 0), dtype=torch.int64)
    for start in range(0, len(snapshot), SCORE_ROWS):
        positions = np.arange(start, min(start + SCORE_ROWS, len(snapshot)))
        scores = similarity(text, snapshot.gather(positions), config)
        here = torch.from_numpy(snapshot.ids[positions]).expand(len(scores), -1)
        best, ids = torch.cat([best, scores], 1), torch.cat([ids, here], 1)
        best, order = best.topk(min(top_k, best.shape[1]))
        ids = ids.gather(1, order)
    return ids.numpy()

"""The search plan, measured: how many rows each stage of the cascade must hand on to find what exact search finds."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.bound import coarse_queries
from dmae.retrieval.snapshot import Snapshot

CANDIDATES = (20, 50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000)
CODES = (500, 1000, 2000, 4000, 8000, 16000)
CONFIDENCE = 0.95
SCORE_ROWS = 2_048


@dataclass(frozen=True)
class SearchPlan:
    """How many rows each stage hands on.

    candidates: rows that are scored exactly. codes: rows that the 4-bit codes hand to the 8-bit vectors (0: all rows
    are scanned in 8 bits; engines of one stage have no codes). recall: the mean over the calibration queries of the
    share of exact search's top 10 that was found, None until `calibrate` has measured it; recall_low: what the mean
    over other queries of this kind is at least, with 95 % confidence.
    """

    candidates: int = 300
    codes: int = 4000
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
        return 0 if not self.codes else max(self.codes, self.codes * wanted // max(1, self.candidates))


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
    queries = coarse_queries(text, config)
    frames, width = snapshot.frame_shape
    plans = []
    for codes in _depths(backend, len(snapshot)):
        deepest = min(CANDIDATES[-1], codes or len(snapshot))
        found = backend.candidates(queries, deepest, codes=codes)
        for size in [size for size in CANDIDATES if size < deepest] + [deepest]:
            shares = np.array([np.isin(truth, ids[:size]).mean() for truth, ids in zip(exact, found)])
            plan = SearchPlan(size, codes, round(float(shares.mean()), 4), round(recall_bound(shares, top_k), 4))
            plans.append((width * ((codes or len(snapshot)) + 2 * frames * size), plan))
    reaching = [(cost, plan) for cost, plan in plans if plan.recall_low >= target_recall]
    if reaching:
        plan = min(reaching, key=lambda pair: pair[0])[1]
    else:
        plan = max(plans, key=lambda pair: (pair[1].recall_low, -pair[0]))[1]
    return replace(plan, target_recall=target_recall, queries=len(exact))


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

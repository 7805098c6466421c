"""The search plan, measured: how much the coarse stage must hand to the exact one to find what exact search finds."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.retrieval.backends import FaissBackend, FlatBackend
from dmae.retrieval.bound import bound_queries, coarse_queries, compress_frames
from dmae.retrieval.qdrant import QdrantBackend
from dmae.retrieval.snapshot import Snapshot

LADDER = (50, 100, 200, 300, 500, 1000, 2000, 5000)
PROBES = (16, 32, 64, 128, 256, 512)
SCORE_ROWS = 2_048
GROUPS = 3  # compressed frames per video


@dataclass(frozen=True)
class SearchPlan:
    """How candidates are found, and how many rows are scored exactly.

    coarse: "pooled" (one vector a row, scanned by the query's mean), "bound" (the same, by one vector a word) or
    "frames" (3 compressed frames a row). scan: "auto" (the index's engine) or "all" (every vector, where the lists that
    FAISS leaves out would cost too much recall). nprobe: lists that FAISS reads. recall, of exact search's top 10, is
    None until `calibrate` has measured it.
    """

    candidates: int = 300
    coarse: str = "pooled"
    nprobe: int = 128
    scan: str = "auto"
    recall: float | None = None
    target_recall: float | None = None
    queries: int = 0


class CompressedFrames:
    """GROUPS frames per row in float16 (2·GROUPS·D bytes), scanned whole by `similarity()`: slower than the bound, and
    much closer to the exact score where single vectors tell too little."""

    def __init__(self, snapshot: Snapshot, config):
        self.ids, self.config = snapshot.ids, config
        self.blocks = []
        for start in range(0, len(snapshot), SCORE_ROWS):
            small = compress_frames(snapshot.gather(np.arange(start, min(start + SCORE_ROWS, len(snapshot)))), GROUPS)
            self.blocks.append((small.attended_embeds.half(), small.frame_weights, small.video_mask))

    def candidates(self, query: TextEmbeddings, top_k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        scores = [
            similarity(query, VideoEmbeddings(frames.float(), frames.float(), weights, mask), self.config)[0]
            for frames, weights, mask in self.blocks
        ]
        scores = torch.cat(scores)
        if allowed is not None:
            scores[torch.from_numpy(~np.isin(self.ids, allowed))] = float("-inf")
        best, order = scores.topk(min(top_k, len(scores)))
        return self.ids[order[best > float("-inf")].numpy()]


def measure_plan(snapshot, backend, config, text: TextEmbeddings, target_recall: float, top_k: int = 10, scan_all=True):
    """The cheapest SearchPlan whose mean recall of exact search's top_k over these queries reaches the target.

    Cost is bytes read per query: coarse vectors, and the frames of the candidates. Ways of which even the scan costs
    more than a plan found already are not tried. scan_all: the engine may be given up for a scan of every vector. If
    nothing reaches the target, the best plan measured is returned with the recall it has.
    """
    exact = exact_top(snapshot, config, text, top_k)
    ladder = [size for size in LADDER if size < len(snapshot)] or [len(snapshot)]
    queries = [text[row : row + 1] for row in range(len(exact))]
    frames, width = snapshot.segments[0].arrays["frames"].shape[1:]
    best, reached, tried = None, np.inf, []
    for way, scanned in sorted(_ways(snapshot, backend, config, text, scan_all), key=lambda pair: pair[1]):
        if scanned * width >= reached:
            break
        search = _searcher(way, snapshot, backend, config)
        found = [search(query, ladder[-1]) for query in queries]
        for size in ladder:
            plan = replace(way, candidates=size, recall=_recall(found, exact, size))
            tried.append(plan)
            cost = width * (scanned + 2 * frames * size)
            if plan.recall >= target_recall:
                best, reached = (plan, cost) if cost < reached else (best, reached)
                break
    plan = best or max(tried, key=lambda plan: plan.recall)
    return replace(plan, recall=round(plan.recall, 4), target_recall=target_recall, queries=len(queries))


def _ways(snapshot, backend, config, text, scan_all: bool) -> list[tuple[SearchPlan, float]]:
    """The coarse stages there are, with the bytes per dimension that each reads for one query."""
    rows, words = len(snapshot), 1
    ways = [(SearchPlan(coarse="frames"), 2 * GROUPS * rows)]
    if len(bound_queries(text, config)[0][0]) > 1:
        words = float(text.word_mask.sum(1).float().mean())
    kinds = [("pooled", 1)] + ([("bound", words)] if words > 1 else [])
    for coarse, vectors in kinds:
        if isinstance(backend, FlatBackend) or scan_all:
            scan = "auto" if isinstance(backend, FlatBackend) else "all"
            # one vector is scanned as fast as rows can be read; a product with more is bound by arithmetic
            ways.append((SearchPlan(coarse=coarse, scan=scan), 2 * rows * max(1, vectors / 4)))
        if isinstance(backend, QdrantBackend):  # its reading is its own
            ways.append((SearchPlan(coarse=coarse), 0.0))
        if isinstance(backend, FaissBackend):  # 8 bits; each query vector reads lists of its own
            lists = backend.index.nlist
            ways += [(SearchPlan(coarse=coarse, nprobe=n), rows * vectors * n / lists) for n in PROBES if n <= lists]
    return ways


def _searcher(way: SearchPlan, snapshot, backend, config):
    """(query, top_k) -> candidate ids, by one way."""
    if way.coarse == "frames":
        return CompressedFrames(snapshot, config).candidates
    if isinstance(backend, FaissBackend):
        if way.scan == "all":
            backend = FlatBackend()
            backend.upsert(snapshot.ids, snapshot.tensor("coarse", np.arange(len(snapshot))).numpy())
        else:
            backend.nprobe = way.nprobe
    return lambda query, top_k: backend.candidates(coarse_queries(query, config, way.coarse), top_k)


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


def _recall(found: list[np.ndarray], exact: np.ndarray, size: int) -> float:
    return float(np.mean([np.isin(truth, ids[:size]).mean() for ids, truth in zip(found, exact)]))

"""The search plan, measured: how much the coarse stage must hand to the exact one to find what exact search finds."""

from dataclasses import dataclass

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.retrieval.bound import bound_queries, compress_frames
from dmae.retrieval.snapshot import Snapshot

LADDER = (50, 100, 200, 300, 500, 1000, 2000, 5000)
PROBES = (32, 64, 128, 256, 512)
SCORE_ROWS = 2_048
GROUPS = 3  # compressed frames per video


@dataclass(frozen=True)
class SearchPlan:
    """candidates: rows scored exactly; coarse: "bound" (one vector a row) or "frames" (3 compressed frames a row);
    nprobe: lists that FAISS reads. recall of exact top-10 search is None until `calibrate` has measured it."""

    candidates: int = 300
    coarse: str = "bound"
    nprobe: int = 128
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


def measure_plan(snapshot, backend, config, text: TextEmbeddings, target_recall: float, top_k: int = 10) -> SearchPlan:
    """The cheapest plan whose mean recall of exact search's top_k over these queries reaches the target.

    Tried in the order of cost: the bound with few candidates to many (with FAISS: few lists to many), then compressed
    frames. If nothing reaches the target, the best one measured is returned with the recall it has.
    """
    exact = exact_top(snapshot, config, text, top_k)
    ladder = [size for size in LADDER if size < len(snapshot)] or [len(snapshot)]
    queries = [TextEmbeddings(*(tensor[row : row + 1] for tensor in text)) for row in range(len(exact))]
    tried = []
    for nprobe in PROBES if hasattr(backend, "nprobe") else PROBES[2:3]:
        if hasattr(backend, "nprobe"):
            backend.nprobe = nprobe
        found = [backend.candidates(_bound_vectors(query, config), ladder[-1]) for query in queries]
        tried += [SearchPlan(size, "bound", nprobe, _recall(found, exact, size)) for size in ladder]
        good = [plan for plan in tried if plan.recall >= target_recall]
        if good and good[0].candidates <= 1000:
            break
    else:
        frames = CompressedFrames(snapshot, config)
        found = [frames.candidates(query, ladder[-1]) for query in queries]
        tried += [SearchPlan(size, "frames", recall=_recall(found, exact, size)) for size in ladder]
        good = [plan for plan in tried if plan.recall >= target_recall]
    plan = min(good, key=lambda plan: plan.candidates) if good else max(tried, key=lambda plan: plan.recall)
    return SearchPlan(plan.candidates, plan.coarse, plan.nprobe, round(plan.recall, 4), target_recall, len(queries))


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


def _bound_vectors(query: TextEmbeddings, config) -> torch.Tensor:
    vectors, mask = bound_queries(query, config)
    return vectors[0][mask[0]]


def _recall(found: list[np.ndarray], exact: np.ndarray, size: int) -> float:
    return float(np.mean([np.isin(truth, ids[:size]).mean() for ids, truth in zip(found, exact)]))

"""How benchmarks/search.py takes its times: searches in turn with brute force, so that what slows one slows both."""

import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.backends import import_faiss
from dmae.retrieval.bound import coarse_queries
from dmae.retrieval.index import VideoIndex

RESIDENT = 20_000  # rows that brute force is timed on
CLOCK = time.thread_time  # of the one thread that works: what else the machine does counts less than by the clock


class BruteForce:
    """One query against all rows: `similarity()`, and the bare matrix product of the same size in its best chunk."""

    def __init__(self, index: VideoIndex, texts: TextEmbeddings):
        resident = min(len(index), RESIDENT)
        video = index.snapshot.gather(np.arange(resident))
        self.video = video.to(dtype=torch.float32)
        self.flat, self.config = self.video.attended_embeds.flatten(0, 1), index.config
        self.query = texts[:1]
        self.tokens = torch.cat([self.query.word_embeds[0][self.query.word_mask[0]], self.query.sentence_embeds])
        self.scale, self.resident = len(index) / resident, resident
        self.times = {"similarity": [], "product": []}
        self.measure()
        self.times = {"similarity": [], "product": []}

    def measure(self) -> None:
        started = CLOCK()
        similarity(self.query, self.video, self.config)
        self.times["similarity"].append(CLOCK() - started)
        chunks = []
        for rows in (512 * 12, 2048 * 12, len(self.flat)):
            started = CLOCK()
            for start in range(0, len(self.flat), rows):
                self.tokens @ self.flat[start : start + rows].T
            chunks.append(CLOCK() - started)
        self.times["product"].append(min(chunks))

    def milliseconds(self) -> dict[str, float]:
        return {name: statistics.median(times) * 1000 * self.scale for name, times in self.times.items()}


def timed(search, texts: TextEmbeddings, brute: BruteForce) -> tuple[list[float], list]:
    singles = [texts[row : row + 1] for row in range(len(texts.word_mask))]
    for single in singles:  # warm: the pages of the candidates' frames are in memory on the second pass
        search(single)
    times, found = [], []
    for number, single in enumerate(singles):
        started = CLOCK()
        found.append(search(single))
        times.append((CLOCK() - started) * 1000)
        if number % 8 == 0:
            brute.measure()
    return times, found


def timed_batches(index: VideoIndex, texts: TextEmbeddings, brute: BruteForce, size: int) -> tuple[list[float], list]:
    """As `timed`, `size` queries in one call; milliseconds a query."""
    times, found = [], []
    for start in range(0, len(texts.word_mask), size):
        started = CLOCK()
        found += index.search_embeddings(texts[start : start + size])
        times.append((CLOCK() - started) * 1000 / len(texts.word_mask[start : start + size]))
        brute.measure()
    return times, found


def exact_stage(index: VideoIndex, texts: TextEmbeddings, brute: BruteForce) -> dict:
    """Milliseconds to score 500 rows that lie apart, warm."""
    state, rng = index._state, np.random.default_rng(3)
    rows = [np.sort(rng.choice(len(index), min(500, len(index)), replace=False)) for _ in range(4)]
    times = []
    for number in range(40):
        started = CLOCK()
        state.score(texts[:1], rows[number % 4])
        times.append((CLOCK() - started) * 1000)
        if number % 10 == 0:
            brute.measure()
    return {"p50_ms": statistics.median(times[4:]), "min_ms": min(times)}


def stages(index: VideoIndex, texts: TextEmbeddings) -> dict:
    """Median milliseconds of the plan's parts, warm: codes and 8 bits, the scenes, the exact scores."""
    plan, times = index.plan, {"engine_ms": [], "scenes_ms": [], "exact_ms": []}
    queries = coarse_queries(texts, index.config)
    first = plan.scenes or plan.candidates
    engine = index.state._replace(plan=replace(plan, candidates=first, scenes=0))
    for number in range(len(texts.word_mask)):
        single, ends = texts[number : number + 1], [CLOCK()]
        rows = engine.candidates(single, first, None)
        ends.append(CLOCK())
        rows = engine.best_by_scenes(queries[number], rows, plan.candidates) if plan.scenes else rows
        ends.append(CLOCK())
        engine.score(single, rows)
        ends.append(CLOCK())
        for name, seconds in zip(times, np.diff(ends)):
            times[name].append(seconds * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def summary(times: list[float], found: list, exact: np.ndarray) -> dict:
    recall = np.mean([np.isin(truth, list(ids)[:10]).mean() for truth, ids in zip(exact, found)])
    p50, p95 = statistics.median(times), float(np.percentile(times, 95))
    return {"recall@10": round(float(recall), 4), "p50_ms": p50, "p95_ms": p95}


def add_ratios(row: dict, brute: dict[str, float]) -> None:
    row["speedup_p50"] = brute["similarity"] / row["p50_ms"]
    row["speedup_p95"] = brute["similarity"] / row["p95_ms"]
    row["speedup_over_product_p50"] = brute["product"] / row["p50_ms"]


def two_threads(index: VideoIndex, texts: TextEmbeddings, brute: BruteForce) -> dict:
    """Search and brute force on two threads, by the clock."""
    global CLOCK
    CLOCK, brute.times = time.perf_counter, {"similarity": [], "product": []}
    set_threads(2)
    times, _ = timed(lambda text: index.search_embeddings(text)[0], texts, brute)
    CLOCK, row = time.thread_time, {"p50_ms": statistics.median(times), "p95_ms": float(np.percentile(times, 95))}
    set_threads(1)
    add_ratios(row, brute.milliseconds())
    return row | {"brute_force_ms": brute.milliseconds()["similarity"], "clock": "wall"}


def set_threads(number: int) -> None:
    torch.set_num_threads(number)
    import_faiss().omp_set_num_threads(number)

"""The plan that is measured, beside a slow way to it: every plan tried out on its own, with sets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import beta

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import calibration
from dmae.retrieval.bound import coarse_queries
from dmae.retrieval.calibration import SearchPlan, exact_top, measure_plan, recall_bound
from dmae.retrieval.narrow import stored_frames
from dmae.retrieval.segments import Segment, segment_arrays
from dmae.retrieval.snapshot import Snapshot

CONFIG = SimpleNamespace(interaction="wti", similarity_form="tokenwise", text_granularity="both")
ROWS, QUERIES, WIDTH = 90, 20, 8


def snapshot(kind: str = "float16") -> Snapshot:
    draw = torch.Generator().manual_seed(0)
    frames = unit(torch.randn(ROWS, 1, WIDTH, generator=draw) + torch.randn(ROWS, 8, WIDTH, generator=draw))
    mask = torch.ones(ROWS, 8, dtype=torch.bool)
    arrays = stored_frames(VideoEmbeddings(frames, frames, mask / 8, mask), torch.zeros(ROWS, 8), kind)
    rows = [{"video_id": str(row), "path": "", "start": 0.0, "end": 1.0} for row in range(ROWS)]
    ids = 7 + np.arange(ROWS)
    return Snapshot([Segment(segment_arrays(ids=ids, coarse=frames.mean(1), rows=rows, **arrays), deleted=[3, 50])])


def texts() -> TextEmbeddings:
    draw = torch.Generator().manual_seed(1)
    sentence = unit(torch.randn(QUERIES, WIDTH, generator=draw))
    words = unit(sentence[:, None] + torch.randn(QUERIES, 3, WIDTH, generator=draw))
    mask = torch.ones(QUERIES, 3, dtype=torch.bool)
    return TextEmbeddings(sentence, words, mask / 3, mask)


class Engine:
    """Ranks by the coarse product and leaves out more rows the fewer codes it looks at."""

    def __init__(self, over: Snapshot, name: str = "faiss"):
        self.over, self.name = over, name

    def candidates(self, queries, top_k, allowed=None, codes=0):
        products = queries @ self.over.tensor("coarse", np.arange(len(self.over))).float().T
        ranked = [self.over.ids[order] for order in (-products).argsort(1).numpy()]
        left_out = {0: 0, 60: 7}.get(codes, 3)
        return [ids[ids % left_out > 0][:top_k] if left_out else ids[:top_k] for ids in ranked]


def every_plan(over: Snapshot, engine: Engine, truth: np.ndarray, target: float, top_k: int) -> list[SearchPlan]:
    queries, plans = coarse_queries(texts(), CONFIG), []

    def tried(plan: SearchPlan, lists: list) -> SearchPlan:
        shares = [len({*ids[: plan.candidates]} & {*best}) / top_k for ids, best in zip(lists, truth)]
        low = round(recall_bound(np.array(shares), top_k), 4)
        return replace(plan, recall=round(float(np.mean(shares)), 4), recall_low=low)

    codes = [c for c in calibration.CODES if c < len(over)] + [0] if engine.name in ("faiss", "ray") else [0]
    for depth in codes:
        deepest = min(calibration.CANDIDATES[-1], depth or len(over))
        found = engine.candidates(queries, deepest, codes=depth)
        sizes = [size for size in calibration.CANDIDATES if size < deepest] + [deepest]
        plans += (direct := [tried(SearchPlan(size, depth), found) for size in sizes])
        enough = [plan.candidates for plan in direct if plan.recall_low >= target][: calibration.SCENE_CHOICES]
        for scenes in (enough or sizes[-1:]) if over.has_scenes else ():
            lists = []
            for query, ids in zip(queries, found):
                scores = over.scene_scores(query, over.positions(ids[:scenes]))
                lists.append(ids[:scenes][np.argsort(-scores)])
            plans += [tried(SearchPlan(size, depth, scenes), lists) for size in sizes if size < scenes]
    return plans


def bytes_of(plan: SearchPlan, over: Snapshot) -> int:
    arrays = over.segments[0].arrays
    scenes = arrays["scenes"][0].nbytes * plan.scenes if plan.scenes else 0
    return WIDTH * (plan.codes or len(over)) + scenes + arrays["frames"][0].nbytes * plan.candidates


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
@pytest.mark.parametrize(("name", "kind"), [("faiss", "float16"), ("flat", "float16"), ("ray", "int8")])
def test_the_plan_is_the_cheapest_that_reaches_the_target_else_the_best(name, kind, target, monkeypatch):
    monkeypatch.setattr(calibration, "CANDIDATES", (4, 8, 16, 32, 50, 64, 80))
    monkeypatch.setattr(calibration, "CODES", (40, 60, 88, 90))  # 88 rows live
    over, top_k = snapshot(kind), 5
    truth = exact_top(over, CONFIG, texts(), top_k)
    engine = Engine(over, name)
    plans = every_plan(over, engine, truth, target, top_k)
    reaching = [plan for plan in plans if plan.recall_low >= target]
    best = max(plan.recall_low for plan in plans)
    chosen = min(reaching or [p for p in plans if p.recall_low == best], key=lambda plan: bytes_of(plan, over))
    expected = replace(chosen, target_recall=target, queries=QUERIES)
    assert measure_plan(over, engine, CONFIG, texts(), target, top_k) == expected
    assert measure_plan(over, engine, CONFIG, texts(), target, top_k, exact=truth) == expected
    assert bool(reaching) is (target < 1) and {plan.codes for plan in plans} == ({0} if name == "flat" else {40, 60, 0})
    worst = measure_plan(over, engine, CONFIG, texts(), target, top_k, exact=truth - 1_000)
    assert worst.recall == 0.0 and worst.recall_low < 0.01, "what is nowhere is not found"


def test_what_a_plan_reads_is_counted_in_bytes():
    for kind, plans in (("float16", [(7, 30, 20), (7, 30), (8, 0)]), ("int8", [(7, 30), (8, 0)])):
        over = snapshot(kind)
        for plan in (SearchPlan(*numbers) for numbers in plans):
            assert calibration._bytes(plan, over) == bytes_of(plan, over)


@pytest.mark.parametrize("block", [7, 88, 2_048])
def test_exact_top_is_a_sort_of_all_scores(block, monkeypatch):
    monkeypatch.setattr(calibration, "SCORE_ROWS", block)
    over = snapshot()
    scores = similarity(texts(), over.gather(np.arange(len(over))), CONFIG).numpy()
    ranked = over.ids[np.argsort(-scores, axis=1, kind="stable")]
    for top_k in (1, 5, 88, 200):
        assert exact_top(over, CONFIG, texts(), top_k).tolist() == ranked[:, :top_k].tolist()


def test_the_plan_of_a_manifest_and_its_proportions():
    assert SearchPlan.of({}) == SearchPlan() == SearchPlan(300, 4000, 0, None, None, None, 0)
    assert SearchPlan.of({"candidates": 5, "codes": 7, "later": 1}) == SearchPlan(5, 7)
    assert SearchPlan.of({"coarse": 5, "candidates": 9}) == SearchPlan(), "measured for another engine"
    plan = SearchPlan(candidates=100, codes=1000, scenes=450)
    for wanted, codes, scenes in ((1, 1000, 450), (100, 1000, 450), (101, 1010, 454), (250, 2500, 1125)):
        assert (plan.codes_for(wanted), plan.scenes_for(wanted)) == (codes, scenes)
    assert SearchPlan(codes=0, scenes=0).codes_for(900) == SearchPlan(codes=0, scenes=0).scenes_for(900) == 0
    assert SearchPlan(candidates=0, codes=10).codes_for(3) == 30


@pytest.mark.parametrize(
    ("shares", "hits"),
    [
        ([1.0] * 10, 10),  # no spread tells nothing: each query counts once
        ([0.7], 1),
        ([1.0, 0.8] * 100, 0.09 / (0.01 / 199)),
        ([1.0, 0.0] * 5, 10),  # never fewer than the queries
        ([0.5, 0.5, 0.5, 0.6], 40),  # nor more than their hits
    ],
)
def test_the_bound_is_that_of_as_many_hits_as_the_spread_allows(shares, hits):
    mean = np.mean(shares)
    assert recall_bound(np.array(shares), 10) == pytest.approx(
        beta.ppf(0.05, mean * hits + 0.5, (1 - mean) * hits + 0.5)
    )

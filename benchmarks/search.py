"""Search speed and recall against brute force, on synthetic corpora of 12 frames x 512.

python benchmarks/search.py --rows 20000 --kind cal [--folder /tmp/bench]     # writes results/search_cal_20000.json

Two generators. "cal": a video has one meaning, its frames scatter around it, a caption is a noisy view of it. "hard": a
video has three unlike shots and the caption tells of one. Brute force is the library's own `similarity()` over frames
that lie in memory as float32: one query, best of the repeats, scaled by the number of rows beyond those that fit (the
time is linear in them); the bare matrix product of the same size is timed beside it. Search is timed warm, one query at
a time, from embedded query to results. Recall is of exact search's top 10, on other queries than the calibration's.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import storage
from dmae.retrieval.backends import FaissBackend, choose_backend
from dmae.retrieval.bound import coarse_vectors
from dmae.retrieval.calibration import exact_top
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.storage import Segment

FRAMES, DIM, WORDS, TOPICS = 12, 512, 16, 2_000
SEGMENT = 20_000
RESIDENT = 20_000  # rows that brute force is timed on
KINDS = {  # frame noise, shots, shot noise, caption noise, word noise; a noise of 1 is as long as the signal
    "cal": (0.6, 1, 0.0, 4.5, 1.0),
    "hard": (1.0, 3, 1.0, 4.5, 2.5),
}
RESULTS = Path(__file__).parent / "results"


def noise(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng) / shape[-1] ** 0.5


def make_segment(kind: str, rows: int, seed: int, topics: torch.Tensor) -> tuple[VideoEmbeddings, torch.Tensor]:
    """Videos, and for each the meaning that a caption of it would tell."""
    frame_noise, shots, shot_noise, _, _ = KINDS[kind]
    rng = torch.Generator().manual_seed(seed)
    meaning = unit(topics[torch.randint(TOPICS, (rows,), generator=rng)] + 0.8 * noise(rng, rows, DIM))
    shot = unit(meaning[:, None] + shot_noise * noise(rng, rows, shots, DIM))
    frames = unit(shot.repeat_interleave(FRAMES // shots, 1) + frame_noise * noise(rng, rows, FRAMES, DIM))
    mask = torch.ones(rows, FRAMES, dtype=torch.bool)
    return VideoEmbeddings(frames, frames, mask / FRAMES, mask), shot[:, 0]


def make_queries(kind: str, told: torch.Tensor, seed: int) -> TextEmbeddings:
    *_, caption_noise, word_noise = KINDS[kind]
    rng = torch.Generator().manual_seed(seed)
    sentence = unit(told + caption_noise * noise(rng, len(told), DIM))
    words = unit(sentence[:, None] + word_noise * noise(rng, len(told), WORDS, DIM))
    mask = torch.ones(len(told), WORDS, dtype=torch.bool)
    return TextEmbeddings(sentence, words, mask / WORDS, mask)


def build(kind: str, rows: int, folder: Path, queries: int) -> tuple[VideoIndex, torch.Tensor, np.ndarray, float]:
    """An index folder of synthetic videos; (index, meanings of some videos, their rows, seconds to open it)."""
    config = DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    topics = unit(noise(torch.Generator().manual_seed(0), TOPICS, DIM))
    files, told = [], []
    for start in range(0, rows, SEGMENT):
        count = min(SEGMENT, rows - start)
        videos, meaning = make_segment(kind, count, 1 + start, topics)
        told.append(meaning)
        ids = np.arange(start, start + count)
        lines = [{"video_id": str(i), "path": f"{i}.mp4", "start": 0.0, "end": 12.0} for i in ids]
        times = np.zeros((count, FRAMES), np.float32)
        coarse = coarse_vectors(videos, config)
        _, frames, weights, mask = videos
        files.append(
            storage.write_segment(folder, storage.segment_arrays(ids, frames, weights, mask, times, coarse, lines))
        )
    segments = [Segment.open(folder, file) for file in files]
    model = {"name": "synthetic", "revision": None, "weights": "", "processor": ""}
    manifest = {"format": storage.FORMAT, "generation": 1, "next_id": rows, "model": model, "backend": "auto"}
    manifest |= {"config": config.to_dict(), "window": None, "plan": {}}
    manifest |= {"segments": [segment.manifest_entry() for segment in segments]}
    storage.write_manifest(folder, manifest)
    started = time.perf_counter()
    index = VideoIndex.open(folder)
    index.save_backend()
    seconds = time.perf_counter() - started
    chosen = np.random.default_rng(1).choice(rows, queries, replace=False)
    return index, torch.cat(told)[chosen], chosen, seconds


def brute_force_ms(index: VideoIndex, texts: TextEmbeddings, rows: int) -> dict[str, float]:
    """One query against all rows: `similarity()` in its best chunk, and the bare matrix product of the same size."""
    resident = min(rows, RESIDENT)
    video = index.snapshot.gather(np.arange(resident))
    flat = video.attended_embeds.reshape(-1, DIM)
    query = TextEmbeddings(*(tensor[:1] for tensor in texts))
    times = {"similarity": [], "product": []}
    for _ in range(3):
        for size in (512, 2048):
            started = time.perf_counter()
            for start in range(0, resident, size):
                similarity(query, VideoEmbeddings(*(tensor[start : start + size] for tensor in video)), index.config)
            times["similarity"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for start in range(0, resident * FRAMES, 512 * FRAMES):
            query.word_embeds[0] @ flat[start : start + 512 * FRAMES].T
            query.sentence_embeds @ flat[start : start + 512 * FRAMES].T
        times["product"].append(time.perf_counter() - started)
    return {name: min(values) * 1000 * rows / resident for name, values in times.items()}


def timed(search, texts: TextEmbeddings) -> tuple[list[float], list]:
    singles = [TextEmbeddings(*(tensor[row : row + 1] for tensor in texts)) for row in range(len(texts.word_mask))]
    for single in singles:  # warm: the pages of the candidates' frames are in memory on the second pass
        search(single)
    times, found = [], []
    for single in singles:
        started = time.perf_counter()
        found.append(search(single))
        times.append((time.perf_counter() - started) * 1000)
    return times, found


def mean_pooled(index: VideoIndex, rows: int):
    """As clip-retrieval does it: the unit mean frame in FAISS, the sentence as the query, no re-rank."""
    snapshot = index.snapshot
    coarse = unit(snapshot.tensor("coarse", np.arange(rows)).float()).numpy()
    backend = FaissBackend(DIM, nprobe=128)
    started = time.perf_counter()
    backend.upsert(snapshot.ids, coarse)
    return (lambda text: backend.candidates(text.sentence_embeds, 10)), time.perf_counter() - started


def summary(times: list[float], found: list, exact: np.ndarray, brute: dict) -> dict:
    recall = np.mean([np.isin(truth, list(ids)[:10]).mean() for truth, ids in zip(exact, found)])
    brute_ms, product_ms = brute["similarity"], brute["product"]
    p50, p95 = statistics.median(times), float(np.percentile(times, 95))
    return {"recall@10": round(float(recall), 4), "p50_ms": p50, "p95_ms": p95, "speedup_p50": brute_ms / p50,
            "speedup_p95": brute_ms / p95, "speedup_over_product_p50": product_ms / p50}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kind", choices=KINDS, default="cal")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/dmae_search_benchmark"))
    args = parser.parse_args()
    torch.manual_seed(0)
    index, told, rows_told, open_seconds = build(args.kind, args.rows, args.folder, 2 * args.queries)
    texts = make_queries(args.kind, told, seed=5)
    measured, calibration = (TextEmbeddings(*(t[part] for t in texts))
                             for part in (slice(args.queries), slice(args.queries, None)))  # fmt: skip
    started = time.perf_counter()
    plan = index.calibrate(calibration, args.target)
    calibrate_seconds = time.perf_counter() - started
    exact = exact_top(index.snapshot, index.config, measured, 10)
    brute = brute_force_ms(index, measured, args.rows)
    rows = {}
    for name, candidates in [("calibrated", plan.candidates), ("100 candidates", 100), ("1000 candidates", 1000)]:
        search = lambda text, n=candidates: index.search_embeddings(text, candidates=n)[0]  # noqa: E731
        times, found = timed(search, measured)
        found = [[int(hit.video_id) for hit in hits] for hits in found]
        rows[name] = summary(times, found, exact, brute)
    pooled, pooled_seconds = mean_pooled(index, args.rows)
    rows["mean-pooled FAISS, no re-rank"] = summary(*timed(pooled, measured), exact, brute)
    record = {
        "kind": args.kind,
        "rows": args.rows,
        "frames": FRAMES,
        "dimension": DIM,
        "words": WORDS,
        "queries": args.queries,
        "exact_R@1": float((exact[:, 0] == rows_told[: args.queries]).mean()),
        "backend": choose_backend("auto", args.rows),
        "plan": vars(plan),
        "brute_force_ms": brute,
        "brute_force_scaled_from_rows": min(args.rows, RESIDENT),
        "similarity_over_product": brute["similarity"] / brute["product"],
        "search": rows,
        "seconds": {"open_or_build": open_seconds, "calibrate": calibrate_seconds, "mean_pooled_build": pooled_seconds},
        "disk_bytes": sum(file.stat().st_size for file in args.folder.iterdir()),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"search_{args.kind}_{args.rows}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()

"""Search speed and recall against brute force: synthetic corpora of 12 frames x 512, or any index.

python benchmarks/search.py --rows 20000 --kind cal [--folder /tmp/bench]      # writes results/search_cal_20000.json
python benchmarks/search.py --index my.index --captions metadata.jsonl --name movingdigits

The generators are in search_corpus.py. Brute force is the library's own `similarity()` of one query
with frames that lie in memory as float32, scaled by the number of rows beyond those that fit (the time is linear in
them); the bare matrix product of the same size is timed beside it. Both are timed between the searches, over the whole
of a run, and all by the CPU time of the one thread, so that whatever else the machine does slows all of them or none.
Search is timed warm, one query at a time, from
embedded query to results, in batches, and on two threads by the clock. Recall is of exact search's top 10, on other
queries than the calibration's. What stands in `--folder` already is used again, `--keep` leaves it there, and with
`--minutes` a run stops after a piece and the next one goes on: a million rows can be measured a few minutes at a time.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from search_corpus import KINDS, Budget, beside, exact_answers, make_queries, make_videos, synthetic, topics
from search_timing import (
    BruteForce,
    add_ratios,
    exact_stage,
    set_threads,
    stages,
    summary,
    timed,
    timed_batches,
    two_threads,
)

from dmae.inference.embedding import EncodedVideos, encode_texts
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import state
from dmae.retrieval.backends import FaissBackend, import_faiss
from dmae.retrieval.calibration import exact_top
from dmae.retrieval.index import VideoIndex

BATCH = 32
RESULTS = Path(__file__).parent / "results"


def captions_of(index: VideoIndex, path: Path, queries: int) -> tuple[TextEmbeddings, np.ndarray]:
    """Embedded captions of a metadata file for videos of the index, one each, and the rows of these videos."""
    place = {row["path"]: number for number, row in enumerate(index.rows())}
    pairs = []
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        number = place.get(str((path.parent / (line.get("video") or line["file_name"])).resolve()))
        if number is not None:
            pairs.append((line["captions"][0], number))
    chosen = np.random.default_rng(1).permutation(len(pairs))[:queries]
    texts = encode_texts(index.model, index.processor, [pairs[n][0] for n in chosen])
    return texts, np.array([pairs[n][1] for n in chosen])


def mean_pooled(index: VideoIndex, file: Path):
    """As clip-retrieval does it: the mean frame in FAISS, the sentence as the query, no re-rank."""
    if not file.exists():
        snapshot = index.snapshot
        engine = FaissBackend()
        engine.build(snapshot.ids, lambda rows: unit(snapshot.tensor("coarse", rows).float()).numpy())
        if engine.parts.main is None:
            return lambda text: engine.candidates(text.sentence_embeds, 10, codes=1000)[0]
        engine.save(file)
    engine = FaissBackend.load(file)
    return lambda text: engine.candidates(text.sentence_embeds, 10, codes=1000)[0]


def own_memory() -> int:
    """Bytes of this process that are no pages of files, after what was freed has been given back (glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def measure(index: VideoIndex, texts: TextEmbeddings, exact: np.ndarray, args) -> dict:
    """Calibrate on the last texts, measure on the first ones. exact: ids of the top 10 of all."""
    measured, held_out = texts[: args.queries], exact[: args.queries]
    brute, rows_of = BruteForce(index, measured), lambda hits: [[hit.row for hit in found] for found in hits]
    pooled = mean_pooled(index, beside(args.folder, "pooled.faiss"))
    ways = {"mean-pooled FAISS, no re-rank": summary(*timed(pooled, measured, brute), held_out)}
    started = time.perf_counter()
    plan = index.calibrate(texts[args.queries :], args.target, exact=exact[args.queries :])
    seconds = time.perf_counter() - started
    times, hits = timed(lambda text: index.search_embeddings(text)[0], measured, brute)
    ways["calibrated"] = summary(times, rows_of(hits), held_out)
    times, hits = timed_batches(index, measured, brute, BATCH)
    ways[f"calibrated, {BATCH} queries at once"] = summary(times, rows_of(hits), held_out)
    stage = exact_stage(index, measured, brute)
    milliseconds = brute.milliseconds()
    for row in ways.values():
        add_ratios(row, milliseconds)
    return {
        "queries": len(held_out),
        "plan": asdict(plan),
        "brute_force_ms": milliseconds,
        "brute_force_scaled_from_rows": brute.resident,
        "similarity_over_product": milliseconds["similarity"] / milliseconds["product"],
        "search": ways,
        "two_threads": two_threads(index, measured, brute),
        "exact_stage_500": stage,
        "stages": stages(index, measured),
        "calibrate_seconds": seconds,
    }


def opening(folder: Path) -> dict:
    """A process of its own opens the index and scores one row: seconds, and bytes of memory, pages of files apart."""
    program = [sys.executable, __file__, "--open", str(folder)]
    return json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def open_here(folder: Path) -> None:
    before, started = own_memory(), time.perf_counter()
    index = VideoIndex.open(folder)
    seconds = time.perf_counter() - started
    memory = own_memory()
    print(json.dumps({"open_seconds": seconds, "process_bytes": memory, "index_memory_bytes": memory - before}))
    del index


def adding(index: VideoIndex, rows: int = 1_000) -> dict:
    """Seconds to commit rows, ready to be found."""
    videos = make_videos("cal", rows, torch.Generator().manual_seed(99), topics())[0]
    items = [{"video_id": f"new{n}", "path": f"new{n}.mp4", "span": (0.0, 12.0)} for n in range(rows)]
    started = time.perf_counter()
    index.add(EncodedVideos(videos, items, torch.zeros(videos.video_mask.shape), []))
    return {"rows": rows, "seconds": time.perf_counter() - started}


def export(index: VideoIndex, texts: TextEmbeddings, args) -> None:
    """Frames (N,F,D), query tokens with the sentence last (Q,T+1,D), exact top 10 (Q,10)."""
    video = index.snapshot.gather(np.arange(len(index)))
    tokens = torch.cat([texts.word_embeds, texts.sentence_embeds[:, None]], 1)
    exact = exact_top(index.snapshot, index.config, texts, 10)
    np.savez(args.export, frames=video.attended_embeds.numpy(), tokens=tokens.numpy(), exact=exact, kind=args.kind)
    shutil.rmtree(args.folder)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kind", choices=KINDS, default="cal")
    parser.add_argument(
        "--frames", choices=("float16", "int8", "merged"), default="float16", help="how they are stored"
    )
    parser.add_argument("--prepare", action="store_true", help="make the corpus and its exact answers; no timing")
    parser.add_argument("--minutes", type=float, help="stop between two pieces after so many; run again to go on")
    parser.add_argument("--index", type=Path, help="an index made by `dmae index` instead of a generator; not changed")
    parser.add_argument("--captions", type=Path, help="with --index: metadata.jsonl with the captions of its videos")
    parser.add_argument("--name", default="index", help="with --index: for the result file")
    parser.add_argument(
        "--export", type=Path, help="write rows, queries and exact answers for search_plaid.py; no timing"
    )
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=300, help="queries that the plan is measured on")
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--folder", type=Path, help="of the corpus; by default under the folder for temporary files")
    parser.add_argument("--keep", action="store_true", help="leave the corpus there for another run")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.index is None) != (args.captions is None):
        parser.error("--index and --captions go together")
    return args


def conditions() -> dict:
    return {
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": 1,
        "clock": "CPU time of the thread",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "faiss": import_faiss().__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
    }


def finished(record: dict, args) -> None:
    """Write and print the record; the corpus goes, unless it is to be kept."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"search_{record['kind']}_{record['rows']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if not args.keep:
        shutil.rmtree(args.folder)
        for file in args.folder.parent.glob(f"{args.folder.name}.*"):
            file.unlink()


def main() -> None:
    args = parsed()
    if args.open:
        open_here(args.open)
        return
    name = args.name if args.index else f"{args.kind}_{args.rows}"
    args.folder = args.folder or Path(tempfile.gettempdir()) / f"dmae_search_{name}"
    wanted, budget = args.queries + args.calibration, Budget(args.minutes)
    set_threads(1)
    if args.index:
        shutil.copytree(args.index, args.folder, dirs_exist_ok=True)
    else:
        told, rows_told = synthetic(args.kind, args.rows, args.folder, wanted, args.frames, budget)
        texts = make_queries(args.kind, told, seed=5)
    started = time.perf_counter()
    index = VideoIndex.open(args.folder)
    if args.export:
        export(index, texts, args)
        return
    index.save_backend()
    built = time.perf_counter() - started
    budget.check("the FAISS file is written")
    if args.index:
        texts, rows_told = captions_of(index, args.captions, wanted)
    exact, how = exact_answers(index, texts, args.folder, budget)
    budget.check("the exact answers are there")
    if args.prepare:
        return
    state.EXACT_UP_TO = 0  # a small index would be scanned exactly, and this is about the other way
    record = {
        "kind": args.name if args.index else args.kind,
        "rows": len(index),
        "frames": index.info()["frames"],
        "stored_as": index.info()["stored_as"],
        "dimension": index.info()["dimension"],
        "words": float(texts.word_mask.sum(1).float().mean()),
        "engine": index.info()["backend"],
        "open_or_build_seconds": built,
        **opening(args.folder),
        **how,
        **measure(index, texts, exact, args),
        "disk_bytes": sum(file.stat().st_size for file in args.folder.iterdir()),
        **conditions(),
    }
    first = exact[: args.queries, 0]
    record["exact_R@1"] = float((first == index.snapshot.ids[rows_told[: len(first)]]).mean())
    record["adding"] = None if args.index else adding(index)
    finished(record, args)


if __name__ == "__main__":
    main()

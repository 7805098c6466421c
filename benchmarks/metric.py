"""Speed and memory of `retrieval_metrics` beside the sort that most code bases of this field use.

    python benchmarks/metric.py            # writes benchmarks/results/metric.json

Both sides run in this process, alternately, on the same matrix, with one thread; the best of the repeats counts. Their
times are CPU times, which other programs on the machine disturb less; streaming is timed by the clock.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import time
import tracemalloc
from pathlib import Path

import numpy as np

from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals
from dmae.metrics.text_video_retrieval.retrieval_metrics import (
    retrieval_metrics,
    retrieval_ranks,
    streaming_ranks,
    summarize_ranks,
)

RESULTS = Path(__file__).with_name("results") / "metric.json"


def sorting_metrics(similarities: np.ndarray) -> dict[str, float]:
    """The usual way, written anew: sort every row, find the right score in it; once for each direction."""
    metrics = {}
    for direction, scores in (("text_to_video", similarities), ("video_to_text", similarities.T)):
        ascending = np.sort(-scores, axis=1)
        ranks = np.where(ascending - np.diag(-scores)[:, None] == 0)[1]  # one rank per *equal score*
        metrics |= {f"{direction}_R@{k}": float(np.sum(ranks < k)) / len(ranks) for k in (1, 5, 10)}
        metrics[f"{direction}_median_rank"] = float(np.median(ranks)) + 1
        metrics[f"{direction}_mean_rank"] = float(np.mean(ranks)) + 1
        metrics[f"{direction}_ranks"] = [int(rank) for rank in ranks]
    return metrics


def best_seconds(functions: list, repeats: int, calls: tuple[int, ...] = (50, 5)) -> list[float]:
    """Per function the best mean of `calls` calls: the clock of CPU time may tick in steps of 4 ms."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for number, function in enumerate(functions):
            started = time.process_time()
            for _ in range(calls[number]):
                function()
            best[number] = min(best[number], (time.process_time() - started) / calls[number])
    return best


def speed(size: int, dtype: str, repeats: int) -> dict:
    similarities = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    gold = np.arange(size)
    ours, theirs = retrieval_metrics(similarities, gold), sorting_metrics(similarities)
    if any(abs(ours[name] - theirs[name]) > 1e-12 for name in theirs if not name.endswith("ranks")):
        raise AssertionError("the two implementations disagree")
    counted, sorted_ = best_seconds(
        [lambda: retrieval_metrics(similarities, gold), lambda: sorting_metrics(similarities)], repeats
    )
    row = {
        "size": size,
        "dtype": dtype,
        "sort_ms": sorted_ * 1e3,
        "count_ms": counted * 1e3,
        "ratio": sorted_ / counted,
    }
    print(f"{size} x {size} {dtype}: sort {sorted_ * 1e3:.2f} ms, count {counted * 1e3:.2f} ms, {row['ratio']:.1f}x")
    return row


def bootstrap(size: int, samples: int, repeats: int) -> dict:
    """Intervals from one pass over the matrix: its ranks are drawn again, the scores are not read again."""
    similarities = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    gold = np.arange(size)

    def with_intervals():
        ranks = retrieval_ranks(similarities, gold)
        bootstrap_intervals(*ranks, gold, summarize_ranks, samples)

    alone, both = best_seconds([lambda: retrieval_metrics(similarities, gold), with_intervals], repeats, (50, 1))
    print(f"{size} x {size} float32: {alone * 1e3:.2f} ms, with {samples} draws for intervals {both * 1e3:.0f} ms")
    return {"size": size, "samples": samples, "metric_ms": alone * 1e3, "with_intervals_ms": both * 1e3}


def streaming(size: int, width: int) -> dict:
    """Ranks from pooled vectors; tracemalloc's peak counts every array that is allocated on the way."""
    random = np.random.default_rng(0)
    texts, videos = random.standard_normal((2, size, width), dtype=np.float32)
    gold = np.arange(size)
    tracemalloc.start()
    started = time.perf_counter()
    streaming_ranks(lambda rows, columns: texts[rows] @ videos[columns].T, gold, size)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row = {"size": size, "width": width, "seconds": seconds, "peak_MB": peak / 1e6, "matrix_MB": 4e-6 * size**2}
    print(f"streaming {size} x {size}, width {width}: {seconds:.1f} s, peak {peak / 1e6:.0f} MB; ", end="")
    print(f"the matrix alone would take {row['matrix_MB']:.0f} MB")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--width", type=int, default=64, help="of the pooled vectors")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2500, 5000, 10000, 20000], help="of the streamed sets")
    options = parser.parse_args()
    results = {
        "conditions": {
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "repeats": options.repeats,
            "load_average": os.getloadavg(),
            "sort_uses_simd": np.show_config("dicts")["SIMD Extensions"].get("found", []),
        },
        "speed": [speed(1000, "float32", options.repeats), speed(1000, "float64", options.repeats)],
        "bootstrap": bootstrap(1000, 1000, options.repeats),
        "streaming": [streaming(size, options.width) for size in options.sizes],
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

"""fast-plaid, a multi-vector engine, on a corpus of benchmarks/search.py: recall of exact search's top 10, and time.

python benchmarks/search.py --rows 20000 --kind cal --export /tmp/cal.npz
PYTHON_WITH_FAST_PLAID benchmarks/search_plaid.py /tmp/cal.npz      # writes results/multivector_cal_20000.json

It needs neither dmae nor its version of torch, because fast-plaid is compiled against one version of its own. The bare
matrix product of one query with all rows is timed between the searches. fast-plaid's MaxSim goes one way, Σ_i max_j,
without the frames' half of the score, so it is measured as a source of candidates too: how much of the exact top 10 is
among its first 100 and 1000.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    from fast_plaid import search

    torch.set_num_threads(1)
    data = np.load(sys.argv[1])
    frames = torch.from_numpy(data["frames"]).float()
    tokens, exact = torch.from_numpy(data["tokens"]).float(), data["exact"]
    with tempfile.TemporaryDirectory() as folder:
        engine = search.FastPlaid(index=folder, device="cpu")
        started = time.perf_counter()
        engine.create(documents_embeddings=list(frames))
        built = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        ask = lambda query: engine.search(query[None], top_k=1000, n_ivf_probe=32, show_progress=False)[0]  # noqa: E731
        ask(tokens[0])
        times, products, found = [], [], []
        flat = frames.flatten(0, 1)
        for number, query in enumerate(tokens):
            started = time.perf_counter()
            found.append([row for row, _ in ask(query)])
            times.append((time.perf_counter() - started) * 1000)
            if number % 8 == 0:
                started = time.perf_counter()
                for start in range(0, len(flat), 6144):
                    query @ flat[start : start + 6144].T
                products.append((time.perf_counter() - started) * 1000)
    recall = {
        f"recall_at_{size}": round(float(np.mean([np.isin(e, f[:size]).mean() for e, f in zip(exact, found)])), 4)
        for size in (10, 100, 1000)
    }
    record = {
        "engine": "fast-plaid",
        "kind": str(data["kind"]),
        "rows": len(frames),
        "queries": len(tokens),
        **recall,
        "p50_ms": statistics.median(times),
        "p95_ms": float(np.percentile(times, 95)),
        "product_ms": statistics.median(products),
        "speedup_over_product_p50": statistics.median(products) / statistics.median(times),
        "build_seconds": built,
        "disk_bytes": size,
        "threads": 1,
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }
    path = Path(__file__).parent / "results" / f"multivector_{record['kind']}_{len(frames)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

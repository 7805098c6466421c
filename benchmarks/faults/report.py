"""benchmarks/results/faults.json: what every fault harness found, one top-level key a harness.

from report import merge_result    # a script finds its neighbours
merge_result("index", {"lost": 0, "mixed": 0}, seed=0, trials=1000)
"""

import json
import os
import platform
import tempfile
import time
from pathlib import Path

from filelock import FileLock

from dmae import files
from dmae.inference.conditions import code_version

RESULTS = Path(__file__).resolve().parents[1] / "results" / "faults.json"


def merge_result(name: str, result: dict, *, seed: int | None = None, trials: int | None = None, path=RESULTS) -> dict:
    """Put a harness's result, with the conditions it was found under, in the place of its last one; returns both."""
    code = code_version()
    conditions = {
        "seed": seed,
        "trials": trials,
        "date": time.strftime("%Y-%m-%d"),
        "platform": platform.platform(),
        "python": code["python"],
        "git": code["git"],
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"dmae-{path.name}.lock", timeout=60):  # harnesses may run side by side
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        results[name] = {**result, "conditions": conditions}
        files.write_file(path, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    return results[name]

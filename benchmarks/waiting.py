"""How long training steps wait for their batches, from the log that every run keeps.

    python benchmarks/waiting.py outputs/demo/run --called "dmae demo"      # writes benchmarks/results/waiting.json

`waiting_share` is noted by the run itself: seconds in which the loop asked for a batch and had none, over all seconds
of a log line. Run it on a run whose frames are cached; the demo's are.
"""

import argparse
import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "waiting.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, with its metrics.jsonl")
    parser.add_argument("--called", required=True, help="what to call it")
    args = parser.parse_args()
    text = (args.run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "waiting_share" in line]
    shares = [line["waiting_share"] for line in lines]
    record = {
        "run": args.called,
        "lines": len(lines),
        "median": statistics.median(shares),
        "mean": statistics.mean(shares),
        "first": shares[0],
        "samples_per_second": statistics.median(line["samples_per_second"] for line in lines),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

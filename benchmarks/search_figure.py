"""docs/images/search_cascade.svg: what each stage of a search reads and takes, from the result files of search.py.

python benchmarks/search_figure.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "search_cascade.svg"
COLORS = ("#4c72b0", "#dd8452", "#55a868")
TIMED = ("codes and 8 bits", "frames", "the rest")
FRAME_BYTES = {"float16": 2, "int8": 1, "merged": 1}


def measured(results: Path) -> list[dict]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("search_*.json")]
    return sorted((record for record in found if "stages" in record), key=lambda r: (r["kind"], r["rows"]))


def read_per_query(record: dict) -> list[tuple[str, int, float]]:
    """(stage, rows, bytes) of one query."""
    plan, rows, width = record["plan"], record["rows"], record["dimension"]
    frames = record["frames"] * width * FRAME_BYTES[record["stored_as"]]
    codes = plan["codes"] or rows
    first = [("codes", rows, rows * width / 4)] if plan["codes"] else []
    return [*first, ("8 bits", codes, codes * width), ("frames", plan["candidates"], plan["candidates"] * frames)]


def draw(records: list[dict]):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.5 + 0.8 * len(records)), sharey=True)
    names = [f"{record['kind']}, {record['rows']:,} rows" for record in records]
    for place, record in enumerate(records):
        stages = read_per_query(record)
        for number, (stage, rows, size) in enumerate(stages):
            at = place + 0.27 * (number - (len(stages) - 1) / 2)
            color = COLORS[["codes", "8 bits", "frames"].index(stage)]
            left.barh(at, size / 2**20, 0.25, color=color, label=stage if place == 0 else None)
            left.text(size / 2**20 * 1.1, at, f"{rows:,} rows, {size / 2**20:.1f} MB", va="center", fontsize=8)
        way, start = record["search"]["calibrated"], 0.0
        parts = [record["stages"]["engine_ms"], record["stages"]["exact_ms"]]
        parts.append(max(0.0, way["p50_ms"] - sum(parts)))
        for value, color, stage in zip(parts, ("#8172b3", COLORS[2], "#bbbbbb"), TIMED):
            right.barh(place, value, 0.5, left=start, color=color, label=stage if place == 0 else None)
            start += value
        words = f" {way['speedup_p50']:.0f}x the exact scan, recall {way['recall@10']:.3f}"
        right.text(start, place, words, va="center", fontsize=8)
    left.set(xscale="log", xlabel="MB read for one query", yticks=range(len(names)), yticklabels=names)
    left.set_xlim(left.get_xlim()[0], left.get_xlim()[1] * 12)
    for axes in (left, right):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)
    right.set(xlabel="ms of one query, one thread")
    right.set_xlim(0, right.get_xlim()[1] * 1.7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "search"
    draw(measured(RESULTS)).savefig(PICTURE, metadata={"Date": None})

"""docs/images/search_cascade.svg: what each stage of a search reads and takes, from the result files of search.py.

python benchmarks/search_figure.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "search_cascade.svg"
COLORS = {"codes": "#4c72b0", "8 bits": "#dd8452", "scenes": "#c44e52", "frames": "#55a868"}
TIMED = {"codes and 8 bits": "#8172b3", "scenes": COLORS["scenes"], "frames": COLORS["frames"], "the rest": "#bbbbbb"}
FRAME_BYTES = {"float16": 2, "int8": 1, "merged": 1}


def measured(results: Path) -> list[dict]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("search_*.json")]
    cascades = (record for record in found if "stages" in record and record["engine"] == "faiss")
    return sorted(cascades, key=lambda r: (r["kind"], r["rows"]))


def read_per_query(record: dict) -> list[tuple[str, int, float]]:
    """(stage, rows, bytes) of one query."""
    plan, rows, width = record["plan"], record["rows"], record["dimension"]
    frames = record["frames"] * width * FRAME_BYTES[record["stored_as"]]
    codes = plan["codes"] or rows
    stages = [("codes", rows, rows * width / 4)] if plan["codes"] else []
    stages.append(("8 bits", codes, codes * width))
    if plan.get("scenes"):
        stages.append(("scenes", plan["scenes"], plan["scenes"] * -(-record["frames"] // 4) * width))
    return [*stages, ("frames", plan["candidates"], plan["candidates"] * frames)]


def draw(records: list[dict]):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.5 + 0.8 * len(records)), sharey=True)
    names = [f"{record['kind']}, {record['rows']:,} rows" for record in records]
    for place, record in enumerate(records):
        stages = read_per_query(record)
        for number, (stage, rows, size) in enumerate(stages):
            at = place + 0.22 * (number - (len(stages) - 1) / 2)
            left.barh(at, size / 2**20, 0.2, color=COLORS[stage])
            left.text(size / 2**20 * 1.1, at, f"{rows:,} rows, {size / 2**20:.1f} MB", va="center", fontsize=8)
        way, start = record["search"]["calibrated"], 0.0
        parts = [record["stages"].get(name, 0.0) for name in ("engine_ms", "scenes_ms", "exact_ms")]
        parts.append(max(0.0, way["p50_ms"] - sum(parts)))
        for value, color in zip(parts, TIMED.values()):
            right.barh(place, value, 0.5, left=start, color=color)
            start += value
        words = f" {way['speedup_p50']:.0f}x the exact scan, recall {way['recall@10']:.3f}"
        right.text(start, place, words, va="center", fontsize=8)
    left.set(xscale="log", xlabel="MB read for one query", yticks=range(len(names)), yticklabels=names)
    left.set_xlim(left.get_xlim()[0], left.get_xlim()[1] * 12)
    for axes, colors in ((left, COLORS), (right, TIMED)):
        marks = [Patch(color=color, label=stage) for stage, color in colors.items()]
        axes.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
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

"""docs/search.md's tables from the result files of benchmarks/search.py and search_plaid.py.

python benchmarks/search_report.py     # rewrites what stands between the two markers
"""

import json
import math
from itertools import pairwise
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "search.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def records(results: Path, pattern: str) -> list[dict]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob(pattern)]
    return sorted(found, key=lambda record: (record["kind"], record["rows"]))


def plan_words(record: dict) -> str:
    """The stages of a plan. Records without `codes` were measured before there was a cascade."""
    plan = record["plan"]
    if "codes" in plan:
        first = f"{plan['codes']:,} of the codes, " if plan["codes"] else "all rows in 8 bits, "
        return f"cascade: {first}{plan['candidates']:,} candidates (recall_low {plan['recall_low']:.3f})"
    lists = (
        f"{plan['nprobe']} lists, " if record["engine_before_calibration"] == "faiss" and plan["scan"] == "auto" else ""
    )
    return f"before the cascade: {plan['coarse']}, {lists}{plan['candidates']:,} candidates"


def engine(record: dict) -> str:
    return record.get("engine") or record["engine_before_calibration"]


def speeds(found: list[dict]) -> list[str]:
    lines = [
        "| corpus | rows | way | recall@10 | p50 | p95 | against exact scan (p50, p95) | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in found:
        for name, way in record["search"].items():
            name = plan_words(record) if name == "calibrated" else name
            lines.append(
                f"| {record['kind']} | {record['rows']:,} | {name} | {way['recall@10']:.3f} | {way['p50_ms']:.1f} ms "
                f"| {way['p95_ms']:.1f} ms | {way['speedup_p50']:.0f}x, {way['speedup_p95']:.0f}x "
                f"| {record['load_average']:.0f} |"
            )
    return lines


def sizes(found: list[dict]) -> list[str]:
    lines = [
        "| corpus | rows | exact scan / bare product | opened or built | calibrated | disk | memory of the index |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in found:
        lines.append(
            f"| {record['kind']} | {record['rows']:,} | {record['similarity_over_product']:.2f} "
            f"| {record['open_or_build_seconds']:.1f} s | {record['calibrate_seconds']:.0f} s "
            f"| {record['disk_bytes'] / 2**30:.2f} GiB | {record['index_memory_bytes'] / 2**20:.0f} MiB |"
        )
    return lines


def stages(found: list[dict]) -> list[str]:
    """What the cascade's records say besides: its last stage alone, batches, opening, memory, adding."""
    return [
        f"* {record['kind']}, {record['rows']:,} rows, {record['queries']} queries after {record['plan']['queries']} "
        f"of calibration: scoring 500 rows exactly takes {record['exact_stage_500']['p50_ms']:.1f} ms of the search; a "
        f"process of its own opens the index in {record['open_seconds']:.1f} s by the clock and then has "
        f"{record['process_bytes'] / 1e9:.2f} GB of its own"
        + (f"; 1,000 rows more are there after {record['adding']['seconds']:.1f} s." if record["adding"] else ".")
        for record in found
        if "exact_stage_500" in record
    ]


def growth(found: list[dict]) -> list[str]:
    """Between two sizes of one corpus: time ~ rows^e, for the search and for the exact scan."""
    lines = []
    for small, large in pairwise(found):
        if small["kind"] == large["kind"] and ("codes" in small["plan"]) == ("codes" in large["plan"]):
            factor = large["rows"] / small["rows"]
            rise = [
                math.log(large["search"]["calibrated"]["p50_ms"] / small["search"]["calibrated"]["p50_ms"], factor),
                math.log(large["brute_force_ms"]["similarity"] / small["brute_force_ms"]["similarity"], factor),
            ]
            engines = " to ".join(dict.fromkeys(engine(run) for run in (small, large)))
            lines.append(
                f"* {small['kind']}, {small['rows']:,} to {large['rows']:,} rows ({engines}): the search grows as "
                f"rows^{rise[0]:.2f}, the exact scan, timed beside it, as rows^{rise[1]:.2f}."
            )
    return lines


def engines(found: list[dict]) -> list[str]:
    return [
        f"* {record['engine']} ({record['kind']}, {record['rows']:,} rows, one-directional MaxSim): recall "
        f"{record['recall_at_10']:.3f} of the top 10, {record['recall_at_100']:.3f} within its first 100, "
        f"{record['recall_at_1000']:.3f} within 1000; {record['p50_ms']:.0f} ms, "
        f"{record['speedup_over_product_p50']:.1f} times as fast as the bare matrix product; "
        f"{record['build_seconds']:.0f} s to build."
        for record in found
    ]


def block(results: Path) -> str:
    found = [record for record in records(results, "search_*.json") if "brute_force_ms" in record]
    other = engines(records(results, "multivector_*.json"))
    parts = (
        [speeds(found), stages(found), sizes(found), growth(found), other]
        if found
        else [["Nothing has been measured yet."]]
    )
    return "\n\n".join("\n".join(part) for part in parts if part)


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{block(RESULTS)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

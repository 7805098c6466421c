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
SIZING_BEGIN, SIZING_END = "<!-- sizing:begin -->", "<!-- sizing:end -->"
OPENING_BEGIN, OPENING_END = "<!-- opening:begin -->", "<!-- opening:end -->"
NARROW_BEGIN, NARROW_END = "<!-- narrow:begin -->", "<!-- narrow:end -->"
NODE_ROWS = 10_000_000  # that one machine is given; its codes and 8-bit vectors fit in 16 GB beside the cached frames


def records(results: Path, pattern: str) -> list[dict]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob(pattern)]
    return sorted(found, key=lambda record: (record["kind"], record["rows"]))


def plan_words(record: dict) -> str:
    """The stages of a plan. Records without `codes` were measured before there was a cascade."""
    plan = record["plan"]
    if "codes" in plan:
        scan = "all rows in 8 bits, " if engine(record) == "faiss" else "all rows in float16, "
        first = f"{plan['codes']:,} of the codes, " if plan["codes"] else scan
        second = f"{plan['scenes']:,} by their scenes, " if plan.get("scenes") else ""
        return f"cascade: {first}{second}{plan['candidates']:,} candidates (recall_low {plan['recall_low']:.3f})"
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


def opening(results: Path) -> str:
    """What a large index costs before the first search."""
    path = results / "opening.json"
    if not path.is_file():
        return "Nothing has been measured yet."
    record = json.loads(path.read_text(encoding="utf-8"))
    said = f"{record['rows']:,} rows, load {record['load_average']:.0f}"
    lines = [f"| {said} | seconds | CPU seconds | own memory | its highest | resident |", "|---|---|---|---|---|---|"]
    for step, name in [("opening", "open"), ("adding_1000", "add 1,000 rows"), ("compacting", "compact, a third gone")]:
        if step not in record:
            continue
        row = record[step]
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['own_bytes'] / 1e9:.2f} GB "
            f"| {row['highest_own'] / 1e9:.2f} GB | {row['resident'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def narrow(results: Path) -> str:
    """Bytes of a row's frames, and the recall of the float16 frames' top 10."""
    path = results / "narrow.json"
    if not path.is_file():
        return "Nothing has been measured yet."
    lines = ["| corpus | rows | float16 | int8 | merged | k-means | at unit length |", "|---|---|---|---|---|---|---|"]
    for corpus in json.loads(path.read_text(encoding="utf-8"))["corpora"]:
        cells = [f"{corpus['float16']['bytes_per_row'] / 1000:.1f} kB"]
        for kind in ("int8", "merged"):
            way = corpus[kind]
            cells.append(f"{way['bytes_per_row'] / 1000:.1f} kB, {way['recall@10']:.3f}")
        cells += [f"{corpus[kind]['recall@10']:.3f}" for kind in ("centroids", "unit centroids")]
        lines.append(f"| {corpus['name']} | {corpus['rows']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _checked(record: dict) -> str:
    """How the exact answers were found, where that was not a scan of all rows for every query."""
    if "checked_queries" not in record:
        return ""
    return (
        f" (the exact top 10 is that of the {record['exact_among']:,} rows with the best lower bounds; for "
        f"{record['checked_queries']} queries all rows were scored besides, and {record['checked_found']:.1%} of their "
        f"top 10 were among them)"
    )


def sizing(found: list[dict]) -> str:
    """What 10^6 to 10^9 rows take, from the largest measured index of the cascade, the slower of two: bytes and the
    time of the codes grow with the rows of a machine, the later stages do not."""
    measured = [record for record in found if "stages" in record]
    if not measured:
        return "Nothing has been measured yet."
    base = max(measured, key=lambda record: (record["rows"], record["search"]["calibrated"]["p50_ms"]))
    rows, width, times = base["rows"], base["dimension"], base["stages"]
    lines = [
        "| rows | machines | disk of each | codes and 8-bit vectors of each | a query |",
        "|---|---|---|---|---|",
    ]
    for total in (10**6, 10**7, 10**8, 10**9):
        machines = -(-total // NODE_ROWS)
        share = total / machines
        disk, memory = share * base["disk_bytes"] / rows, share * (width / 4 + width + 8)
        seconds = times["engine_ms"] * share / rows + base["search"]["calibrated"]["p50_ms"] - times["engine_ms"]
        sizes = f"{disk / 1e9:,.0f} GB | {memory / 1e9:.1f} GB"
        lines.append(f"| 10^{len(str(total)) - 1} | {machines} | {sizes} | {seconds:.0f} ms |")
    lines.append("")
    lines.append(
        f"From {base['kind']} with {rows:,} rows, {base['stored_as']} frames, one thread a query and machine, without "
        f"the network and without replicas. Only the row of {rows:,} is measured."
    )
    return "\n".join(lines)


def stages(found: list[dict]) -> list[str]:
    """What the cascade's records say besides: its last stage alone, batches, opening, memory, adding."""
    return [
        f"* {record['kind']}, {record['rows']:,} rows, {record['queries']} queries after {record['plan']['queries']} "
        f"of calibration{_checked(record)}: scoring 500 rows exactly takes "
        f"{record['exact_stage_500']['p50_ms']:.1f} ms; a process of its own opens the index in "
        f"{record['open_seconds']:.1f} s by the clock and then has {record['process_bytes'] / 1e9:.2f} GB of its own"
        + (f"; 1,000 rows more are there after {record['adding']['seconds']:.1f} s" if record["adding"] else "")
        + _two_threads(record)
        for record in found
        if "exact_stage_500" in record
    ]


def _two_threads(record: dict) -> str:
    if "two_threads" not in record:
        return "."
    both = record["two_threads"]
    return (
        f"; on two threads, by the clock, a search takes {both['p50_ms']:.1f} ms, {both['speedup_p50']:.0f} times as "
        f"fast as the exact scan on two."
    )


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


def filled(page: str) -> str:
    """The page with today's figures between its markers."""
    found = [record for record in records(RESULTS, "search_*.json") if "brute_force_ms" in record]
    blocks = [
        (BEGIN, END, block(RESULTS)),
        (SIZING_BEGIN, SIZING_END, sizing(found)),
        (NARROW_BEGIN, NARROW_END, narrow(RESULTS)),
        (OPENING_BEGIN, OPENING_END, opening(RESULTS)),
    ]
    for begin, end, text in blocks:
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""benchmarks/README.md: one table of what was measured against whom, made from the result files.

python benchmarks/table.py
"""

import json
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
TOP = """# Benchmarks

Every script states its conditions in its result file and is quick by default. This table is made from the files in
`results/` by `python benchmarks/table.py`; nothing in it is typed by hand. A ratio above 1 says that this project needs
less time, memory or bytes than its peer in the same run.

| what | peer | ratio | file | command |
|---|---|---|---|---|
"""


class Row(NamedTuple):
    what: str
    peer: str
    ratio: str
    file: str
    command: str


def search_rows(path: Path, record: dict) -> list[Row]:
    if "brute_force_ms" not in record:
        return []
    rows, kind = f"{record['rows']:,}", record["kind"]
    command = f"python benchmarks/search.py --kind {kind} --rows {record['rows']}"
    if kind not in ("cal", "hard"):
        command = f"python benchmarks/search.py --index INDEX --captions FILE --name {kind}"
    found = []
    for name, way in record["search"].items():
        if name.startswith("calibrated"):
            what = f"search of {rows} rows ({kind}), {name}, recall@10 {way['recall@10']:.3f}"
            found.append(Row(what, "exact scan", f"{way['speedup_p50']:.0f}x", path.name, command))
    if "two_threads" in record:
        what = f"search of {rows} rows ({kind}), two threads, by the clock"
        found.append(Row(what, "exact scan", f"{record['two_threads']['speedup_p50']:.0f}x", path.name, command))
    return found


def film_rows(path: Path, record: dict) -> list[Row]:
    if "ways" not in record:
        return []
    ways, command = record["ways"], "python benchmarks/films.py"
    rows = []
    for name in [name for name in ways if name.startswith("windows together")]:
        for peer in ("each window alone", "sentence-transformers", "clip-retrieval's loop"):
            ratio = ways[peer]["wall_s"] / ways[name]["wall_s"]
            rows.append(Row(f"films to index on a CPU, {name}", peer, f"{ratio:.1f}x", path.name, command))
    return rows


def bytes_rows(path: Path, record: dict) -> list[Row]:
    rows = []
    for corpus in record["corpora"]:
        for kind in ("int8", "merged"):
            way, plain = corpus[kind], corpus["float16"]["bytes_per_row"]
            what = f"bytes of a row's frames as {kind}, {corpus['name']}, recall@10 {way['recall@10']:.3f}"
            ratio = f"{plain / way['bytes_per_row']:.1f}x"
            rows.append(Row(what, "float16", ratio, path.name, "python benchmarks/narrow.py"))
    return rows


def metric_rows(path: Path, record: dict) -> list[Row]:
    return [
        Row(
            f"{row['size']} x {row['size']} metric, {row['dtype']}",
            "sorting every row",
            f"{row['ratio']:.1f}x",
            path.name,
            "python benchmarks/metric.py",
        )
        for row in record["speed"]
    ]


def cache_rows(path: Path, record: dict) -> list[Row]:
    return [
        Row(
            f"a clip's frames from the cache, {row['codec']}",
            "decoding",
            f"{row['speed_up']:.1f}x",
            path.name,
            "python benchmarks/frame_cache.py",
        )
        for row in record["results"]
    ]


def decode_rows(path: Path, record: dict) -> list[Row]:
    rows = []
    for clip, ways in record["decode"].items():
        for name, way in ways.items():
            if name != "gop_skip":
                ratio = f"{way['times_gop_skip']:.1f}x"
                rows.append(Row(f"12 frames of a {clip} clip", name, ratio, path.name, "python benchmarks/decode.py"))
    return rows


KINDS = [
    ("search_*.json", search_rows),
    ("films_cpu.json", film_rows),
    ("narrow.json", bytes_rows),
    ("decode_cpu.json", decode_rows),
    ("frame_cache.json", cache_rows),
    ("metric.json", metric_rows),
]


def table(results: Path) -> str:
    rows = []
    for pattern, read in KINDS:
        for path in sorted(results.glob(pattern)):
            rows += read(path, json.loads(path.read_text(encoding="utf-8")))
    lines = [f"| {r.what} | {r.peer} | {r.ratio} | [{r.file}](results/{r.file}) | `{r.command}` |" for r in rows]
    return TOP + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(RESULTS), encoding="utf-8")

"""`dmae compare`."""

from pathlib import Path
from typing import Annotated

import typer

from dmae.extras import require
from dmae.terminal import json_line, print_table, printable

Result = Annotated[Path, typer.Argument(help="A per-query file of `dmae evaluate`, a results.json, or its folder.")]


def compare(
    first: Result,
    second: Result,
    metric: Annotated[str, typer.Option(help="The metric whose difference is told.")] = "text_to_video_rsum",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    samples: Annotated[int, typer.Option(min=2, help="Bootstrap draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    top_k: Annotated[int, typer.Option(min=0, help="So many queries that moved.")] = 10,
) -> None:
    """FIRST minus SECOND, paired by caption: the difference, its 95 % interval, and which queries moved.

    An interval that leaves 0 out is a difference that another draw of videos would be unlikely to turn round.
    JSON: {"metric", "difference", "low", "high", "metrics", "moved"}, shares as fractions.
    """
    require("train")
    metrics, changed = _compared(first, second, samples, seed)
    if metric not in metrics:
        raise ValueError(f"no metric {metric!r}; there are {', '.join(metrics)}")
    told = {name: metrics[metric][name] for name in ("difference", "low", "high")}
    if as_json:
        print(json_line({"metric": metric, **told, "metrics": metrics, "moved": changed[:top_k]}))
        return
    columns = ["", "first", "second", "difference", "95 % of draws"]
    print_table(f"{first} minus {second}", columns, [_row(name, entry) for name, entry in metrics.items()])
    if changed:
        print(f"{len(changed)} queries moved; the most:")
    for row in changed[:top_k]:
        print(
            f"  {row['first']:g} against {row['second']:g}: {printable(row['caption'])} ({printable(row['video_id'])})"
        )


def _compared(first: Path, second: Path, samples: int, seed: int) -> tuple[dict, list]:
    from dmae.evaluation.queries import Queries, compare_queries, moved
    from dmae.evaluation.results import Results, compare_results

    for path in (first, second):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; `dmae evaluate … --per-query FILE.jsonl` writes one")
    lines = [path.suffix == ".jsonl" for path in (first, second)]
    if all(lines):
        ours, theirs = Queries.read(first), Queries.read(second)
        return compare_queries(ours, theirs, samples, seed), moved(ours, theirs)
    if any(lines):
        raise ValueError(f"{first} and {second}: give two per-query files or two results")
    return compare_results(Results.read(first), Results.read(second), samples, seed), []


def _row(name: str, entry: dict) -> list[str]:
    from dmae.evaluation.results import show

    cells = [show(name, entry["first"]), show(name, entry["second"]), show(name, entry["difference"], "+")]
    return [name, *cells, f"{show(name, entry['low'], '+')} … {show(name, entry['high'], '+')}"]

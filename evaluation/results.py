"""The record of an evaluation: results.json, the printed table, and the comparison with another record."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dmae.files import new_file, write_file
from dmae.metrics.text_video_retrieval.bootstrap import paired_difference
from dmae.metrics.text_video_retrieval.retrieval_metrics import summarize_ranks

PAIRED = {"text_ranks", "video_ranks", "gold", "caption_keys", "video_keys"}  # what pairing two results needs
RESULTS, MATRIX = "results.json", "similarities.safetensors"
DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}
COLUMNS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "MdR", "mean_rank": "MnR", "rsum": "rsum"}
# What two results must share before their numbers may stand side by side. Frames, words and dtype belong to the model.
PROTOCOL = {
    "data.dataset": "dataset",
    "data.split": "split",
    "ties": "ties",
    "protocol": "video→text protocol",
    "postprocessing": "post-processing",
    "data.gallery": "videos (a hash of their ids)",
    "data.queries": "captions (a hash of them)",
}


@dataclass
class Results:
    """A results.json, and the ranks and similarities beside it where they were kept."""

    record: dict
    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """From a results.json or the folder that holds it."""
        path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not a results file ({error})") from error
        if not isinstance(record, dict) or "metrics" not in record or "data" not in record:
            raise ValueError(f"{path}: not written by `dmae evaluate` (no metrics and data in it)")
        arrays = {}
        if path.with_name(MATRIX).is_file():
            try:
                arrays = load_file(path.with_name(MATRIX))
            except SafetensorError as error:
                raise ValueError(f"{path.with_name(MATRIX)}: damaged ({error}); evaluate again") from error
        return cls(record, arrays)

    def write(self, folder: Path, video_ids: list[str]) -> None:
        """Arrays first: a results.json is never without what it was computed from."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        with new_file(folder / MATRIX) as partial:
            save_file(arrays, partial, {"video_ids": json.dumps(video_ids)})
        write_file(folder / RESULTS, json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")

    def in_order_of(self, other: "Results") -> "Results":
        """The same results, their rows (captions) and columns (videos) in the order that `other` has.

        Raises ValueError where the two do not hold the same captions of the same videos, or do not say which.
        """
        if not self.arrays.keys() & other.arrays.keys() >= PAIRED:
            raise ValueError(f"{MATRIX} beside one of the results does not say which captions it holds; evaluate again")
        rows = _matching(self.arrays["caption_keys"], other.arrays["caption_keys"], "captions")
        columns = _matching(self.arrays["video_keys"], other.arrays["video_keys"], "videos")
        arrays = {name: array[rows] for name, array in self.arrays.items() if name in ("text_ranks", "caption_keys")}
        arrays |= {name: array[columns] for name, array in self.arrays.items() if name in ("video_ranks", "video_keys")}
        arrays["gold"] = np.argsort(columns)[self.arrays["gold"][rows]]
        if "similarities" in self.arrays:
            arrays["similarities"] = self.arrays["similarities"][np.ix_(rows, columns)]
        return Results(self.record, arrays)


def _matching(theirs: np.ndarray, ours: np.ndarray, what: str) -> np.ndarray:
    """Positions in `theirs` of the keys `ours`; a key that comes twice (one caption given twice) in their order."""
    here, there = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    if not np.array_equal(ours[here], theirs[there]):
        raise ValueError(f"these results cannot be compared: they rank other {what}. Evaluate both on the same data")
    positions = np.empty(len(ours), np.int64)
    positions[here] = there
    return positions


def check_same_protocol(ours: dict, theirs: dict, known_only: bool = False) -> None:
    """ValueError that names each difference. known_only: skip what `ours`, before anything is encoded, cannot say."""
    different = []
    for path, name in PROTOCOL.items():
        here, there = _at(ours, path), _at(theirs, path)
        if here != there and not (known_only and here is _ABSENT):
            different.append(f"{name}: {_shown(here)} here, {_shown(there)} there")
    if different:
        raise ValueError(
            "these results cannot be compared, their protocols differ in " + "; ".join(different) + ". "
            "Evaluate both models in the same way"
        )


def named_benchmark(said: str | None, metric: str, task: str = "default") -> dict:
    """What a results.json records of the Hub's benchmark "ID" or "ID:TASK", by which cards write `.eval_results`.

    Nobody but who ran it knows that the split is that benchmark, so nothing is guessed. Raises ValueError for no id.
    """
    if said is None:
        return {}
    name, _, given = said.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"--benchmark {said!r}: give the Hub's id of a benchmark dataset, OWNER/NAME or OWNER/NAME:TASK"
        )
    return {"benchmark": {"id": name, "task": given or task, "metric": metric}}


_ABSENT = object()


def _at(record: dict, path: str):
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            return _ABSENT
        record = record[name]
    return record


def _shown(value) -> str:
    return "not recorded" if value is _ABSENT else "none" if value is None else str(value)


def compare(ours: Results, theirs: Results, samples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """{metric: {"other", "difference", "interval"}}; the interval (paired bootstrap) where both kept their ranks."""
    check_same_protocol(ours.record, theirs.record)
    intervals = {}
    if samples and ours.arrays and theirs.arrays:
        theirs = theirs.in_order_of(ours)  # pairs are the same caption, wherever its row is
        mine, others = ((results.arrays["text_ranks"], results.arrays["video_ranks"]) for results in (ours, theirs))
        intervals = paired_difference(mine, others, ours.arrays["gold"], summarize_ranks, samples, seed=seed)
    return {
        name: {"other": theirs.record["metrics"][name], "difference": value - theirs.record["metrics"][name]}
        | ({"interval": list(intervals[name])} if name in intervals else {})
        for name, value in ours.record["metrics"].items()
        if name in theirs.record["metrics"]
    }


def compare_results(first: Results, second: Results, samples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """{metric: {"first", "second", "difference", "low", "high"}}; ValueError where ranks are lacking."""
    if not (first.arrays and second.arrays):
        raise ValueError(f"an interval needs the ranks ({MATRIX}) beside both results; evaluate again")
    return {
        name: {
            "first": first.record["metrics"][name],
            "second": entry["other"],
            "difference": entry["difference"],
            "low": entry["interval"][0],
            "high": entry["interval"][1],
        }
        for name, entry in compare(first, second, samples, seed).items()
    }


def print_table(record: dict, comparison: dict | None = None, console=None) -> None:
    """The paper's columns, shares in percent; a row per direction, then intervals and differences."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    data = record["data"]
    labels = [f"{data['dataset']} {data['split']}", f"{data['videos']} videos, {data['captions']} captions"]
    labels += [record["postprocessing"]] if record["postprocessing"] else []
    table = Table(title=" · ".join(labels), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in COLUMNS.values():
        table.add_column(column, justify="right", overflow="fold")
    for direction, label in DIRECTIONS.items():
        names = [f"{direction}_{name}" for name in COLUMNS]
        table.add_row(label, *(show(name, record["metrics"][name]) for name in names))
        if record.get("intervals"):
            cells = [_interval(name, record["intervals"][name]) for name in names]
            table.add_row(f"  {100 * record['bootstrap']['confidence']:g} % of draws", *cells, style="dim")
        if comparison:
            table.add_row("  the other", *(show(name, comparison[name]["other"]) for name in names))
            table.add_row("  difference", *(show(name, comparison[name]["difference"], "+") for name in names))
            if "interval" in comparison[names[0]]:
                cells = [_interval(name, comparison[name]["interval"], "+") for name in names]
                table.add_row("  95 % of draws", *cells, style="dim")
    (console or Console(markup=False, emoji=False, highlight=False)).print(table)  # names are no markup


def show(name: str, value: float, sign: str = "") -> str:
    """One decimal; recalls and their sum in percent."""
    value = value if name.endswith("rank") else 100 * value
    return format(value, f"{sign}.1f") if math.isfinite(value) else str(value)


def _interval(name: str, bounds: list[float], sign: str = "") -> str:
    return f"{show(name, bounds[0], sign)}…{show(name, bounds[1], sign)}"

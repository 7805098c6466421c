"""What a run has written down about itself, read for its card. What was not recorded is absent; nothing is guessed."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = (
    "a run's output folder, a model folder (with config.json), a corpus (with metadata.jsonl), the output of "
    "`dmae prepare`, or the word metric"
)
METRICS = ("R@1", "R@5", "R@10", "rsum", "median_rank", "mean_rank")
DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}
PICTURES = {  # what training and evaluation draw, with what the card says below; no other picture is anybody's business
    "curves.png": "Losses, hard negatives and validation recall over the steps",
    "words_and_frames.png": "Words and frames of the best match",
}
MODELS = ("best", "last", "model")
CONDITIONS = {  # of a results.json: key -> how the card says it
    "frames": "frames", "max_words": "words", "ties": "ties", "postprocessing": "post-processing:", "seed": "seed",
    "global_batch": "training batch", "dtype": "dtype",
}  # fmt: skip
LABELS = {"median_rank": "median rank", "mean_rank": "mean rank"}


@dataclass
class Result:
    """One evaluation: `metrics` (fractions and ranks, named as by `retrieval_metrics`) and how they came about."""

    dataset: str
    split: str
    metrics: dict[str, float]
    conditions: list[str] = field(default_factory=list)
    date: str | None = None
    benchmark: dict | None = None  # {"id", "task", "metric"} where the evaluation was a benchmark of the Hub

    def percent(self) -> dict[str, float]:
        """`text_to_video_R@1` … as cards print them: shares in percent, ranks as they are."""
        shown = {}
        for direction in DIRECTIONS:
            for name in METRICS:
                value = self.metrics.get(f"{direction}_{name}")
                if isinstance(value, (int, float)):
                    shown[f"{direction}_{name}"] = round(value if "rank" in name else 100 * value, 1)
        return shown

    @property
    def day(self) -> str | None:
        """The date without its time of day, as the Hub's `.eval_results` wants it."""
        return self.date and self.date[:10]

    @property
    def table(self) -> str:
        """A Markdown table, a row per direction; columns are the metrics that were measured."""
        shown = self.percent()
        columns = [name for name in METRICS if any(f"{direction}_{name}" in shown for direction in DIRECTIONS)]
        rows = []
        for direction, label in DIRECTIONS.items():
            values = [shown.get(f"{direction}_{name}") for name in columns]
            if any(value is not None for value in values):
                rows.append([label, *("" if value is None else f"{value:.1f}" for value in values)])
        return _markdown(columns, rows)


@dataclass
class Source:
    """What is to be published: the model's folder, its run's record if it has one, its results and pictures.

    left_out: what lay beside the model and is not of it, each with the reason.
    """

    model: Path
    record: dict = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seeds: dict = field(default_factory=dict)  # what `dmae train --seeds` wrote, where the model is one of its


def find_model(path: str | Path) -> Path:
    """The model folder that `path` means: itself, or its best/, last/ or model/; else FileNotFoundError."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give {SOURCES}")
    if (path / "seeds.json").is_file():  # the first seed's: which is best on the test split may not choose
        path = path / f"seed-{read_json(path / 'seeds.json')['seeds'][0]}"
    model = next((folder for folder in (path, *(path / name for name in MODELS)) if _has_model(folder)), None)
    if model is None:
        raise FileNotFoundError(f"{path}: no model here (config.json, best/, last/ or model/); give {SOURCES}")
    return model


def find_source(model: Path, identity: dict, results: tuple[str | Path, ...] = ()) -> Source:
    """What was written down about the model in the folder `model`, and about no other.

    identity: the model's hashes, `{"weights": …, "processor": …}` of `describe_model`. A run's record or a result
        counts only if it recorded the same ones: a folder says where something lies, not whose it is.
    results: further `results.json` files of `dmae evaluate`, or the folders that hold them; ValueError for one of
        another model. The `PICTURES` beside the run's record or beside a result belong to the card.
    """
    here = model.resolve().parent
    found, source = _Matching(identity), Source(model)
    run = next((folder for folder in (model, here, here / "run") if (folder / "run.json").is_file()), None)
    if run is not None:
        source.record = found.run(run / "run.json")
        run = run if source.record else None
    given = [Path(file, "results.json" if Path(file).is_dir() else "").resolve() for file in results]
    beside = [file for folder in (run or model, here) for file in _result_files(folder.resolve())]
    read = {file: result for file in dict.fromkeys([*given, *beside]) if (result := found.result(file, file in given))}
    folders = dict.fromkeys(folder.resolve() for folder in (run or model, *(file.parent for file in read)))
    source.pictures = [path for folder in folders for name in PICTURES if (path := folder / name).is_file()]
    source.results = _selected_epoch(source.record) + list(read.values())
    source.left_out = found.left_out
    if (summary := here.parent / "seeds.json").is_file():
        seeds = read_json(summary)
        source.seeds = seeds if identity["weights"] in (seeds.get("models") or {}).values() else {}
    return source


def seeds_table(summary: dict) -> str:
    """Markdown of a seeds.json: a row per direction, shares in percent, mean ± half of the interval."""
    rows = []
    for direction, label in DIRECTIONS.items():
        cells = []
        for name in METRICS:
            value, scale = summary["metrics"][f"{direction}_{name}"], 1 if "rank" in name else 100
            cells.append(f"{scale * value['mean']:.1f} ± {scale * (value['high'] - value['mean']):.1f}")
        rows.append([label, *cells])
    return _markdown(METRICS, rows)


def _markdown(columns: Sequence[str], rows: list[list[str]]) -> str:
    """A table whose rows begin with their names."""
    head = [["", *(LABELS.get(name, name) for name in columns)], ["---", *(["---:"] * len(columns))]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])


class _Matching:
    """Reads records and keeps those of one model; what is another's, or says not whose, is left out by name."""

    def __init__(self, identity: dict):
        self.identity, self.left_out = identity, []

    def run(self, path: Path) -> dict:
        """The run's record, {} if it saved other weights; the validation that chose other weights is not in it."""
        record = read_json(path)
        saved = {name: (record.get(name) or {}).get("weights") for name in ("best", "last")}
        if self.identity["weights"] not in saved.values():
            self._leave_out(path, next(filter(None, saved.values()), None), "weights")
            return {}
        best = record.get("best") if saved["best"] == self.identity["weights"] else None
        return {**record, "best": best}

    def result(self, path: Path, required: bool = False) -> Result | None:
        """A results.json of `dmae evaluate` or the demo's metrics.json, or None; `required` ones raise ValueError."""
        content = read_json(path)
        after = content.get("after")
        made_by = (after if isinstance(after, dict) else content).get("model")
        made_by = made_by if isinstance(made_by, dict) else {}
        result = _evaluation(content)
        if result is None:
            if required:
                raise ValueError(f"{path}: is no results.json of `dmae evaluate`")
            return None
        for name in ("weights", "processor"):
            if made_by.get(name) != self.identity[name]:
                reason = self._leave_out(path, made_by.get(name), name)
                if required:
                    raise ValueError(reason)
                return None
        return result

    def _leave_out(self, path: Path, theirs: str | None, what: str) -> str:
        whose = f"of a model with other {what} ({theirs})" if theirs else f"without a record of its model's {what}"
        self.left_out.append(f"{path}: left out, {whose}; this one has {self.identity[what]}")
        return self.left_out[-1]


def _result_files(folder: Path) -> list[Path]:
    patterns = ("results.json", "*/results.json", "metrics.json")
    return [file for pattern in patterns for file in sorted(folder.glob(pattern))]


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def read_json(path: Path) -> dict:
    """A JSON object, {} for any other JSON; ValueError that names the file if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); repair or remove it") from error
    return content if isinstance(content, dict) else {}


def _selected_epoch(record: dict) -> list[Result]:
    """The validation that chose the weights."""
    best = record.get("best") or {}
    if not best.get("metrics"):
        return []
    report = (record.get("splits") or {}).get("validation") or {}
    conditions = _counts(report) + ([f"epoch {best['epoch']}"] if "epoch" in best else [])
    name = dataset_name(report.get("dataset"), record)
    return [Result(name, report.get("split", "validation"), best["metrics"], conditions, record.get("updated"))]


def _evaluation(content: dict) -> Result | None:
    """A results.json of `dmae evaluate`, or the metrics.json of `dmae demo` ("after": the trained model's test)."""
    if isinstance(content.get("after"), dict):
        after = content["after"]
        return Result("MovingDigits", "test", after, [f"{after['gallery_size']} videos"])
    metrics, data = content.get("metrics"), content.get("data")
    if not isinstance(metrics, dict) or not isinstance(data, dict):
        return None
    known = {name: content.get(name) for name in CONDITIONS}
    conditions = _counts(data) + [f"{CONDITIONS[name]} {value}" for name, value in known.items() if value is not None]
    name, split = dataset_name(data.get("dataset")), str(data.get("split"))
    return Result(name, split, metrics, conditions, content.get("date"), data.get("benchmark"))


def _counts(report: dict) -> list[str]:
    """Sizes of a split as its loader reported them."""
    counts = [(report.get("videos"), "videos"), (report.get("captions"), "captions")]
    said = [f"{count} {word}" for count, word in counts if isinstance(count, int)]
    lost = [("missing_videos", "videos missing"), ("undecodable_videos", "videos undecodable")]
    return said + [f"{report[name]} {word}" for name, word in lost if report.get(name)]


def dataset_name(name, record: dict | None = None) -> str:
    """A dataset's name; of a folder only the last part, since the rest says where it lay on somebody's machine."""
    if name == "videofolder":  # one's own videos have no name but their folder's
        name = ((record or {}).get("config", {}).get("data") or {}).get("videos") or "own videos"
    return re.split(r"[/\\]", str(name).rstrip("/\\"))[-1] if name else "own videos"

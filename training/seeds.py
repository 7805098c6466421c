"""Several runs that differ in their seed only: the mean of their scores, and how far the true mean may lie from it."""

import json
import math
import statistics
from pathlib import Path

from scipy import stats

from dmae.data.registry import DatasetLocation, available_splits
from dmae.evaluation.evaluate_model import EvaluationOptions, evaluate_model
from dmae.files import write_file
from dmae.hub_cards.record import seeds_table
from dmae.inference.progress import is_main_process
from dmae.training.config import RunConfig
from dmae.training.loop import train


def train_seeds(config: RunConfig, count: int) -> dict | None:
    """Train seeds s … s + count - 1, each in `output_dir/seed-<s>`, and score each best model on the test split.

    Where no test split is published, the scores are those of the validation split, and said to be. Called again, it
    goes on where it was. Writes `seeds.json` and `seeds.md`; returns the former, or None when asked to stop (SIGTERM).
    """
    output, scores, models = Path(config.training.output_dir), {}, {}
    split = "test" if "test" in available_splits(*_location(config)) else "validation"
    if split == "validation" and config.data.validation_split is None:
        raise ValueError(
            f"{config.data.name} has no test split here, and data.validation_split is null: nothing to score"
        )
    for seed in range(config.training.seed, config.training.seed + count):
        folder = output / f"seed-{seed}"
        words = {"seed": seed, "output_dir": str(folder), "resume_from_checkpoint": "last"}
        result = train(config.model_copy(update={"training": config.training.model_copy(update=words)}))
        if result.status != "finished":
            return None
        if is_main_process():
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            models[seed] = record[result.model_dir.name]["weights"]
        scores[seed] = result.metrics if split == "validation" else _test(config, result.model_dir, folder / "test")
    if not is_main_process():
        return None
    summary = summarize(scores, split, config) | {"models": models}
    write_file(output / "seeds.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_file(output / "seeds.md", table(summary))
    print(table(summary) + f"\n{output / 'seeds.json'} has every run")
    return summary


def _location(config: RunConfig) -> DatasetLocation:
    data = config.data
    return DatasetLocation(data.name, data.annotations, data.videos, data.holdout)


def _test(config: RunConfig, model: Path, output: Path) -> dict[str, float]:
    options = EvaluationOptions(split="test", num_workers=config.data.num_workers, samples=0)
    result = evaluate_model(str(model), _location(config), output, options)
    return result[0]["metrics"] if result else {}


def summarize(scores: dict[int, dict[str, float]], split: str, config: RunConfig) -> dict:
    """{"metrics": {name: {"mean", "low", "high", "values"}}}: 95 % intervals of the mean by Student's t."""
    names = next(iter(scores.values()))
    metrics = {name: mean_with_interval([run[name] for run in scores.values()]) for name in names}
    return {
        "dataset": config.data.name,
        "split": split,
        "variant": config.variant,
        "seeds": list(scores),
        "confidence": 0.95,
        "metrics": metrics,
        "config": config.to_dict(),
    }


def mean_with_interval(values: list[float], confidence: float = 0.95) -> dict:
    """{"mean", "low", "high", "values"}: mean ± t · s / √n, for n ≥ 2 draws of one normal variable."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def table(summary: dict) -> str:
    """Markdown: what was run, and a row per direction with mean ± half of the interval."""
    seeds = ", ".join(map(str, summary["seeds"]))
    title = f"{summary['dataset']} {summary['split']}, {len(summary['seeds'])} seeds ({seeds}): mean ± 95 % interval"
    return f"{title}\n\n{seeds_table(summary)}\n"

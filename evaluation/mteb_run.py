"""`dmae evaluate --mteb NAME`: a task or a benchmark of mteb, its figures as results.json files."""

import importlib.metadata
import json
import time
from pathlib import Path

from dmae.evaluation.results import named_benchmark
from dmae.files import write_file
from dmae.inference.identity import describe_model

DIRECTIONS = {"t2v": "text_to_video", "v2t": "video_to_text"}


def evaluate_mteb(
    model_name: str,
    tasks,
    output: Path,
    device: str = "auto",
    batch_size: int = 16,
    workers=None,
    benchmark: str | None = None,
):
    """Run each task, write `output/TASK/results.json` and return {task: mteb's scores of its first split}.

    benchmark: the Hub's id of the benchmark dataset, if it is one (`named_benchmark`); its task is mteb's by default.

    Retrieval uses the model's own score over all pairs. mteb's MSR-VTT has 879 clips and is scored by nDCG@10: its
    figures and those of 1k-A do not belong in one table, so the dataset is called by the task's name.
    """
    import mteb  # pyright: ignore[reportMissingImports]

    from dmae.evaluation.mteb_model import load_mteb_model

    model = load_mteb_model(model_name, device=device, batch_size=batch_size, num_workers=workers)
    scores = {}
    for task in tasks:
        found = mteb.evaluate(model, task, cache=None, co2_tracker=False)[0]
        split, rows = next(iter(found.scores.items()))
        scores[task.metadata.name] = rows[0]
        record = _record(task.metadata, split, dict(rows[0]), model, benchmark)
        (output / task.metadata.name).mkdir(parents=True, exist_ok=True)
        write_file(output / task.metadata.name / "results.json", json.dumps(record, indent=2) + "\n")
    return scores


def _record(metadata, split: str, row: dict, model, benchmark: str | None) -> dict:
    made_by = describe_model(model.model, model.processor)
    data = {"dataset": metadata.name, "split": split, "revision": metadata.dataset.get("revision")}
    main = f"{DIRECTIONS.get(metadata.category, 'mteb')}_{metadata.main_score}"
    return {
        "metrics": {**_metrics(metadata.category, row), main: row["main_score"]},
        "main_score": {"name": metadata.main_score, "value": row["main_score"]},
        "model": {**made_by, "name": model.mteb_model_meta.name},
        "data": {**data, **named_benchmark(benchmark, main, metadata.name)},
        "mteb": {"version": importlib.metadata.version("mteb"), "scores": row},
        "frames": model.model.config.max_frames,
        "max_words": model.model.config.max_words,
        "date": time.strftime("%Y-%m-%d"),
    }


def _metrics(category: str, row: dict) -> dict[str, float]:
    """The recalls of a retrieval task under our names; nothing of other kinds of tasks, which have other figures."""
    if category not in DIRECTIONS:
        return {}
    return {f"{DIRECTIONS[category]}_R@{k}": row[f"recall_at_{k}"] for k in (1, 5, 10) if f"recall_at_{k}" in row}

"""`dmae demo`: videos on disk -> training -> a model folder -> remote code -> index -> search -> a report.

Everything is written below one folder (`outputs/demo`): `corpus/` (MovingDigits), `run/` (training), `model/` (as it
would be pushed), `index/`, `metrics.json`, `report.html`. A stage whose result is there already is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dmae.evaluation.near_misses import first_caption_scores, near_miss_accuracy, read_rows
from dmae.files import new_folder, write_file

QUERIES = 5
TOP_K = 5
# Runs alone, away from the checkout and with the package blocked: what it prints must come from the model folder only.
RELOAD = """
import json, sys
sys.modules["dmae"] = None
import torch
from transformers import AutoModel, AutoProcessor
folder, texts, videos = json.loads(sys.stdin.read())
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    output = model(**processor(text=texts, videos=videos, return_tensors="pt"))
print("LOGITS " + json.dumps(output.logits_per_text.tolist()))
"""


def run_demo(output_dir: str | Path = "outputs/demo", preset: str = "demo", settings: tuple[str, ...] = ()) -> dict:
    """Run every stage and return the content of `metrics.json`.

    Args:
        output_dir: where everything goes; an interrupted demo goes on from the last finished stage.
        preset: the MovingDigits preset, see `dmae.data.moving_digits.corpus.PRESETS`.
        settings: `section.key=value` overrides of the training recipe.

    Raises:
        ValueError, OSError: a stage failed; the message says what and where.
    """
    output = Path(output_dir).resolve()
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    corpus = _timed(seconds, "videos", _render, output / "corpus", preset)
    model_dir = _timed(seconds, "training", _train, output, corpus, settings)
    metrics = _timed(seconds, "evaluation", _evaluate, corpus / "test", model_dir, output)
    _timed(seconds, "remote code", _reload, model_dir, corpus / "test")
    answers = _timed(seconds, "index and search", _search, output / "index", model_dir, corpus / "test")
    _say("writing the report")
    from dmae.visuals.demo_report import write_report

    write_report(output, metrics, answers, read_rows(output / "corpus" / "test"))
    _print_tables(metrics)
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value >= 0.5)
    print(f"Done ({spent}).\nLook at {_shown(output / 'report.html')}; the model is in {_shown(model_dir)}. Try:")
    print(f'  dmae search {_shown(output / "index")} "a red seven slides to the left"')
    return metrics


def _timed(seconds: dict, name: str, stage, *arguments):
    started = time.monotonic()
    try:
        return stage(*arguments)
    finally:
        seconds[name] = time.monotonic() - started


def _say(message: str) -> None:
    print(f"[demo] {message}", flush=True)


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _render(folder: Path, preset: str) -> Path:
    from dmae.data.moving_digits.corpus import render_moving_digits

    _say(f"videos: MovingDigits ({preset}) in {_shown(folder)}")
    return render_moving_digits(folder, preset)


def _train(output: Path, corpus: Path, settings: tuple[str, ...]) -> Path:
    model_dir = output / "model"
    if model_dir.is_dir():
        _say(f"training: {_shown(model_dir)} is there")
        return model_dir
    _say("training from random weights (dmae train); Ctrl-C and `dmae demo` again goes on")
    from dmae.training.config import load_config, recipes_folder

    recipe = recipes_folder() / "moving_digits.yaml"
    overrides = [f"data.videos={corpus}", f"training.output_dir={output / 'run'}"]
    clips = len(list((corpus / "train").glob("*.mp4")))
    batch = load_config(recipe).training.train_batch_size
    if batch and clips < batch:  # of the smallest preset: a batch holds no clip twice
        overrides.append(f"training.train_batch_size={clips}")
    overrides += settings
    command = [sys.executable, "-m", "dmae", "train", "--config", str(recipe), "--resume-from-checkpoint", "last"]
    command += [part for override in overrides for part in ("--set", override)]
    _call(command)
    if not (output / "run" / "best").is_dir():
        raise ValueError(
            f"training stopped before it had a model; run the same command again to go on from {output / 'run'}"
        )
    with new_folder(model_dir) as partial:
        shutil.copytree(output / "run" / "best", partial, dirs_exist_ok=True)
    return model_dir


def _environment() -> dict[str, str]:
    """What `accelerate launch` sets for one process; spelled out so that no saved configuration changes the demo.

    Not by its launcher: at Ctrl-C that dies first, with a traceback, and the demo could not wait for the training.
    """
    chosen = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    if not torch.cuda.is_available():
        # half of the cores: steps this small lose more by waiting for a second thread than they gain (on 2 cores)
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        chosen |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    return {**os.environ, **chosen}


def _call(command: list[str]) -> None:
    """Run the training to its end. Ctrl-C reaches it through the terminal: wait until it has ended, then pass it on."""
    process = subprocess.Popen(command, env=_environment())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        raise ValueError(f"training failed with exit code {code}; its message is above")


def _evaluate(split: Path, model_dir: Path, output: Path) -> dict:
    """The content of `metrics.json`; the trained model's (texts, videos) scores go to `scores.npy`."""
    from dmae.inference.identity import describe_model
    from dmae.inference.loading import load_model_and_processor

    target = output / "metrics.json"
    if target.exists():
        _say(f"evaluation: {_shown(target)} is there")
        return json.loads(target.read_text(encoding="utf-8"))
    rows = read_rows(split)
    _say(f"scoring {len(rows)} test captions against {len(rows)} test videos, before and after training")
    model, processor = load_model_and_processor(model_dir)
    torch.manual_seed(0)
    untrained = type(model)(model.config)
    scores = first_caption_scores(model, processor, split, rows)
    made_by = describe_model(model, processor)
    metrics = {
        "random": _metrics(np.random.default_rng(0).standard_normal(scores.shape).astype(np.float32)),
        "before": _metrics(first_caption_scores(untrained, processor, split, rows)),
        "after": {**_metrics(scores), "model": {name: made_by[name] for name in ("weights", "processor")}},
        "near_miss": near_miss_accuracy(scores, rows),
    }
    np.save(output / "scores.npy", scores)
    write_file(target, json.dumps(metrics, indent=1) + "\n")
    return metrics


def _metrics(scores: np.ndarray) -> dict:
    from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics

    return {**retrieval_metrics(scores, np.arange(len(scores))), "gallery_size": len(scores)}


def _reload(model_dir: Path, split: Path) -> None:
    """Load the folder by remote code in a fresh process without this package, and compare its scores with ours."""
    from dmae.inference.loading import load_model_and_processor

    rows = read_rows(split)[:3]
    texts, videos = [row["captions"][0] for row in rows], [str(split / row["file_name"]) for row in rows[:2]]
    with tempfile.TemporaryDirectory() as elsewhere:
        child = subprocess.run(
            [sys.executable, "-I", "-c", RELOAD],
            input=json.dumps([str(model_dir), texts, videos]),
            capture_output=True,
            text=True,
            cwd=elsewhere,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(elsewhere) / "modules")},
        )
    if child.returncode:
        raise ValueError(f"{model_dir} does not load by remote code:\n{child.stderr[-2000:]}")
    found = json.loads(child.stdout.split("LOGITS ")[1])
    model, processor = load_model_and_processor(model_dir)
    with torch.no_grad():
        ours = model(**processor(text=texts, videos=videos, return_tensors="pt")).logits_per_text
    gap = float((ours - torch.tensor(found)).abs().max())
    if gap > 1e-4:
        raise ValueError(f"remote code scores differ from the package's by {gap:.2g}")
    _say(f"reloaded by remote code in a fresh process: scores agree within {gap:.1g}")


def _search(index_dir: Path, model_dir: Path, split: Path) -> list[dict]:
    """Index the test clips and answer the captions of evenly spread groups: {"query", "row", "results"} each."""
    from dmae.retrieval.index import VideoIndex
    from dmae.retrieval.indexing import index_videos

    summary = index_videos(split, index_dir, str(model_dir))
    _say(f"index: {summary.videos} videos, {summary.embedded} embedded now, {len(summary.skipped)} skipped")
    rows = read_rows(split)
    bases = [row for row in rows if row["video_id"].endswith("_base")]
    asked = [bases[i] for i in np.linspace(0, len(bases) - 1, QUERIES).round().astype(int)]
    found = VideoIndex.open(index_dir).search([row["captions"][0] for row in asked], top_k=TOP_K)
    return [
        {"query": row["captions"][0], "row": row, "results": [result.to_dict() for result in results]}
        for row, results in zip(asked, found, strict=True)
    ]


def _print_tables(metrics: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    size = metrics["after"]["gallery_size"]
    table = Table(title=f"MovingDigits test: {size} captions, {size} videos (percent; MdR, MnR: ranks)")
    table.add_column("")
    names = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "MdR": "median_rank", "MnR": "mean_rank"}
    for heading in names:
        table.add_column(heading, justify="right")
    for side, direction in (("text_to_video", "text → video"), ("video_to_text", "video → text")):
        for row, label in (("random", "random scores"), ("before", "before training"), ("after", "after training")):
            cells = [_cell(name, metrics[row][f"{side}_{name}"]) for name in names.values()]
            table.add_row(f"{direction}, {label}", *cells, end_section=row == "after")
    near = Table(title="Own video scored above its near miss (chance 50)")
    for attribute in metrics["near_miss"]:
        near.add_column(attribute, justify="right")
    near.add_row(*(f"{100 * value:.1f}" for value in metrics["near_miss"].values()))
    console = Console()
    console.print(table)
    console.print(near)


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name.startswith("R@") else f"{value:.1f}"

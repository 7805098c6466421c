"""Kills, failing disks and power failures against a training run and against `dmae prepare`.

    python benchmarks/faults/training.py                 # the keys "training" and "prepare" of results/faults.json
    python benchmarks/faults/training.py --every 20 --no-result      # a short version: every twentieth trial

Each trial trains a tiny model in a process forked from a warm one, and is struck at one named point of what it writes.
Then the same command goes on, in another process: it must find every checkpoint that was acknowledged, and end with the
very weights, best model and log of a run that nothing happened to, leaving nothing over. `dmae prepare` likewise: every
frame that was stored is still there, and the next call completes the rest.

    kills     the process gets SIGKILL at the point, for every point of a run
    crashes   the power fails at the point: names and contents that were not fsynced are lost by chance
    failures  the n-th write, fsync, rename or read fails with EIO, ENOSPC or EACCES, for every n
    torn      files may not grow beyond n bytes: writes really fail in their middle

Finished trials stand in `--progress`; a run that was stopped goes on where it was.
"""

import argparse
import errno
import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from disk import fail_at, kill_at
from report import merge_result
from safetensors.torch import load_file
from struck import Bench, in_child, points_of
from trials import FAILURES, KINDS, Trial, files_end_at, run_trials, summary

from dmae.data.frame_cache import builder as frame_cache_builder
from dmae.data.frame_cache.store import FrameCache, key_of
from dmae.data.miniature import make_miniature
from dmae.data.preparation import Preparation, prepare_dataset
from dmae.data.registry import load_dataset
from dmae.processing.frames_dmae import FrameSampler
from dmae.training import loop
from dmae.training.checkpoints import check_output, checkpoints, find_checkpoint, read_state
from dmae.training.config import config_from_dict
from dmae.training.record import read_metrics

TOWER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# A run of one epoch, and one that was killed after its first of two: it replaces models and drops a checkpoint.
SCRIPTS = (
    {"save_steps": 1, "save_total_limit": 2, "num_train_epochs": 1},
    {"save_steps": 1, "save_total_limit": 1, "num_train_epochs": 2, "begun": True},
)
SAMPLER = FrameSampler(num_frames=2, size=16, sampling="uniform")
frame_cache_builder.SHARD_CLIPS = 2  # several shards of a few clips
loop.plot_curves = lambda *_: None  # drawn from the finished log; half of a trial's time


class Training:
    """What a run writes: checkpoints, models, log and record."""

    name, scripts = "training", len(SCRIPTS)

    def __init__(self, folder: Path):
        data = make_miniature("videofolder", folder / "videos", {"train": 4, "validation": 2, "test": 1})
        self.videos, self.folder, self.references, self.begun = data.videos, folder, {}, folder / "begun"
        for script in range(self.scripts):
            reference = folder / f"reference{script}"
            assert in_child(partial(self.go_on, reference, script)) == ""
            self.references[script] = outcome(reference)
        points = points_of(partial(self.go_on, folder / "counted", 1))
        place = next(number for number, point in enumerate(points) if point == ("renamed", "last")) + 4
        in_child(partial(self.go_on, self.begun, 1), kill_at(place))

    def fresh(self, folder: Path, script: int) -> None:
        if SCRIPTS[script].get("begun"):
            shutil.copytree(self.begun, folder)

    def go_on(self, folder: Path, script: int, acknowledge: Callable[[int], None] = lambda step: None) -> None:
        """The command that people repeat: begins the run, or goes on with it."""
        saved = loop.save_checkpoint

        def acknowledged(accelerator, output_dir, state, keep):
            path = saved(accelerator, output_dir, state, keep)
            acknowledge(state["step"])
            return path

        loop.save_checkpoint = acknowledged
        try:
            loop.train(self.config(folder, script))
        finally:
            loop.save_checkpoint = saved

    def config(self, folder: Path, script: int):
        words = {name: value for name, value in SCRIPTS[script].items() if name != "begun"}
        words |= {"output_dir": str(folder), "resume_from_checkpoint": "last", "seed": script}
        words |= {"num_train_epochs": 2, "train_batch_size": 2, "logging_steps": 1, "report_to": []}
        model = {
            "projection_dim": 8,
            "text_config": TOWER,
            "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
        }
        model |= {"max_words": 12, "max_frames": 2, "temporal_layers": 1, "word_weighting": "uniform"}
        data = {"videos": str(self.videos), "captions_per_epoch": "one", "num_workers": 0, "cache_frames": "memory"}
        processor = {"vocab_size": 280, "sampling": "uniform"}
        return config_from_dict({"model": model, "processor": processor, "data": data, "training": words})

    def check(self, folder: Path, script: int, acknowledged: list[int]) -> str:
        """ "" or what is wrong; runs in a process of its own and finishes the run."""
        config = self.config(folder, script)
        if folder.exists():
            check_output(loop.make_accelerator(config), folder, config.training)
        found = find_checkpoint("last", folder)
        step = read_state(found)["step"] if found else 0
        if step < max(acknowledged, default=0):
            return f"lost: step {max(acknowledged)} was acknowledged, step {step} is there"
        self.go_on(folder, script)
        ended = outcome(folder)
        other = [name for name, value in self.references[script].items() if ended[name] != value]
        if other:
            return f"mixed: the run ended with another {', '.join(other)}"
        return left_over(folder)


def outcome(folder: Path) -> dict:
    """What a run comes to: sums of its models' bytes, and the log without its times."""
    names = ("step", "loss", "text_to_video_rsum", "learning_rate")
    rows = [[row.get(name) for name in names] for row in read_metrics(folder / "metrics.jsonl")]
    models = {
        name: {
            key: value.double().sum().item() for key, value in load_file(folder / name / "model.safetensors").items()
        }
        for name in ("best", "last")
    }
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = [path.name for path in checkpoints(folder)]
    return {"log": rows, **models, "best_step": record["best"]["step"], "status": record["status"], "kept": kept}


class Prepare:
    """What `dmae prepare` writes: frame cache, word table and reports."""

    name, scripts = "prepare", 1

    def __init__(self, folder: Path):
        data = make_miniature("videofolder", folder / "prepare", {"train": 4, "validation": 2, "test": 1})
        self.videos, self.rows = data.videos, []
        for split in ("train", "validation", "test"):
            self.rows += load_dataset("videofolder", videos=data.videos, split=split).dataset.to_list()

    def fresh(self, folder: Path, script: int) -> None:
        pass

    def go_on(self, folder: Path, script: int, acknowledge: Callable[[int], None] = lambda count: None) -> None:
        stored = frame_cache_builder.write_shard

        def acknowledged(*arguments):
            path = stored(*arguments)
            acknowledge(len(FrameCache(folder, SAMPLER)))
            return path

        frame_cache_builder.write_shard = acknowledged
        try:
            plan = Preparation("videofolder", None, self.videos, folder, codec="lossless", workers=0)
            prepare_dataset(plan, SAMPLER, lambda line: None)
        finally:
            frame_cache_builder.write_shard = stored

    def check(self, folder: Path, script: int, acknowledged: list[int]) -> str:
        there = 0
        if (folder / "frames" / frame_cache_builder.SETTINGS_FILE).exists():
            there = len(FrameCache(folder, SAMPLER))
        if there < max(acknowledged, default=0):
            return f"lost: {max(acknowledged)} clips were stored, {there} are there"
        self.go_on(folder, script)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if report["frame_cache"]["kept"] != there or (folder / "words").exists() != ("words" in report):
            return f"lost: {there} clips were there, {report['frame_cache']['kept']} were kept"
        cache = FrameCache(folder, SAMPLER)
        for row in self.rows:
            if not torch.equal(cache.frames(key_of(row)).frames, SAMPLER.decode(row["video"]).frames):
                return f"mixed: {row['video_id']} has other frames"
        return left_over(folder)


def left_over(folder: Path) -> str:
    left = [path.name for path in folder.rglob("*") if ".dmae-" in path.name]
    return f"left over: {left}" if left else ""


# ---------------------------------------------------------------------- one trial


# ---------------------------------------------------------------------- all of them


def trials_of(bench: Bench) -> Iterator[Trial]:
    """(name, point, trial)"""
    for script, power in itertools.product(range(bench.subject.scripts), (False, True)):
        for place, point in enumerate(bench.points(script)):
            mode = "crash" if power else "kill"
            yield f"{mode} {script} {place}", " ".join(point), partial(bench.killed, script, place, power)
    counts = Counter(point for point, _ in bench.points(0))
    for kind, error in itertools.product(KINDS, FAILURES):
        for nth in range(counts[kind]):
            trial = partial(bench.failing, 0, fail_at(kind, nth, error))
            yield f"{kind} 0 {nth} {error}", f"{kind} {errno.errorcode[error]}", trial
    for limit in [2**power for power in range(6, 18)]:
        trial = partial(bench.failing, 0, None, partial(files_end_at, limit))
        yield f"torn 0 {limit}", "torn EFBIG", trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th trial")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; the same command goes on")
    parser.add_argument("--subjects", nargs="+", default=["training", "prepare"], choices=["training", "prepare"])
    parser.add_argument("--progress", type=Path, default=Path("outputs/faults_training.jsonl"))
    parser.add_argument("--no-result", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork keeps one thread
    started, wrong = time.monotonic(), False
    for subject in (subject for subject in (Training, Prepare) if subject.name in args.subjects):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(subject(Path(folder)), Path(folder))
            trials = list(trials_of(bench))
            random.Random(0).shuffle(trials)  # so that a part of them is a sample of all
            until = started + args.minutes * 60 * (1 if subject is Prepare else 0.8)
            result = summary(run_trials(args.progress, trials[:: args.every], subject.name, until))
        print(subject.name, json.dumps(result, indent=1), f"{time.monotonic() - started:.0f} s")
        wrong = wrong or any(part["wrong"] for part in result.values())
        if not args.no_result:
            merge_result(subject.name, result, seed=0, trials=sum(part["trials"] for part in result.values()))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""What each part of the method is worth: a factorial study on MovingObjects, run by run, resumable.

    python benchmarks/evidence.py --tune              # every row on the grid of settings, scored on validation
    python benchmarks/evidence.py --untuned           # some rows before any fine-tuning, on validation
    python benchmarks/evidence.py --factorial         # 16 cells x 4 checkpoints x seeds, test scores sealed
    python benchmarks/evidence.py --forms             # other forms and tables; `--forms wti pooled`: these alone
    python benchmarks/evidence.py --dials             # premises from absent to strong; `--dials filler`: this one
    python benchmarks/evidence.py --read-test         # open the sealed scores, once, after all tuning
    python benchmarks/evidence.py --report            # docs/evidence.md, its figures and effects.json
    python benchmarks/evidence.py --row "negnce+ta" --checkpoint 0 --seed 0    # one row again: does it land there?

Every run appends one line of JSON: its factors, checkpoint, seed, split, settings, metrics and the code's version. A
run that is already there is not run again. Test scores are written to outputs/evidence/sealed and neither printed nor
read until `--read-test`; from then on `--tune` refuses to choose anything.

`--preset gpu` uses a larger world and more seeds, and has been started but never run; `cpu` is what two cores do.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import torch
from evidence_checkpoints import load_checkpoint
from evidence_design import (
    AGAINST,
    CELLS,
    CHECKPOINT_SWITCHES,
    DIALS,
    ROWS,
    WORLD,
    Job,
    Settings,
    in_factorial,
    tuning_jobs,
)
from evidence_run import run, see
from evidence_stats import RSUM, blocks_of, chosen_settings, next_block
from evidence_world import load_world

from dmae import __version__
from dmae.files import write_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evidence.jsonl"
WORK = ROOT / "outputs" / "evidence"
PRESETS = {
    "cpu": {"seeds": 4, "world": {}},
    "gpu": {"seeds": 12, "world": {"train": 4096, "test_groups": 200, "test_singles": 1000}},
}
UNTUNED = ("baseline", "ta", "va")  # what changes scores without training
KEPT_WORLDS = 2  # (world, checkpoint) pairs in memory, about 60 MB each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("tune", "untuned", "factorial", "read-test", "report"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--forms", nargs="*", choices=AGAINST, metavar="ROW", help="all, or these")
    parser.add_argument("--dials", nargs="*", choices=DIALS, metavar="DIAL", help="all, or these")
    parser.add_argument("--row", choices=ROWS, help="run one row again and show it beside its first result")
    parser.add_argument("--checkpoint", type=int, default=0, choices=range(len(CHECKPOINT_SWITCHES)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, help="seeds of each row on each checkpoint")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = replace(WORLD, **PRESETS[options.preset]["world"])
    study = Study(RESULTS, WORK, options.preset, options.device)
    seeds = options.seeds or PRESETS[options.preset]["seeds"]
    if options.tune:
        study.refuse_after_reading()
        study.do([replace(job, world=world) for job in tuning_jobs()])
    if options.untuned:
        checkpoints = range(len(CHECKPOINT_SWITCHES))
        study.do([Job("untuned", row, number, 0, Settings(), world) for number in checkpoints for row in UNTUNED])
    if options.factorial:
        study.do(factorial_jobs(study.settings(), world, seeds))
    if options.forms is not None:
        study.do(form_jobs(study.settings(), world, seeds, options.forms or AGAINST))
    if options.dials is not None:
        study.do(dial_jobs(study.settings(), world, seeds, options.dials or DIALS))
    if options.row:
        again(study, options.row, options.checkpoint, options.seed, world)
    if options.read_test:
        study.read_test()
    if options.report:
        from evidence_report import write_report

        write_report(RESULTS, ROOT / "docs")


def factorial_jobs(settings: dict[str, Settings], world, seeds: int) -> list[Job]:
    """Seed by seed, checkpoint by checkpoint, so that an early stop leaves whole blocks."""
    return [
        Job("factorial", row.name, checkpoint, seed, settings[row.tuned_as], world)
        for seed in range(seeds)
        for checkpoint in range(len(CHECKPOINT_SWITCHES))
        for row in CELLS
    ]


def form_jobs(settings, world, seeds: int, names=AGAINST) -> list[Job]:
    return [
        Job("forms", name, checkpoint, seed, settings[ROWS[name].tuned_as], world)
        for seed in range(seeds)
        for checkpoint in range(len(CHECKPOINT_SWITCHES))
        for name in names
    ]


def dial_jobs(settings, world, seeds: int, names=DIALS) -> list[Job]:
    return [
        Job(name, row, checkpoint, seed, settings[row], replace(world, **changes), tuple(model.items()), position)
        for seed in range(seeds)
        for name in names
        for position, changes, model in DIALS[name].levels
        for checkpoint in range(len(CHECKPOINT_SWITCHES))
        for row in (DIALS[name].base, DIALS[name].row)
        if not in_factorial(row, changes, model)
    ]


class Study:
    """The result file, the sealed scores and what is kept in memory between runs."""

    def __init__(self, results: Path, work: Path, preset: str, device: str = "cpu"):
        self.results, self.work, self.preset, self.device = results, work, preset, device
        self.sealed = work / "sealed"
        self.sealed.mkdir(parents=True, exist_ok=True)
        self.worlds: OrderedDict = OrderedDict()
        self.loaded: dict = {}

    def lines(self) -> list[dict]:
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def settings(self) -> dict[str, Settings]:
        """What tuning chose for each cell, by validation alone."""
        tuning = [line for line in self.lines() if line["part"] == "tuning" and line["preset"] == self.preset]
        if len(tuning) < len(tuning_jobs()):
            raise SystemExit(f"{len(tuning)} of {len(tuning_jobs())} tuning runs are there: run --tune first")
        return chosen_settings(tuning, {row.name: row.factors for row in CELLS})

    def do(self, jobs: list[Job]) -> None:
        done = {line["key"] for line in self.lines() if line["preset"] == self.preset}
        todo = [job for job in jobs if job.key not in done and not self.seal_of(job).exists()]
        print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
        for job in todo:
            if self.seal_of(job).exists():  # another process has done it meanwhile
                continue
            started = time.time()
            line = self.line(job)
            if job.split == "validation":
                self.append([line])
                shown = f"{line['metrics']['text_to_video_rsum']:.1f} {line['metrics']['video_to_text_rsum']:.1f}"
            else:
                write_file(self.seal_of(job), json.dumps(line))
                shown = "sealed"
            seconds = f"{sum(line['cpu_seconds'].values()):.1f} CPU s, {time.time() - started:.0f} s"
            print(f"{job.key}: {shown}, {seconds}", flush=True)

    def seal_of(self, job: Job) -> Path:
        return self.sealed / f"{self.preset}-{job.key}.json"

    def line(self, job: Job) -> dict:
        towers, world = self.seen(job)
        return {
            "key": job.key,
            "preset": self.preset,
            "part": job.part,
            "row": job.row,
            "factors": ROWS[job.row].factors,
            "checkpoint": job.checkpoint,
            "seed": job.seed,
            "split": job.split,
            "level": job.level,
            **run(ROWS[job.row], job, towers, world),
            "settings": {**asdict(job.settings), **dict(ROWS[job.row].model), **dict(job.model)},
            "world": {name: value for name, value in asdict(job.world).items() if value != getattr(WORLD, name)},
            "code": code_version(),
            "machine": self.machine(),
        }

    def machine(self) -> str:
        if self.device != "cpu":
            return f"{torch.cuda.get_device_name(self.device)}, torch {torch.__version__}"
        return f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}"

    def seen(self, job: Job):
        """The checkpoint's towers and the job's world as its trunks see it, the latest few kept."""
        if job.checkpoint not in self.loaded:
            self.loaded[job.checkpoint] = load_checkpoint(job.checkpoint, self.work)
        towers, key = self.loaded[job.checkpoint], (job.world, job.checkpoint)
        if key not in self.worlds:
            while len(self.worlds) >= KEPT_WORLDS:
                self.worlds.popitem(last=False)
            self.worlds[key] = see(load_world(job.world, self.work), towers, device=self.device)
        return towers, self.worlds[key]

    def append(self, lines: list[dict]) -> None:
        with open(self.results, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def read_test(self) -> None:
        """Move the sealed lines into the result file: from here on nothing may be tuned."""
        paths = sorted(self.sealed.glob("*.json"))
        self.append(
            [{**json.loads(path.read_text(encoding="utf-8")), "opened": time.strftime("%F %T")} for path in paths]
        )
        for path in paths:
            path.unlink()
        print(f"opened the test scores of {len(paths)} runs")

    def refuse_after_reading(self) -> None:
        if any(line["split"] == "test" and line["preset"] == self.preset for line in self.lines()):
            raise SystemExit(f"the test split of preset {self.preset!r} has been read: nothing may be tuned any more")


def again(study: Study, row: str, checkpoint: int, seed: int, world) -> None:
    """Run a row and the row it is compared with on one block; say whether they land where the recorded runs say."""
    base = AGAINST.get(row, "baseline")
    known = [
        line
        for line in study.lines()
        if line["part"] in ("factorial", "forms") and line["preset"] == study.preset and line["row"] in (row, base)
    ]
    found = {}
    for name in dict.fromkeys((row, base)):
        job = Job("again", name, checkpoint, seed, study.settings()[ROWS[name].tuned_as], world)
        found[name] = study.line(job)["metrics"]
        print(f"{name}, checkpoint {checkpoint}, seed {seed}:")
        same = [line for line in known if (line["row"], line["checkpoint"], line["seed"]) == (name, checkpoint, seed)]
        for metric, value in found[name].items():
            then = f"recorded {same[0]['metrics'][metric]:8.2f}" if same else "not recorded"
            print(f"  {metric:28} {value:8.2f}   {then}")
    others = [cells for block, cells in blocks_of(known).items() if block != (checkpoint, seed) and len(cells) == 2]
    for metric in RSUM if row != base else ():
        gap = found[row][metric] - found[base][metric]
        low, high = next_block([cells[row][metric] - cells[base][metric] for cells in others])
        where = "inside" if low <= gap <= high else "OUTSIDE"
        print(
            f"{metric}, {row} - {base}: {gap:+.2f}, {where} {low:+.2f} to {high:+.2f}, "
            f"where {len(others)} other blocks say that one more lands with 95 %"
        )


def code_version() -> str:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], check=False, cwd=ROOT, capture_output=True, text=True
        )
        return f"{__version__} {commit.stdout.strip()}"
    except OSError:
        return __version__


if __name__ == "__main__":
    sys.exit(main())

"""The record of a run: run.json (what was run, on what, with which result) and metrics.jsonl (what happened when)."""

import json
import time
from pathlib import Path

import torch

from dmae.files import disk_errors_named, reached, sync_file, sync_names, write_file
from dmae.inference.conditions import code_version, hardware


def run_facts(run) -> dict:
    """What `run.json` says about a run before it starts: everything its results depend on."""
    parameters = list(run.model.parameters())
    dtype = run.accelerator.mixed_precision
    return {
        "config": run.config.to_dict(),
        "model": run.model.config.to_dict(),
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "splits": {name: split.report for name, split in vars(run.splits).items() if split is not None},
        "frames": run.model.config.max_frames,
        "words": run.model.config.max_words,
        "ties": "average",
        "post_processing": None,
        "seed": run.options.seed,
        "world_size": run.accelerator.num_processes,
        "global_batch": run.schedule.batch_size,
        "dtype": "fp32" if dtype == "no" else dtype,
        "total_steps": run.total_steps,
        "code": code_version(),
        "hardware": hardware(run.accelerator.device),
    }


class RunRecord:
    """`run.json` in the output folder, rewritten in one step at each update; only the main process writes."""

    def __init__(self, path: Path, writes: bool, facts: dict):
        self.path, self.writes, self.facts = path, writes, {"status": "running", "started": _now(), **facts}
        self.update()

    def update(self, **facts) -> None:
        self.facts |= {**facts, "updated": _now()}
        if self.writes:
            write_file(self.path, json.dumps(self.facts, indent=2, ensure_ascii=False, default=str) + "\n")


class MetricsLog:
    """`metrics.jsonl`, one object per line with its `step`, handed on to the trackers; only the main process writes."""

    def __init__(self, path: Path, accelerator, step: int = 0, validated: bool = True):
        """A run that goes on from `step` repeats what came after: the first account of that goes."""
        self.path, self.accelerator = path, accelerator
        if accelerator.is_main_process:
            write_file(path, "".join(_lines_up_to(path, step, validated)))

    def write(self, step: int, **values) -> None:
        if self.accelerator.is_main_process:
            with disk_errors_named(self.path), open(self.path, "a", encoding="utf-8") as file:
                reached("write", self.path)
                file.write(json.dumps({"step": step, **values, "time": _now()}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=step)

    def sync(self) -> None:
        """What was written so far survives a power failure, as the checkpoint does that comes next."""
        if self.accelerator.is_main_process and self.path.exists():
            with disk_errors_named(self.path):
                sync_file(self.path)
                sync_names(self.path.parent)


class LogWindow:
    """What has happened since the last log line: means of the losses, speed, and the share of time spent on waiting."""

    def __init__(self):
        self._empty()

    def _empty(self) -> None:
        self.started = time.monotonic()
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.samples = 0
        self.waited = 0.0

    def timed(self, loader):
        """The loader's batches, noting how long each was waited for."""
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def add(self, terms: dict[str, torch.Tensor], samples: int) -> None:
        for name, value in terms.items():
            # stays on the device: no synchronisation
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.samples += samples

    def summary(self) -> dict[str, float]:
        """Means over the window; afterwards it is empty."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        speed = {
            "samples_per_second": round(self.samples / seconds, 2),
            "waiting_share": round(self.waited / seconds, 4),
        }
        self._empty()
        return means | speed


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics log; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # U+2028 ends no line here
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _lines_up_to(path: Path, step: int, validated: bool) -> list[str]:
    rows = read_metrics(path) if path.is_file() and step else []
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and (validated or "videos" not in row))]
    return [json.dumps(row) + "\n" for row in kept]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

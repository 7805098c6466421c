"""The training loop: `train(config)` trains, validates, selects, saves, and can be stopped and resumed at any step.

In the output folder: `checkpoint-<step>/` (to resume), `best/` and `last/` (models that load by remote code),
`run.json`, `metrics.jsonl`, `curves.png`, `tensorboard/`, and `skipped_videos.json` if a video could not be read.
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmae.data.frame_cache.stored_frames import with_stored_frames
from dmae.inference.identity import weights_hash
from dmae.inference.progress import progress
from dmae.training.adapters import save_adapter, without_adapters
from dmae.training.build import build_model, build_processor, load_splits, make_accelerator, make_schedule
from dmae.training.checkpoints import (
    check_output,
    drop_old,
    find_checkpoint,
    load_checkpoint,
    only_run,
    open_output,
    read_state,
    save_checkpoint,
    save_model,
)
from dmae.training.config import RunConfig
from dmae.training.examples import TrainingExamples, loaded_ahead, to_model_inputs
from dmae.training.gradient_cache import cached_backward
from dmae.training.objective import Objective
from dmae.training.optimizer import current_rates, freeze, make_optimizer, make_scheduler
from dmae.training.preemption import Preemption
from dmae.training.record import LogWindow, MetricsLog, RunRecord, read_metrics, run_facts
from dmae.training.state import RunState, data_plan, refuse_other_run
from dmae.training.validation import told, validate
from dmae.training.watch import Diverged, SkipLimit, StepWatch
from dmae.visuals.plots import plot_curves


@dataclass
class TrainResult:
    """status: "finished", or "preempted" (SIGTERM: saved, to be resumed). metrics: best validation, as fractions."""

    status: str
    output_dir: Path
    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def model_dir(self) -> Path:
        """The best model by `metric_for_best_model`; without validation the last one."""
        best = self.output_dir / "best"
        return best if best.is_dir() else self.output_dir / "last"


def train(config: RunConfig) -> TrainResult:
    """Run `config` from its start, or from the checkpoint it names, to its end. Every process of a launch calls this.

    Raises ValueError / OSError with the cause for bad input, a loss that is no number, too many broken videos, a full
    disk; checkpoints and models already written stay whole.
    """
    set_seed(config.training.seed)
    accelerator = make_accelerator(config)
    with only_run(accelerator, Path(config.training.output_dir)), Preemption() as preemption:
        run = Run(config, accelerator)  # what is refused here has written nothing
        run.open()
        try:
            run.start()
            result = run.finish("finished" if run.epochs(preemption) else "preempted")
        except BaseException as error:
            run.note(status="failed", error=f"{type(error).__name__}: {error}")
            raise
    accelerator.end_training()
    return result


class Run:
    """One training run: its parts, built from the configuration, and its state."""

    def __init__(self, config: RunConfig, accelerator: Accelerator):
        self.config, self.options, self.accelerator = config, config.training, accelerator
        self.output, self.average = Path(self.options.output_dir), None
        check_output(self.accelerator, self.output, self.options)
        self.splits = load_splits(config)
        for split in filter(None, vars(self.splits).values()):
            SkipLimit.of(split, config.data.max_skipped_share).check({})
        self.rows = self.splits.train.dataset.to_list()
        self.schedule = make_schedule(config, self.rows, self.accelerator.num_processes)
        self.total_steps = self.schedule.total_steps(self.options.num_train_epochs, self.options.max_steps)
        self.state = RunState(plan=data_plan(self.rows, self.schedule.batch_size), config=config.to_dict())
        self.resumed_from = find_checkpoint(self.options.resume_from_checkpoint, self.output)
        if self.resumed_from is not None:
            saved = RunState.of(read_state(self.resumed_from), self.resumed_from)
            refuse_other_run(saved, config, self.state.plan, self.resumed_from)
            self.state = replace(saved, config=config.to_dict())
        self._build()

    def _build(self) -> None:
        """Model, optimiser and schedule, as they begin or as the checkpoint has them."""
        self.saved_processor = self.processor = build_processor(self.config, self.splits)
        self.model = build_model(self.config, self.processor)
        freeze(self.model, self.options.freeze)
        optimizer = make_optimizer(self.model, self.options, self.accelerator.device)
        self.scheduler = make_scheduler(optimizer, self.options, self.total_steps)
        self.bare_objective = Objective(self.model)
        self.objective, self.optimizer = self.accelerator.prepare(self.bare_objective, optimizer)
        if self.options.ema is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.options.ema))
        kept = [self.scheduler, self.average]
        self.accelerator.register_for_checkpointing(*(part for part in kept if part is not None))
        if self.resumed_from is not None:
            load_checkpoint(self.accelerator, self.resumed_from)
            self.bare_objective.progress = self.state.step / self.total_steps

    @property
    def judged(self) -> torch.nn.Module:
        """The model that is validated and saved: the running mean of the weights where `ema` asks for it."""
        return self.model if self.average is None else self.average.module

    def open(self) -> None:
        """The output folder, the record and the log: from here on the run is on disk."""
        open_output(self.accelerator, self.output, self.options)
        self.clock = time.monotonic()
        for split in filter(None, vars(self.splits).values()):
            if split.missing:
                self.accelerator.print(f"warning: {SkipLimit.of(split).lost({})}; run.json names them all")
        self.record = RunRecord(self.output / "run.json", self.accelerator.is_main_process, run_facts(self))
        if self.resumed_from is not None:
            self.note(resumed_from=str(self.resumed_from), resumed_at_step=self.state.step)
            self.accelerator.print(f"going on from {self.resumed_from}, step {self.state.step} of {self.total_steps}")
        self.log = MetricsLog(self.output / "metrics.jsonl", self.accelerator, self.state.step, self.state.validated)

    def start(self) -> None:
        """The trackers, the stored frames, and what is known to be lost before the first step."""
        if self.options.report_to:
            self.accelerator.init_trackers("dmae")
        data, validation = self.config.data, self.splits.validation
        rows = self.rows + (validation.dataset.to_list() if validation else [])
        # loaders draw from the global generator, which a run that goes on has just been given back
        with torch.random.fork_rng(devices=[]):
            self.processor, broken = with_stored_frames(self.processor, data.cache_frames, rows, data.num_workers)
        limit = SkipLimit.of(self.splits.train, data.max_skipped_share)
        self.watch = StepWatch(self.accelerator, self.state.skipped, limit, self.output / "skipped_videos.json")
        training = {row["video_id"] for row in self.rows}
        self.watch.note_skipped([item for item in broken if item["video_id"] in training])

    def note(self, **facts) -> None:
        """Bring run.json up to date: `facts`, and how far the run is."""
        state = self.state
        totals = {"steps": state.step, "samples": state.samples, "wall_seconds": round(state.seconds, 1)}
        self.record.update(**facts, **totals, best=state.best, skipped_videos=state.skipped)

    def finish(self, status: str) -> TrainResult:
        """The curves, and the closing lines of the record."""
        if status == "finished" and self.accelerator.is_main_process:
            plot_curves(read_metrics(self.output / "metrics.jsonl"), self.output / "curves.png")
        self.log.sync()
        drop_old(self.accelerator, self.output, self.options.save_total_limit)  # a kill may have come before it
        self.note(status=status)
        seconds = round(self.state.seconds, 1)
        return TrainResult(status, self.output, self.state.step, seconds, self.state.best.get("metrics", {}))

    def epochs(self, preemption: Preemption) -> bool:
        """Train what is left; False if the run was asked to stop before its end."""
        while True:
            if not self.state.validated:
                self._validate()
            if self.state.step >= self.total_steps:
                return True
            if not self._train_epoch(preemption):
                return False

    def _train_epoch(self, preemption: Preemption) -> bool:
        """From the state's batch to the end of its epoch, or of the run; saved before validation starts."""
        state, options, window = self.state, self.options, LogWindow()
        whole = self.schedule.batches(state.epoch)
        batches = whole[state.batch :]
        steps = min(math.ceil(len(batches) / self.schedule.accumulation), self.total_steps - state.step)
        self.model.train()
        title = f"epoch {state.epoch + 1}/{options.num_train_epochs}"
        examples = TrainingExamples(self.rows, self.processor)
        ahead = loaded_ahead(examples, batches, self.accelerator, self.config.data.num_workers, options.seed)
        with ahead as loader, progress(steps, title, unit="steps") as advance:
            for pairs, batch in zip(batches, window.timed(loader)):
                stop = self._train_batch(batch, window, preemption)
                state.batch, state.samples = state.batch + 1, state.samples + len(pairs)
                if not self.accelerator.sync_gradients:
                    continue
                advance(1)
                if state.step % options.logging_steps == 0:
                    self._log(window)
                if state.step >= self.total_steps:
                    break
                if stop or (options.save_steps and state.step % options.save_steps == 0):
                    self._save_checkpoint()
                if stop:
                    return False
        if window.samples:
            self._log(window)
        if state.batch == len(whole):
            state.epoch, state.batch = state.epoch + 1, 0
        state.validated = False
        self._save_checkpoint()
        return True

    def _train_batch(self, batch: dict, window: LogWindow, preemption: Preemption) -> bool:
        """One micro-batch; with the last one of a step, the step. Returns whether the run was asked to stop."""
        accelerator, state, stop = self.accelerator, self.state, False
        with accelerator.accumulate(self.objective):
            terms = self._backward(batch)
            self.watch.add(batch, terms["loss"])
            if accelerator.sync_gradients:
                found = accelerator.clip_grad_norm_(self.objective.parameters(), self.options.max_grad_norm)
                norm = torch.as_tensor(found)
                stop = self.watch.agree(state.step + 1, norm, preemption.requested)
                terms["gradient_norm"] = norm
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            if not accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            self.model.clamp_logit_scale()
            if self.average is not None:
                self.average.update_parameters(self.model)
            state.step += 1
            self.bare_objective.progress = state.step / self.total_steps
        window.add(terms, len(batch["names"]) * accelerator.num_processes)
        return stop

    def _backward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Losses of the global batch; the gradients are in the parameters."""
        inputs = to_model_inputs(batch, self.processor.feature_extractor)
        try:
            if self.options.gradient_cache_chunk:
                return cached_backward(self.accelerator, self.objective, inputs, self.options.gradient_cache_chunk)
            terms = self.objective(**inputs)
        except ValueError as error:  # e.g. embeddings that are no numbers: the model knows rows, we know names
            names = ", ".join(batch["names"])
            raise Diverged(f"step {self.state.step + 1}: {error}. Videos of this process's batch: {names}") from error
        self.accelerator.backward(terms["loss"])
        return terms

    def _validate(self) -> None:
        """Score the validation split; keep the best model and the last."""
        if self.splits.validation is not None:
            rows, workers = self.splits.validation.dataset.to_list(), self.config.data.num_workers
            batch_size = self.options.per_device_eval_batch_size
            self._select(validate(self.accelerator, self.judged, self.processor, rows, batch_size, workers))
        last = {"epoch": self._epochs_done(), "weights": self._save_model("last")}
        self.record.update(best=self.state.best, last=last)
        self.state.validated = True
        self._tick()
        self.note()

    def _select(self, result: dict) -> None:
        """Log a validation result; save the model as `best` if it is."""
        state, chosen = self.state, self.options.metric_for_best_model
        metrics, skipped = result.pop("metrics"), [item["video_id"] for item in result.pop("skipped")]
        self.log.write(state.step, epoch=self._epochs_done(), **result, skipped=skipped, **metrics)
        done = f"epoch {self._epochs_done():g}, step {state.step}/{self.total_steps}"
        minutes = state.seconds / state.step * (self.total_steps - state.step) / 60
        self.accelerator.print(f"{done}: {told(metrics, result, skipped)}; about {minutes:.1f} min left")
        if metrics[chosen] > state.best.get("value", float("-inf")):
            place = {"epoch": self._epochs_done(), "step": state.step, "metric": chosen, "value": metrics[chosen]}
            # the hash says whose results these are, wherever the folder is copied to
            state.best = {**place, "weights": self._save_model("best"), "metrics": metrics, **result}

    def _save_model(self, name: str) -> str:
        """Save the judged model, merged and as an adapter where there are adapters. -> the hash of what was saved."""
        model, adapter = without_adapters(self.judged) if self.options.lora else self.judged, None
        base = self.config.model.get("from_clip") or self.config.model.get("from_pretrained")
        if self.options.lora and base:  # towers from random weights have no base that an adapter could name
            adapter = partial(save_adapter, self.judged, base)
        save_model(self.accelerator, model, self.saved_processor, self.output / name, adapter)
        return weights_hash(model)

    def _epochs_done(self) -> float:
        return round(self.state.samples / self.schedule.pairs_per_epoch, 3)

    def _tick(self) -> None:
        now = time.monotonic()
        self.state.seconds, self.clock = self.state.seconds + now - self.clock, now

    def _save_checkpoint(self) -> None:
        self._tick()
        self.log.sync()
        save_checkpoint(self.accelerator, self.output, asdict(self.state), self.options.save_total_limit)

    def _log(self, window: LogWindow) -> None:
        self.log.write(self.state.step, epoch=self._epochs_done(), **window.summary(), **current_rates(self.optimizer))

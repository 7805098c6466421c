"""What all ranks agree on before a step changes the weights: is the loss a number, are videos broken, shall we stop."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dmae.training.checkpoints import write_file
from dmae.training.distributed import global_sum


class Diverged(ValueError):
    """The loss or a gradient is no finite number; the message names the step and the videos."""


class StepWatch:
    """Collects over the micro-batches of a step, then settles it in one exchange between the ranks.

    skipped: video_id -> {"path", "error"}, kept up to date and written to `report`; over `most_skipped` the run stops.
    """

    def __init__(self, accelerator: Accelerator, skipped: dict, most_skipped: float, report: Path):
        self.accelerator, self.skipped, self.most_skipped, self.report = accelerator, skipped, most_skipped, report
        self._clear()

    def _clear(self) -> None:
        self.names: list[str] = []
        self.new: list[dict] = []
        self.wrong = torch.zeros((), dtype=torch.bool, device=self.accelerator.device)

    def add(self, batch: dict, loss: torch.Tensor | None) -> None:
        self.names += batch["names"]
        self.new += [item for item in batch["skipped"] if item["video_id"] not in self.skipped]
        if loss is not None:
            self.wrong = self.wrong | ~loss.detach().isfinite()

    def agree(self, step: int, gradient_norm: torch.Tensor, stop: bool) -> bool:
        """True if any rank was asked to stop. Raises `Diverged`, or ValueError for too many broken videos, everywhere.

        Under fp16 a gradient may overflow: the loss scaler skips that step by itself.
        """
        wrong = self.wrong
        if self.accelerator.mixed_precision != "fp16":
            wrong = wrong | ~torch.as_tensor(gradient_norm, device=wrong.device).isfinite()
        signals = torch.stack([wrong.long(), wrong.new_tensor(stop).long(), wrong.new_tensor(bool(self.new)).long()])
        wrong, stop, new = global_sum(signals).tolist()
        if new:
            self._note_skipped()
        if wrong:
            names = ", ".join(gather_object(self.names))
            raise Diverged(
                f"step {step}: the loss or its gradient is not a finite number; videos of the batch: {names}. "
                "The weights were left as they were, earlier checkpoints are kept: lower the learning rate, or look at "
                "these videos"
            )
        self._clear()
        return bool(stop)

    def _note_skipped(self) -> None:
        for item in gather_object(self.new):
            self.skipped[item["video_id"]] = {"path": item["path"], "error": item["error"]}
        if self.accelerator.is_main_process:
            write_file(self.report, json.dumps(self.skipped, indent=2, ensure_ascii=False) + "\n")
        if len(self.skipped) > self.most_skipped:
            first = next(iter(self.skipped.items()))
            raise ValueError(
                f"{len(self.skipped)} training videos cannot be decoded, more than data.max_skipped_share allows; "
                f"see {self.report}. The first: {first[0]} ({first[1]['error']})"
            )

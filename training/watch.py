"""What all ranks agree on before a step changes the weights: is the loss a number, are videos broken, shall we stop."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dmae.data.clips import LoadedSplit
from dmae.files import write_file
from dmae.training.distributed import global_sum


class Diverged(ValueError):
    """The loss or a gradient is no finite number; the message names the step and the videos."""


@dataclass(frozen=True)
class SkipLimit:
    """How many of a split's listed videos may be lost: the missing and those that cannot be decoded, together."""

    split: str
    listed: int
    missing: list[dict]  # {"video_id", "video", "reason"}
    share: float

    @classmethod
    def of(cls, split: LoadedSplit, share: float = 1.0) -> "SkipLimit":
        return cls(split.report["split"], split.report["listed_videos"], split.missing, share)

    def lost(self, skipped: dict) -> str:
        """ "7 of 20 train videos are lost: 3 missing (first: …), 4 that cannot be decoded (first: …)" """
        parts = []
        if self.missing:
            first = self.missing[0]
            parts.append(f"{len(self.missing)} missing (first: {first['video_id']}: {first['reason']})")
        if skipped:
            name, first = next(iter(skipped.items()))
            parts.append(f"{len(skipped)} that cannot be decoded (first: {name}: {first['error']})")
        total = len(self.missing) + len(skipped)
        return f"{total} of {self.listed} {self.split} videos are lost: {', '.join(parts)}"

    def check(self, skipped: dict) -> None:
        """ValueError when more than `share` are lost. skipped: video_id -> {"path", "error"}."""
        if len(self.missing) + len(skipped) > self.share * self.listed:
            raise ValueError(
                f"{self.lost(skipped)}; data.max_skipped_share={self.share:g} allows {int(self.share * self.listed)}: "
                "restore them, or set it higher and say so with the results"
            )


class StepWatch:
    """Collects over the micro-batches of a step, then settles it in one exchange between the ranks.

    skipped: video_id -> {"path", "error"}, kept up to date and written to `report`; over `limit` the run stops.
    """

    def __init__(self, accelerator: Accelerator, skipped: dict, limit: SkipLimit, report: Path):
        self.accelerator, self.skipped, self.limit, self.report = accelerator, skipped, limit, report
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
            self.note_skipped(gather_object(self.new))
        if wrong:
            names = ", ".join(gather_object(self.names))
            raise Diverged(
                f"step {step}: the loss or its gradient is not a finite number; videos of the batch: {names}. "
                "The weights were left as they were, earlier checkpoints are kept: lower the learning rate, or look at "
                "these videos"
            )
        self._clear()
        return bool(stop)

    def note_skipped(self, items: list[dict]) -> None:
        """Keep `items` ({"video_id", "path", "error"}, the same on every rank); ValueError when they are too many."""
        for item in items:
            self.skipped[item["video_id"]] = {"path": item["path"], "error": item["error"]}
        if items and self.accelerator.is_main_process:
            write_file(self.report, json.dumps(self.skipped, indent=2, ensure_ascii=False) + "\n")
        self.limit.check(self.skipped)

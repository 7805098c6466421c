"""A run's place in its data, saved with every checkpoint, and what must be the same when it goes on."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from dmae.training.config import RunConfig


@dataclass
class RunState:
    """Plain numbers and names, written as `state.json`."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # epochs done
    batch: int = 0  # global batches consumed of the epoch under way
    validated: bool = True  # False between training and its validation
    samples: int = 0
    seconds: float = 0.0  # training and validation, over all resumptions
    best: dict = field(default_factory=dict)  # {"epoch", "step", "value", "metrics"}
    skipped: dict = field(default_factory=dict)  # video_id -> {"path", "error"}
    plan: dict = field(default_factory=dict)


def data_plan(config: RunConfig, rows, global_batch_size: int) -> dict:
    """What decides which pairs each step sees."""
    content = json.dumps([[row["video_id"], row["captions"], row["start"], row["end"]] for row in rows])
    return {
        "seed": config.training.seed,
        "global_batch_size": global_batch_size,
        "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        "dataloader_drop_last": config.training.dataloader_drop_last,
        "captions_per_epoch": config.data.captions_per_epoch,
        "train_videos": len(rows),
        "train_rows_sha256": hashlib.sha256(content.encode()).hexdigest(),
    }


def refuse_other_plan(saved: dict, current: dict, path: Path) -> None:
    """A resumed run must see the pairs the interrupted one would have seen."""
    changed = [
        f"{name}: {saved.get(name)!r} -> {value!r}" for name, value in current.items() if saved.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{path}: was made with other data or batches ({'; '.join(changed)}), so its place in the epoch means "
            "nothing here; restore these settings, or start a new run from its weights with model.from_pretrained"
        )

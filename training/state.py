"""A run's place in its data, saved with every checkpoint, and what must be the same when it goes on."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from dmae.training.config import RunConfig, config_from_dict

# What a run that goes on may change: where things lie, how fast it runs, what it tells and keeps. None of these changes
# what is learned. (The batch may be spelled per device: the plan holds the global one.)
MAY_CHANGE = {
    "source",
    "variant",
    "model.attn_implementation",
    *(f"data.{name}" for name in ("annotations", "videos", "cache_frames", "max_skipped_share", "num_workers")),
    *(f"training.{name}" for name in ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")),
    *(f"training.{name}" for name in ("train_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size")),
    *(f"training.{name}" for name in ("gradient_cache_chunk", "gradient_checkpointing", "torch_compile")),
    *(f"training.{name}" for name in ("logging_steps", "save_steps", "save_total_limit", "report_to")),
}
ABSENT = "not set"
NEEDED = {"step", "epoch", "batch", "validated", "plan", "config"}  # an older state may lack what came later


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
    config: dict = field(default_factory=dict)  # of the whole run

    @classmethod
    def of(cls, saved, path: Path) -> "RunState":
        """From the content of a state.json. ValueError where another version wrote it."""
        kinds = {item.name: type(getattr(cls(), item.name)) for item in fields(cls)}
        if not isinstance(saved, dict) or not NEEDED <= saved.keys() <= kinds.keys():
            named = ", ".join(sorted(saved)) if isinstance(saved, dict) else type(saved).__name__
            raise ValueError(f"{path}: its state.json is of another version (it holds {named}); start the run anew")
        for name, value in saved.items():
            if not isinstance(value, (int, float) if kinds[name] is float else kinds[name]):
                raise ValueError(f"{path}: {name} in state.json is {value!r:.60}, expected {kinds[name].__name__}")
        return cls(**saved)


def data_plan(rows, global_batch_size: int) -> dict:
    """What decides, besides the configuration, which pairs each step sees."""
    content = json.dumps([[row["video_id"], row["captions"], row["start"], row["end"]] for row in rows])
    return {
        "global_batch_size": global_batch_size,
        "train_videos": len(rows),
        "train_rows_sha256": hashlib.sha256(content.encode()).hexdigest(),
    }


def refuse_other_run(saved: RunState, config: RunConfig, plan: dict, path: Path) -> None:
    """A run that goes on does so as it began. ValueError names every setting and every fact that is another now."""
    # words that are newer than the run, at their defaults
    began = config_from_dict(saved.config, source=f"{path}/state.json")
    before, now = _flat(began.to_dict()) | saved.plan, _flat(config.to_dict()) | plan
    changed = [
        f"{name}: {before.get(name, ABSENT)!r} -> {now.get(name, ABSENT)!r}"
        for name in dict.fromkeys([*before, *now])
        if name not in MAY_CHANGE and before.get(name, ABSENT) != now.get(name, ABSENT)
    ]
    if changed:
        raise ValueError(
            f"{path}: belongs to a run with other settings or data ({'; '.join(changed)}); go on with those of that "
            "run, or start a new one in another output_dir from its weights, with model.from_pretrained"
        )


def _flat(config: dict) -> dict:
    """{"section.key": value}; nested model words (a tower's) stay one value."""
    flat = {}
    for section, words in config.items():
        named = isinstance(words, dict)
        flat |= {f"{section}.{key}": value for key, value in words.items()} if named else {section: words}
    return flat

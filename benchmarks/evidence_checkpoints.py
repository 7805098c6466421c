"""The study's checkpoints: towers that learned from stills, each then alone, and saw clips with other switches on.

All share their first steps (one thing a picture, nouns first), which cost the most. Then each goes on by itself
over its own two thirds of the mixed stills in its own order, while the scale rises to CLIP's 100, and last over clips
of its own with the switches that `CHECKPOINT_SWITCHES` gives it. Only the towers are kept: what a run adds starts anew.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from evidence_design import CHECKPOINT_SWITCHES, WORLD, Job, Settings, cell
from evidence_run import fine_tune, see
from evidence_towers import TOWER_PARTS, Pretraining, pretrain, still_quality, study_config
from evidence_world import SIZE, VOCABULARY, WORDS, load_stills, load_world

from dmae.files import new_file, write_file
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

FIRST = (  # (stills, how many, plan)
    ("noun", 8000, Pretraining(steps=500, batch=64, rate=2e-3)),
    ("single", 6000, Pretraining(steps=250, batch=64, rate=1.5e-3)),
)
OWN = Pretraining(steps=220, batch=64, rate=1.5e-3, scale_to=100.0)
MIXED, HELD_OUT = 8000, 500
WARM_UP = {"train": 384, "validation_groups": 1, "validation_singles": 0, "test_groups": 1, "test_singles": 0}
TEXT_AND_PICTURE = {
    "interaction": "mean",
    "partial_order": False,
    "temporal_layers": 0,
    "textual_attention": False,
    "visual_attention": False,
}


def load_checkpoint(number: int, folder: Path, log=print) -> dict[str, dict[str, torch.Tensor]]:
    """{part: state dict} of checkpoint `number`, made on first use (about a CPU minute)."""
    path = folder / f"checkpoint-{number}.pt"
    if not path.exists():
        towers, quality = make_checkpoint(number, folder, log)
        write_file(path.with_suffix(".json"), json.dumps(quality) + "\n")
        with new_file(path) as partial:
            torch.save(towers, partial)
    return torch.load(path, weights_only=True)


def make_checkpoint(number: int, folder: Path, log) -> tuple[dict, dict]:
    model = still_model()
    model.load_state_dict(torch.load(first_steps(folder, log), weights_only=True))
    stills = load_stills("mixed", MIXED, folder)
    held_out = np.arange(HELD_OUT)
    rows = HELD_OUT + np.random.default_rng([number, 8]).permutation(MIXED - HELD_OUT)[: 2 * MIXED // 3]
    log(f"checkpoint {number}: {OWN.steps} steps of its own")
    pretrain(model, {name: value[rows] for name, value in stills.items()}, OWN, seed=number, log=log)
    quality = {"checkpoint": number, "warm_up": CHECKPOINT_SWITCHES[number], **still_quality(model, stills, held_out)}
    log(f"  {quality}")
    return warmed_up(number, towers_of(model), folder), quality


def still_model() -> DMAEForTextVideoRetrieval:
    torch.manual_seed(0)
    words = {**TEXT_AND_PICTURE, "logit_scale_init_value": 3.4}
    return DMAEForTextVideoRetrieval(study_config(SIZE, 1, WORDS, VOCABULARY, **words))


def first_steps(folder: Path, log) -> Path:
    """The weights that all checkpoints start from."""
    path = folder / "first-steps.pt"
    if not path.exists():
        model = still_model()
        for name, count, plan in FIRST:
            log(f"{plan.steps} first steps on stills: {name}")
            pretrain(model, load_stills(name, count, folder), plan, seed=0, log=log)
        with new_file(path) as partial:
            torch.save(model.state_dict(), partial)
    return path


def towers_of(model) -> dict[str, dict[str, torch.Tensor]]:
    return {part: {k: v.clone() for k, v in getattr(model, part).state_dict().items()} for part in TOWER_PARTS}


def warmed_up(number: int, towers: dict, folder: Path) -> dict:
    """The same towers after five epochs on a few clips of their own, with the checkpoint's switches on."""
    row = cell(*CHECKPOINT_SWITCHES[number])
    world = see(load_world(replace(WORLD, **WARM_UP), folder, seed=1000 + number), towers, ("train",))
    job = Job("warm-up", row.name, number, number, Settings(start_scale=50.0, tower_rate=3e-4, new_rate=1e-3))
    model, _ = fine_tune(row, job, towers, world)
    return with_upper_blocks(towers, model)


def with_upper_blocks(towers: dict, model) -> dict:
    """`towers` with the last blocks, final norms and projections of a fine-tuned model."""
    towers = {part: dict(states) for part, states in towers.items()}
    for part, norm in (("vision_model", "post_layernorm"), ("text_model", "final_layer_norm")):
        last = max(int(name.split(".")[2]) for name in towers[part] if name.startswith("encoder.layers"))
        upper = getattr(model, part)
        for name, value in upper.block.state_dict().items():
            towers[part][f"encoder.layers.{last}.{name}"] = value.clone()
        for name, value in getattr(upper, norm).state_dict().items():
            towers[part][f"{norm}.{name}"] = value.clone()
    for part in ("text_projection", "visual_projection"):
        towers[part] = {name: value.clone() for name, value in getattr(model, part).state_dict().items()}
    return towers

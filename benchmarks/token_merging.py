"""Token merging in the vision tower: time and memory of a B/16 tower, and what it costs in rsum on MovingObjects.

    python benchmarks/token_merging.py                        # what has no result yet: half an hour of CPU
    python benchmarks/token_merging.py --only tower           # seconds and bytes alone
    python benchmarks/token_merging.py --only tuning          # learning rates, on validation
    python benchmarks/token_merging.py --only rsum --seeds 1  # the first block of each checkpoint

The tower: CLIP's B/16 with random weights, forward and backward over a few frames, on one thread; CPU seconds, and
bytes of everything that operations made and kept alive at once. The rsum: the checkpoints and the world of the
evidence study (`evidence.py`; towers 64 wide, three vision blocks over 16 patches, pretrained on stills), whole
towers fine-tuned from pixels for five epochs with `temporal_input: patch`. In a block (a checkpoint with a seed) all
amounts of merging start from the same weights and see the same batches, and models that never merged are scored with
merging too. Each finished part is kept in benchmarks/results/token_merging.json; the next call does what is missing.
"""

import argparse
import json
import platform
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from evidence_checkpoints import load_checkpoint
from evidence_design import BASE, CHECKPOINT_SWITCHES, WORLD, Settings
from evidence_run import build_towers, epoch_batches, measures, options_of
from evidence_stats import estimate
from evidence_towers import TEXT_INPUTS, as_pixels
from evidence_world import FRAMES as CLIP_FRAMES
from evidence_world import Split, load_world

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.files import write_file
from dmae.inference.conditions import code_version
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.training.memory import LiveBytes
from dmae.training.objective import Objective
from dmae.training.optimizer import make_optimizer, make_scheduler

B16 = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
FRAMES = 4
TOWER_MERGES = (0, 4, 8, 13, 16)
MERGES = (0, 4, 8)  # of 16 patches, before the second block and the third: 17, 13, 9 tokens; 17, 9, 5
RATES = (3e-4, 1e-3)  # of the towers, chosen on validation
START_SCALE, EPOCHS = 100.0, 5
TUNING_SEED, TUNING_CHECKPOINTS = 100, (0, 1)


def tower(merge: int, repeats: int = 3) -> dict:
    """CPU seconds (the best of `repeats`) and peak bytes of a step of the vision tower alone."""
    torch.manual_seed(0)
    words = dict(vision_config=dict(B16, image_size=224), temporal_input="patch", temporal_layers=0, merge_tokens=merge)
    model = DMAEForTextVideoRetrieval(DMAEConfig(partial_order=False, **words))
    frames = torch.randn(FRAMES, 3, 224, 224)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model.get_frame_tokens(frames).square().sum().backward()

    step()  # gradients are there from now on: what follows is activations
    with LiveBytes() as meter:
        step()
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        step()
        best = min(best, time.process_time() - started)
    tokens = 197 - 11 * merge
    return {"merge_tokens": merge, "last_tokens": tokens, "cpu_seconds": round(best, 3), "peak_bytes": max(meter.curve)}


def fine_tuned(merge: int, rate: float, checkpoint: int, seed: int, splits: dict[str, Split], work: Path):
    """A checkpoint's towers, all of them trained on the world's clips, and the CPU seconds that took."""
    torch.manual_seed(seed)
    words = {**BASE, "temporal_input": "patch", "merge_tokens": merge}
    model = build_towers(load_checkpoint(checkpoint, work), **words).train()
    model.logit_scale.data.fill_(np.log(START_SCALE))
    objective, split = Objective(model), splits["train"]
    options = options_of(Settings(START_SCALE, rate))
    optimizer = make_optimizer(model, options)
    captions = split.texts["input_ids"].shape[1]
    batches = [batch for epoch in range(EPOCHS) for batch in epoch_batches(split.families, captions, seed, epoch)]
    schedule = make_scheduler(optimizer, options, len(batches))
    started = time.process_time()
    for rows, told in batches:
        ids = torch.from_numpy(rows)
        objective(**inputs(split, rows, told), video_ids=ids, caption_ids=ids)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        model.clamp_logit_scale()
    return model.eval(), round(time.process_time() - started, 1)


def inputs(split: Split, rows: np.ndarray, told: np.ndarray) -> dict[str, torch.Tensor]:
    """What the model takes, for some videos and one caption each."""
    texts = {name: split.texts[name][rows, told] for name in TEXT_INPUTS}
    frames = split.frames[rows]
    pixels = as_pixels(frames.reshape(-1, *frames.shape[2:])).unflatten(0, frames.shape[:2])
    seen = torch.ones(len(rows), CLIP_FRAMES, dtype=torch.bool)
    return {**texts, "word_weights": texts["word_weights"].float(), "pixel_values": pixels, "video_mask": seen}


@torch.no_grad()
def rsum(model, split: Split, merge: int) -> dict[str, float]:
    """rsum both ways of every video's first caption, with `merge` tokens merged whatever the model was trained with."""
    model.config.merge_tokens = merge
    parts = []
    for rows in np.array_split(np.arange(len(split)), max(1, len(split) // 64)):
        batch = inputs(split, rows, np.zeros_like(rows))
        text = model.get_text_features(**{name: batch[name] for name in TEXT_INPUTS})
        parts.append((text, model.get_video_features(batch["pixel_values"], batch["video_mask"])))
    text, video = (side[0].cat(side) for side in zip(*parts))
    found = measures(similarity(text, video, model.config).numpy(), split)
    return {name: found[name] for name in ("text_to_video_rsum", "video_to_text_rsum")}


def tuned(merge: int, rate: float, checkpoint: int, splits, work) -> dict:
    """How a row does with a learning rate, on validation: rsum, the mean of both ways."""
    model, _ = fine_tuned(merge, rate, checkpoint, TUNING_SEED, splits, work)
    found = sum(rsum(model, splits["validation"], merge).values()) / 2
    return {"merge_tokens": merge, "rate": rate, "checkpoint": checkpoint, "validation_rsum": round(found, 3)}


def chosen_rates(tuning: list[dict]) -> dict[int, float]:
    """For each amount of merging the rate with the highest validation rsum, summed over the checkpoints tried."""
    totals: dict[tuple[int, float], float] = {}
    for row in tuning:
        key = row["merge_tokens"], row["rate"]
        totals[key] = totals.get(key, 0.0) + row["validation_rsum"]
    return {merge: max(RATES, key=lambda rate: totals[merge, rate]) for merge in MERGES}


def block(merge: int, checkpoint: int, seed: int, rate: float, splits, work) -> dict:
    model, seconds = fine_tuned(merge, rate, checkpoint, seed, splits, work)
    row = {"merge_tokens": merge, "checkpoint": checkpoint, "seed": seed, "rate": rate, "cpu_seconds": seconds}
    row["test"] = rsum(model, splits["test"], merge)
    if not merge:
        row["test_merging"] = {str(more): rsum(model, splits["test"], more) for more in MERGES if more}
    return row


def effects(blocks: list[dict]) -> list[dict]:
    """rsum with merging minus without, paired in blocks: mean and 95 % interval, for each amount and both ways."""
    rows = {(row["merge_tokens"], row["checkpoint"], row["seed"]): row for row in blocks}
    whole = {key[1:]: row for key, row in rows.items() if key[0] == 0}
    found = []
    for merge, way in product([merge for merge in MERGES if merge], ("text_to_video_rsum", "video_to_text_rsum")):
        trained = {key[1:]: row["test"][way] for key, row in rows.items() if key[0] == merge}
        tested = {key: row["test_merging"][str(merge)][way] for key, row in whole.items()}
        for how, scores in (("trained so", trained), ("merged at test alone", tested)):
            gaps = [scores[key] - whole[key]["test"][way] for key in scores if key in whole]
            if len(gaps) > 1:
                effect = estimate(gaps)
                values = {"effect": effect.effect, "low": effect.low, "high": effect.high}
                row = {"merge_tokens": merge, "how": how, "metric": way, "blocks": len(gaps)}
                row["without"] = sum(line["test"][way] for line in whole.values()) / len(whole)
                found.append(row | values)
    return [{name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()} for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["tower", "tuning", "rsum"])
    parser.add_argument("--seeds", type=int, default=2, help="of each checkpoint")
    parser.add_argument("--work", type=Path, default=Path("outputs/evidence"), help="checkpoints and worlds")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "token_merging.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    found = {"conditions": conditions(), **{name: kept.get(name, []) for name in ("tower", "tuning", "blocks")}}

    def keep(part: str, row: dict) -> None:
        found[part].append(row)
        print(part, json.dumps(row), flush=True)
        text = json.dumps({**found, "effects": effects(found["blocks"])}, indent=1)
        write_file(options.output, text + "\n")

    if options.only in (None, "tower"):
        for merge in sorted({*TOWER_MERGES} - {row["merge_tokens"] for row in found["tower"]}):
            keep("tower", tower(merge))
    if options.only == "tower":
        return
    splits = load_world(WORLD, options.work)
    tried = {(row["merge_tokens"], row["rate"], row["checkpoint"]) for row in found["tuning"]}
    for key in product(MERGES, RATES, TUNING_CHECKPOINTS):
        if key not in tried:
            keep("tuning", tuned(*key, splits, options.work))
    if options.only == "tuning":
        return
    rates = chosen_rates(found["tuning"])
    done = {(row["merge_tokens"], row["checkpoint"], row["seed"]) for row in found["blocks"]}
    for seed, checkpoint, merge in product(range(options.seeds), range(len(CHECKPOINT_SWITCHES)), MERGES):
        if (merge, checkpoint, seed) not in done:
            keep("blocks", block(merge, checkpoint, seed, rates[merge], splits, options.work))


def conditions() -> dict:
    machine = platform.processor() or platform.machine()
    shape = {"tower": {**B16, "image_size": 224, "frames": FRAMES}, "world": "MovingObjects, the evidence study's"}
    return {**shape, "threads": 1, "cpu": machine, "code": code_version()}


if __name__ == "__main__":
    main()

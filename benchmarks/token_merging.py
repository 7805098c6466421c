"""Token merging in the vision tower: time and memory of a B/16 tower, and what it costs in rsum on MovingDigits.

    python benchmarks/token_merging.py                        # what has no result yet: ten minutes of CPU
    python benchmarks/token_merging.py --only tower           # seconds and bytes alone
    python benchmarks/token_merging.py --steps 4 --seeds 1 --output /tmp/try.json   # tries the script out

The tower: CLIP's B/16 with random weights, forward and backward over a few frames, on one thread; CPU seconds, and
bytes of everything that operations made and kept alive at once. The training runs: one small model (three blocks on 16
patches a frame) from random weights, everything equal but `merge_tokens`, scored on the test split of MovingDigits.
Each finished part is kept in benchmarks/results/token_merging.json; the next call does what is missing there.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.data.moving_digits.corpus import render_moving_digits
from dmae.data.registry import DatasetLocation
from dmae.evaluation.evaluate_model import EvaluationOptions, evaluate_model
from dmae.inference.conditions import code_version
from dmae.training.config import load_config
from dmae.training.loop import train
from dmae.training.memory import LiveBytes

B16 = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
FRAMES = 4
TOWER_MERGES = (0, 4, 8, 13, 16)
TRAINED_MERGES = (0, 4)
TRAINED = {
    "model.vision_config.num_hidden_layers": 3,
    "data.captions_per_epoch": "one",
    "data.num_workers": 0,
    "training.num_train_epochs": 1000,
    "training.report_to": "[]",
    "training.logging_steps": 50,
}


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


def trained(merge: int, seed: int, steps: int, corpus: Path) -> dict:
    """rsum on the test split after `steps` steps, and what the steps took."""
    with tempfile.TemporaryDirectory() as folder:
        words = {**TRAINED, "model.merge_tokens": merge, "training.seed": seed, "training.max_steps": steps}
        words |= {"data.videos": corpus, "training.output_dir": f"{folder}/run"}
        config = load_config("moving_digits", [f"{name}={value}" for name, value in words.items()])
        started = time.process_time()
        result = train(config)
        seconds = time.process_time() - started
        options = EvaluationOptions(split="test", samples=0, num_workers=0)
        location = DatasetLocation("videofolder", videos=str(corpus))
        scored = evaluate_model(str(result.output_dir / "last"), location, Path(folder) / "test", options)
    metrics = {name: value for name, value in scored[0]["metrics"].items() if name.endswith(("rsum", "R@1"))}
    row = {"merge_tokens": merge, "seed": seed, "steps": steps, "cpu_seconds": round(seconds, 1), "metrics": metrics}
    return row | {"git": code_version()["git"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["tower", "trained"])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--corpus", type=Path, default=Path("outputs/token_merging/corpus"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "token_merging.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    found = {"conditions": conditions(options), "tower": found.get("tower", []), "trained": found.get("trained", [])}

    def keep(part: str, row: dict) -> None:
        found[part].append(row)
        print(part, json.dumps(row), flush=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if options.only != "trained":
        for merge in {*TOWER_MERGES} - {row["merge_tokens"] for row in found["tower"]}:
            keep("tower", tower(merge))
    if options.only != "tower":
        corpus = render_moving_digits(options.corpus, preset="ablation")
        done = {(row["merge_tokens"], row["seed"], row["steps"]) for row in found["trained"]}
        for seed in range(options.seeds):
            for merge in TRAINED_MERGES:
                if (merge, seed, options.steps) not in done:
                    keep("trained", trained(merge, seed, options.steps, corpus))


def conditions(options) -> dict:
    machine = platform.processor() or platform.machine()
    shape = {"tower": {**B16, "image_size": 224, "frames": FRAMES}, "corpus": "MovingDigits, preset ablation"}
    return {**shape, "threads": 1, "cpu": machine, "code": code_version()}


if __name__ == "__main__":
    main()

"""What adapters save: trainable parameters, files, and peak memory of training steps, beside full fine-tuning.

    python benchmarks/adapters.py        # some five CPU minutes; writes benchmarks/results/adapters.json

CLIP B/32's true size with random weights, `training.lora: {r: 8}` against training everything, two steps of AdamW on
random pairs, each way in a process of its own: the peak is that process's resident memory, less what it held before the
model was made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.inference.conditions import code_version, hardware
from dmae.training.adapters import add_adapters, save_adapter, trainable

WAYS = ("full", "lora")
TEXT = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, pairs: int, frames: int, steps: int) -> dict:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before = peak_megabytes()
    vision = dict(VISION, image_size=224, patch_size=32)
    model = DMAEForTextVideoRetrieval(DMAEConfig(text_config=TEXT, vision_config=vision, max_frames=frames)).train()
    if way == "lora":
        add_adapters(model, r=8)
    learns, parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    words = torch.randint(3, 49000, (pairs, model.config.max_words))
    words[:, 0], words[:, -1] = 49406, 49407
    for _ in range(steps):
        model(input_ids=words, pixel_values=torch.randn(pairs, frames, 3, 224, 224)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = peak_megabytes() - before
    return {
        "trained_parameters": learns,
        "parameters": parameters,
        "peak_memory_mb": round(peak),
        "optimizer_mb": round(sum(t.nbytes for state in optimizer.state.values() for t in state.values()) / 1e6),
        **saved_megabytes(model, way),
    }


def saved_megabytes(model, way: str) -> dict:
    """What is published: the whole model, or the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        if way == "lora":
            save_adapter(model, "openai/clip-vit-base-patch32", folder)
            file = Path(folder) / "adapter_model.safetensors"
        else:
            model.save_pretrained(folder)
            file = Path(folder) / "model.safetensors"
        return {"file_mb": round(file.stat().st_size / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process, printed")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    sizes = {"pairs": given.pairs, "frames": given.frames, "steps": given.steps}
    if given.way:
        print(json.dumps(measure(given.way, **sizes)))
        return
    rows = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *(f"--{name}={value}" for name, value in sizes.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        rows[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, rows[way], flush=True)
    conditions = {**sizes, "model": "CLIP B/32 towers, random weights, 4 temporal layers, TPM-CL", "r": 8}
    conditions |= {"dtype": "float32", "threads": 1, **hardware(torch.device("cpu")), "code": code_version()}
    result = {"conditions": conditions, "rows": rows}
    Path(__file__).with_name("results").joinpath("adapters.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What one clip costs on a CPU with each preset's vision tower: CPU seconds of one thread, random weights of true size.

python benchmarks/backbones.py       # some two CPU minutes; writes benchmarks/results/backbones.json

A clip is 12 frames, or the one window of a tower that sees windows. Run it on a machine that does nothing else.
"""

import json
import os
import time
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoPrismVideoModel,
    VideoPrismVisionConfig,
)

from dmae.inference.conditions import code_version, hardware
from dmae.inference.presets import PRESETS

FRAMES, TIMED = 12, 2  # a clip's frames, and those that are timed: one frame costs what another costs
BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)


def tower_of(preset) -> torch.nn.Module:
    sizes = dict(LARGE if "large" in preset.name else BASE, image_size=preset.size, patch_size=preset.patch)
    if preset.family.startswith("siglip"):
        return SiglipVisionModel(SiglipVisionConfig(**sizes)).eval()
    return CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()


@torch.no_grad()
def cpu_seconds(preset, repeats: int = 2) -> tuple[float, int]:
    """(CPU seconds of a clip, its frames), the least of `repeats`."""
    if preset.family == "videoprism":
        config = VideoPrismVisionConfig()
        tower, frames = VideoPrismVideoModel._from_config(config).eval(), config.num_frames
        pixels = torch.randn(1, frames, 3, preset.size, preset.size)
        return round(least(lambda: tower(pixel_values_videos=pixels), repeats), 1), frames
    tower, pixels = tower_of(preset), torch.randn(TIMED, 3, preset.size, preset.size)
    return round(least(lambda: tower(pixel_values=pixels), repeats) * FRAMES / TIMED, 1), FRAMES


def least(run, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    torch.set_num_threads(1)
    rows = {preset.name: cpu_seconds(preset) for preset in PRESETS}
    conditions = {
        "timed_frames": f"{TIMED} of a clip's frames, or a whole window",
        "threads": 1,
        "dtype": "float32",
        "weights": "random, of the true size",
        "taken": "the least of two runs, process time",
        "attention": "as transformers chooses: sdpa, VideoPrism eager",
        "load_average": round(os.getloadavg()[0], 2),
        **hardware(torch.device("cpu")),
        "code": code_version(),
    }
    result = {
        "conditions": conditions,
        "cpu_seconds_per_clip": {name: seconds for name, (seconds, _) in rows.items()},
        "frames_per_clip": {name: frames for name, (_, frames) in rows.items()},
    }
    Path(__file__).with_name("results").joinpath("backbones.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What one clip costs on a CPU with each preset's vision tower: CPU seconds of one thread, random weights of true size.

python benchmarks/backbones.py       # some 30 CPU seconds; writes benchmarks/results/backbones.json
"""

import json
import time
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from dmae.inference.presets import PRESETS

FRAMES, TIMED = 12, 2  # a clip's frames, and those that are timed: a frame costs what the others cost
BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)


def tower_of(preset) -> torch.nn.Module:
    sizes = dict(LARGE if "large" in preset.name else BASE, image_size=preset.size, patch_size=preset.patch)
    if preset.family.startswith("siglip"):
        return SiglipVisionModel(SiglipVisionConfig(**sizes)).eval()
    return CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()


@torch.no_grad()
def cpu_seconds(preset, repeats: int = 2) -> float:
    tower, frames = tower_of(preset), torch.randn(TIMED, 3, preset.size, preset.size)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        tower(pixel_values=frames)
        taken.append(time.process_time() - start)
    return round(min(taken) * FRAMES / TIMED, 1)


def main() -> None:
    torch.set_num_threads(1)
    rows = {preset.name: cpu_seconds(preset) for preset in PRESETS}
    capability = torch.backends.cpu.get_cpu_capability()
    conditions = {
        "frames": FRAMES,
        "timed_frames": TIMED,
        "threads": 1,
        "dtype": "float32",
        "torch": torch.__version__,
        "cpu": capability,
    }
    result = {"conditions": conditions, "cpu_seconds_per_clip": rows}
    Path(__file__).with_name("results").joinpath("backbones.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

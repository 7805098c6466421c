"""How many videos a second the model embeds, from frames that are decoded: per batch size and type of number.

    python benchmarks/embedding.py                                   # CUDA where there is a GPU
    python benchmarks/embedding.py --towers tiny --batch 2 4 --steps 2   # tries the script out on a CPU

Frames are random, on the device, full length; what decoding adds is in decode_cpu.json. Utilisation is counted
operations per second over those of a large matrix product of the same type on the same device. Writes
benchmarks/results/embedding_<device>.json.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from train_step import DTYPES, TOWERS, Stopwatch, make_objective, peak_flops

from dmae.inference.conditions import code_version


@torch.inference_mode()
def measure(towers: str, batch: int, dtype: str, compiled: bool, frames: int, steps: int, device: str) -> dict:
    """Median seconds of a batch after two to warm up."""
    model = make_objective(towers, "dmae_ti", frames, "patch", device).model.eval()
    model = model.to(DTYPES[dtype] or torch.float32)
    if compiled:
        model.vision_model.compile()
    side = model.config.vision_config.image_size
    pixels = torch.randn(batch, frames, 3, side, side, device=device)
    watch, seconds = Stopwatch(device), []
    with FlopCounterMode(display=False) as counter:
        model.get_video_features(pixels)
    if compiled:
        model.get_video_features(pixels)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        watch.seconds.clear()
        with watch.part("batch"):
            model.get_video_features(pixels)
        seconds.append(watch.seconds["batch"])
    middle, flops = statistics.median(seconds), counter.get_total_flops()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        "towers": towers,
        "batch": batch,
        "dtype": dtype,
        "compile": compiled,
        "videos_per_second": round(batch / middle, 2),
        "frames_per_second": round(batch * frames / middle, 1),
        "utilisation": round(flops / middle / peak_flops({"device": device, "dtype": dtype}), 3),
        "peak_memory_gib": None if peak is None else round(peak, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=["b32", "b16"], choices=list(TOWERS))
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="measure each with torch.compile as well")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for towers in options.towers:
        for dtype in options.dtypes:
            for batch in options.batch:
                for compiled in [False, True] if options.compile else [False]:
                    rows.append(measure(towers, batch, dtype, compiled, options.frames, options.steps, device))
                    print(json.dumps(rows[-1]), flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    conditions = {"device": name, "torch": torch.__version__, "frames": options.frames, "steps": options.steps}
    output = options.output or Path(__file__).parent / "results" / f"embedding_{device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"conditions": conditions, "code": code_version(), "cases": rows}, indent=1)
    output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

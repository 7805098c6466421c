"""One training step, taken apart: decoding, towers, head, backward, optimiser; time and peak memory per global batch.

    python benchmarks/train_step.py                          # CPU: B/32 towers with random weights, small batches
    python benchmarks/train_step.py --device cuda --dtype bf16 --batch 32 64 128 256 --towers b32 b16 --compile

Every case runs in a process of its own (so that its peak memory is its own), the variants one after the other. `head`
is everything of the forward pass outside the two CLIP towers: temporal encoder, attentions, similarity, losses.
Utilisation is counted operations per second over those of a matrix product on the same device. Without PyAV decoding is
left out. Writes benchmarks/results/train_step_<device>.json.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.training.objective import Objective

TEXT = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
TOWERS = {
    "tiny": (
        dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2),
        dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
    ),
    "b32": (TEXT, dict(image_size=224, patch_size=32)),
    "b16": (TEXT, dict(image_size=224, patch_size=16)),
}
VARIANTS = {
    "baseline": dict(textual_attention=False, visual_attention=False, loss="info_nce", partial_order=False),
    "dmae_ti": {},
    "dmae_wti": dict(interaction="wti"),
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stopwatch:
    """Seconds per part of a step; on a GPU the queue is emptied at each border, so parts add up to the whole."""

    def __init__(self, device: str):
        self.device, self.seconds = device, {}

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str):
        started = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - started

    def watch(self, module: torch.nn.Module, name: str) -> None:
        """Count a module's forward passes as part `name`."""
        starts = []
        module.register_forward_pre_hook(lambda *_: starts.append(self.now()))

        def done(*_):
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - starts.pop()

        module.register_forward_hook(done)


def make_batch(config: DMAEConfig, size: int, device: str) -> dict[str, torch.Tensor]:
    """Full-length pairs: every word and every frame is real."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, config.text_config.vocab_size, (size, config.max_words), generator=generator)
    ids[:, -1] = config.text_config.eos_token_id
    mask = torch.ones_like(ids, dtype=torch.bool)
    side = config.vision_config.image_size
    batch = {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "word_mask": mask.clone(),
        "word_weights": torch.ones(size, config.max_words),
        "pixel_values": torch.randn(size, config.max_frames, 3, side, side, generator=generator),
        "video_mask": torch.ones(size, config.max_frames, dtype=torch.bool),
        "video_ids": torch.arange(size),
        "caption_ids": torch.arange(size),
    }
    batch["word_mask"][:, [0, -1]] = False
    return {name: value.to(device) for name, value in batch.items()}


def make_objective(towers: str, variant: str, frames: int, temporal_input: str, device: str) -> Objective:
    text, vision = TOWERS[towers]
    words = dict(text_config=dict(text), vision_config=dict(vision), projection_dim=text["hidden_size"])
    config = DMAEConfig(**words, max_frames=frames, temporal_input=temporal_input, **VARIANTS[variant])
    torch.manual_seed(0)
    model = DMAEForTextVideoRetrieval(config)
    return Objective(model).to(device).train()


def make_step(case: dict, watch: Stopwatch) -> Callable[[], None]:
    """One step of training, its parts timed by `watch`; models, batch and optimiser are made here."""
    device, dtype = case["device"], DTYPES[case["dtype"]]
    objective = make_objective(case["towers"], case["variant"], case["frames"], case["temporal_input"], device)
    model = objective.model
    batch = make_batch(model.config, case["batch"], device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    if case["compile"]:
        for tower in (model.text_model, model.vision_model, model.temporal):
            tower.compile()
    for tower in (model.text_model, model.vision_model):
        watch.watch(tower, "towers")

    def step() -> None:
        with watch.part("forward"), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss = objective(**batch)["loss"]
        with watch.part("backward"):
            loss.backward()
        with watch.part("optimiser"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def measure(case: dict) -> dict:
    """Median seconds of each part over `steps` steps after one to warm up, peak memory, operations of a step."""
    torch.set_num_threads(case["threads"])
    watch, on_gpu = Stopwatch(case["device"]), case["device"] == "cuda"
    step = make_step(case, watch)
    with FlopCounterMode(display=False) as counter:
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rows = []
    for _ in range(case["steps"]):
        watch.seconds.clear()
        step()
        rows.append(dict(watch.seconds))
    parts = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    parts["head"] = parts["forward"] - parts["towers"]
    seconds = parts.pop("forward") + parts["backward"] + parts["optimiser"]
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flops = counter.get_total_flops()
    return {
        **case,
        "seconds": {name: round(value, 4) for name, value in parts.items()},
        "step_seconds": round(seconds, 4),
        "samples_per_second": round(case["batch"] / seconds, 2),
        "peak_memory_gib": round((torch.cuda.max_memory_allocated() if on_gpu else resident) / 2**30, 3),
        "gflop_per_step": round(flops / 1e9, 1),
        "utilisation": round(flops / seconds / peak_flops(case), 3),
    }


def peak_flops(case: dict) -> float:
    """Operations per second of a large square matrix product in the case's dtype: the best the device does here."""
    side = 8192 if case["device"] == "cuda" else 2048
    dtype = DTYPES[case["dtype"]] or torch.float32
    left = torch.randn(side, side, device=case["device"], dtype=dtype)
    watch, best = Stopwatch(case["device"]), float("inf")
    for _ in range(5):
        watch.seconds.clear()
        with watch.part("product"):
            left @ left
        best = min(best, watch.seconds["product"])
    return 2 * side**3 / best


def decode_seconds(frames: int, size: int) -> float | None:
    """Median seconds to decode, choose and resize one 30-second 320x240 H.264 clip; None without PyAV."""
    try:
        from dmae.data.miniature import Scene, write_clip
        from dmae.processing.frames_dmae import FrameSampler
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, Scene("red", "left"), seconds=30.0, size=(320, 240))
        sampler, times = FrameSampler(num_frames=frames, size=size), []
        for _ in range(5):
            started = time.perf_counter()
            sampler.decode(str(path))
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--towers", nargs="+", default=["b32"], choices=list(TOWERS))
    parser.add_argument("--variants", nargs="+", default=["baseline", "dmae_ti"], choices=list(VARIANTS))
    parser.add_argument("--batch", nargs="+", type=int, default=[2, 4], help="global batch sizes")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--temporal_input", default="patch", choices=["patch", "frame"])
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="measure each case with torch.compile as well")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/train_step_<device>.json")
    return parser.parse_args()


def main() -> None:
    options = parse()
    shared = {
        name: getattr(options, name) for name in ("device", "frames", "temporal_input", "dtype", "steps", "threads")
    }
    grid = itertools.product(
        options.towers, options.batch, [False, True] if options.compile else [False], options.variants
    )
    rows = []
    for towers, batch, compiled, variant in grid:
        case = {**shared, "towers": towers, "batch": batch, "compile": compiled, "variant": variant}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (case,)))
        row = rows[-1]
        print(
            f"{towers:>5} batch {batch:>4} {variant:<9}{' compiled' if compiled else '':<9}{row['step_seconds']:8.3f} s"
            f"  {row['samples_per_second']:8.1f} pairs/s  {row['peak_memory_gib']:6.2f} GiB"
            f"  {row['utilisation']:.0%} of a matmul's rate  {row['seconds']}"
        )
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    size = TOWERS[options.towers[0]][1]["image_size"]
    decode = decode_seconds(options.frames, size)
    if decode is not None:
        print(f"decoding {options.frames} frames of a 30 s 320x240 clip takes {decode:.4f} s on one core")
    conditions = {"device": name, "torch": torch.__version__, **shared}
    output = options.output or Path(__file__).parent / "results" / f"train_step_{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"conditions": conditions, "decode_seconds": decode, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

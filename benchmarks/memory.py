"""Peak memory of a training process: what `--dry-run` says, and what was measured.

    python benchmarks/memory.py                # some minutes; --cases NAME … measures these again and keeps the others
    python benchmarks/memory.py --quick        # towers of a few layers, two cases: tries the script out

Each case is estimated in one process and trained for two steps in another, which notes by how much its resident memory
rose above what it was before the model was made (on a GPU: the allocator's peak). The C library is told to hand freed
memory back at once, or what was freed would be counted. Writes benchmarks/results/memory_<device>.json.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from pathlib import Path

import torch

# Read when a process starts, as each case's does: without it, resident memory keeps what was freed.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
TOWER = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4)
SMALL = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1)
CASES = {
    "whole": {},
    "whole, bf16": dict(bf16=True),
    "running mean": dict(ema=0.999),
    "checkpointing": dict(gradient_checkpointing=True),
    "gradient cache of 4": dict(gradient_cache_chunk=4),
    "gradient cache of 4, checkpointing": dict(gradient_cache_chunk=4, gradient_checkpointing=True),
    "LoRA": dict(lora={"r": 8}),
    "6 tokens merged": dict(merge_tokens=6),
    "all of these": dict(gradient_cache_chunk=4, gradient_checkpointing=True, lora={"r": 8}, merge_tokens=6),
}


def parts(case: dict):
    """Model, frame sampler, accelerator, options, pairs and processes of a case."""
    from dmae import DMAEConfig, DMAEForTextVideoRetrieval, FrameSampler
    from dmae.training.adapters import add_adapters
    from dmae.training.build import make_accelerator
    from dmae.training.config import config_from_dict

    tower, words = (SMALL if case["small"] else TOWER), dict(case["words"])
    model_words = {"merge_tokens": words.pop("merge_tokens", 0)}
    config = config_from_dict({"training": {"train_batch_size": case["pairs"], "report_to": [], **words}})
    torch.manual_seed(0)
    text = dict(tower, vocab_size=49408, max_position_embeddings=77)
    vision = dict(tower, image_size=112, patch_size=16)
    sizes = dict(projection_dim=tower["hidden_size"], max_words=32, max_frames=6, temporal_input="patch")
    model = DMAEForTextVideoRetrieval(DMAEConfig(text_config=text, vision_config=vision, **sizes, **model_words))
    if config.training.lora:
        add_adapters(model, **config.training.lora.model_dump())
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, FrameSampler(num_frames=6, size=112), make_accelerator(config), config.training, case["pairs"], 1


def estimated(case: dict) -> dict:
    from dmae.training.memory import estimate

    started = time.process_time()
    memory = estimate(*parts(case))
    return {"estimated": memory.peak, "estimate_cpu_seconds": round(time.process_time() - started, 1)}


def measured(case: dict) -> dict:
    """Two steps as the training loop takes them, from frames in memory; the second has the optimiser's moments."""
    steps({**case, "small": True, "pairs": 2})  # what the libraries hold once they were used is not the run's
    peak = Peak()
    losses = steps(case)
    return {"measured": peak.bytes(), "losses": losses}


def steps(case: dict) -> list[float]:
    from torch.optim.swa_utils import AveragedModel

    from dmae.training.examples import to_model_inputs
    from dmae.training.gradient_cache import cached_backward
    from dmae.training.memory import Probe
    from dmae.training.objective import Objective
    from dmae.training.optimizer import make_optimizer

    model, sampler, accelerator, options, pairs, _ = parts(case)
    optimizer = make_optimizer(model, options)
    objective, optimizer = accelerator.prepare(Objective(model.train()), optimizer)
    average = AveragedModel(model) if options.ema is not None else None
    probe, losses = Probe(objective, sampler, accelerator), []
    for _ in range(2):
        inputs = to_model_inputs(probe.batch(pairs), sampler)
        if options.gradient_cache_chunk:
            losses.append(cached_backward(accelerator, objective, inputs, options.gradient_cache_chunk)["loss"])
        else:
            losses.append(objective(**inputs)["loss"])
            accelerator.backward(losses[-1])
        losses[-1] = float(losses[-1].detach())
        accelerator.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(model)
    assert all(map(torch.isfinite, torch.tensor(losses)))
    return losses


class Peak:
    """The most memory since this was made, above what there was: resident, or of the GPU's allocator."""

    def __init__(self):
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the highest mark so far
        self.start = self.highest()

    def highest(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    def bytes(self) -> int:
        return self.highest() - self.start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a batch")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="small towers, two cases, eight pairs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory_<device>.json")
    options = parser.parse_args()
    os.environ |= SETTINGS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ["whole", "all of these"] if options.quick else options.cases
    conditions = {"device": device, "cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    conditions |= {"towers": SMALL if options.quick else TOWER, "image": 112, "patch": 16, "frames": 6, "words": 32}
    output = options.output or Path(__file__).parent / "results" / f"memory_{device}.json"
    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    rows = {row["case"]: row for row in kept.get("cases", []) if kept["conditions"] == conditions}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        case = {"words": CASES[name], "pairs": 8 if options.quick else options.pairs, "small": options.quick}
        row = {"case": name, "pairs": case["pairs"]}
        for side in (estimated, measured):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row |= pool.apply(side, (case,))
        row["ratio"] = round(row["estimated"] / row["measured"], 3)
        rows[name] = row
        sizes = f"{row['estimated'] / 2**20:8.0f} MiB estimated {row['measured'] / 2**20:8.0f} MiB measured"
        print(f"{name:36}{sizes} {row['ratio']:7.3f}", flush=True)
        text = json.dumps({"conditions": conditions, "cases": list(rows.values())}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

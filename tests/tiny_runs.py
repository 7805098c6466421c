"""Small runs that the training tests share: a videofolder of generated clips and a configuration with tiny towers."""

import json
import os
import sys
from pathlib import Path

import torch

from dmae.training.config import config_from_dict

ROOT = Path(__file__).resolve().parents[1]


def tiny_recipe(videos: Path, output: Path, **training) -> dict:
    """A recipe (as YAML would give it) that trains in a second or two; `training` words override."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "model": {
            "projection_dim": 32,
            "text_config": dict(tower),
            "vision_config": {**tower, "image_size": 16, "patch_size": 8},
            "max_words": 16,
            "max_frames": 4,
            "temporal_layers": 1,
            "temporal_init": "random",
        },
        "processor": {"vocab_size": 300, "sampling": "uniform"},
        "data": {"videos": str(videos), "captions_per_epoch": "one", "num_workers": 0},
        "training": {
            "output_dir": str(output),
            "num_train_epochs": 2,
            "train_batch_size": 4,
            "learning_rate": 1e-3,
            "clip_learning_rate": None,
            "logging_steps": 1,
            "report_to": [],
            **training,
        },
    }


def tiny_config(videos: Path, output: Path, **training):
    return config_from_dict(tiny_recipe(videos, output, **training))


def write_recipe(path: Path, recipe: dict) -> Path:
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def environment(**extra: str) -> dict[str, str]:
    """One thread per process, CPU, no network."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **quiet, "ACCELERATE_USE_CPU": "true", **extra}


def launch(processes: int, port: int) -> list[str]:
    """The command prefix of `accelerate launch` with gloo on the CPU."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    accelerate += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    return accelerate + (["--multi_gpu", "--main_process_port", str(port)] if processes > 1 else ["--cpu"])


def torchrun(processes: int, port: int) -> list[str]:
    """The command prefix of `torchrun` on one machine."""
    meet = ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [sys.executable, "-m", "torch.distributed.run", *meet]


def launch_node(rank: int, nodes: int, port: str) -> list[str]:
    """The same for one of several machines with one process each, which meet on loopback."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no"]
    accelerate += ["--dynamo_backend", "no", "--num_machines", str(nodes), "--num_processes", str(nodes)]
    return [*accelerate, "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", port]


def torchrun_node(rank: int, nodes: int, port: str) -> list[str]:
    """The same by `torchrun`, which meets as under SLURM: every node asks at one address."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "tests"]
    nodes_of = ["--nnodes", str(nodes), "--nproc-per-node", "1", "--node-rank", str(rank)]
    return [sys.executable, "-m", "torch.distributed.run", *nodes_of, *meet, "--local-addr", "127.0.0.1"]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different

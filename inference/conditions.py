"""Under which conditions something was computed: code version and machine, for run records and results."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("dmae", "torch", "transformers", "accelerate", "datasets", "tokenizers", "av", "spacy", "numpy")


def code_version() -> dict:
    """Installed versions, and the git commit (with "dirty" when files differ from it) where the code is a checkout."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": platform.python_version(), "packages": versions, "git": _git()}


def _git() -> dict | None:
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware(device: torch.device) -> dict:
    """What a run or an evaluation ran on; results and model cards state it."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "device": device.type,
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "threads_per_process": torch.get_num_threads(),
    }

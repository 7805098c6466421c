"""A tiny model with random weights, its processor, and three short clips, as the tests of publishing need them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor, FrameSampler
from dmae.inference.identity import describe_model
from dmae.inference.loading import load_model_and_processor

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import LoopbackHub


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory) -> Path:
    """What training leaves: a model folder with weights, settings, processor and code."""
    torch.manual_seed(0)
    config = DMAEConfig.tiny(temporal_init="random", interaction="wti")
    config.text_config.vocab_size = len(tokenizer)
    folder = tmp_path_factory.mktemp("run") / "model"
    DMAEForTextVideoRetrieval(config).save_pretrained(folder)
    sampler = FrameSampler(num_frames=config.max_frames, size=config.vision_config.image_size)
    DMAEProcessor(tokenizer, sampler, max_words=config.max_words).save_pretrained(folder)
    return folder


RECORD = {
    "status": "finished",
    "updated": "2026-01-02T03:04:05+0000",
    "config": {
        "model": {"from_clip": "openai/clip-vit-base-patch32", "interaction": "wti"},
        "data": {"name": "videofolder", "videos": "/home/anna/holiday", "annotations": "/home/anna/holiday/list.csv"},
        "training": {"output_dir": "/home/anna/runs/first", "seed": 7, "metric_for_best_model": "text_to_video_rsum"},
    },
    "code": {
        "packages": {"dmae": "0.1.0", "torch": "2.13.0", "decord": None},
        "git": {"commit": "0f" * 20, "dirty": True},
    },
    "hardware": {"device": "cpu", "gpus": [], "cpu": "x86_64", "threads": 2, "processes": 1},
    "splits": {
        "train": {
            "dataset": "videofolder",
            "split": "train",
            "videos": 90,
            "captions": 180,
            "missing_videos": 2,
        },
        "validation": {
            "dataset": "videofolder",
            "split": "validation",
            "videos": 10,
            "captions": 20,
            "missing_videos": 0,
        },
    },
    "parameters": 151_000,
    "trained_parameters": 51_000,
    "seed": 7,
    "dtype": "fp32",
    "global_batch": 16,
    "steps": 30,
    "wall_seconds": 754.2,
    "best": {"epoch": 3, "value": 1.9, "metrics": {"text_to_video_R@1": 0.123456, "text_to_video_median_rank": 3.5}},
}


@pytest.fixture(scope="session")
def identity(model_folder) -> dict[str, str]:
    """The hashes by which records and results say whose they are."""
    made_by = describe_model(*load_model_and_processor(model_folder, device="cpu"))
    return {name: made_by[name] for name in ("weights", "processor")}


@pytest.fixture(scope="session")
def run_folder(model_folder, identity, tmp_path_factory) -> Path:
    """A run's output folder as training leaves it: best/, run.json with this machine's paths in it, a plot."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(model_folder, folder / "best")
    record = {**RECORD, "best": {**RECORD["best"], "weights": identity["weights"]}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "curves.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def online(hub, monkeypatch):
    """This process as a logged-in client of the loopback Hub (HF_ENDPOINT itself is read only at import)."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture(scope="session")
def clips(make_clip, tmp_path_factory) -> dict[str, Path]:
    """Three two-second clips that look different, by name."""
    folder = tmp_path_factory.mktemp("clips")
    return {name: make_clip(folder / f"{name}.mp4", seed) for seed, name in enumerate(("red", "green", "blue"))}


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="session")
def isolated():
    """`run_isolated`, for test modules, which cannot import this one."""
    return run_isolated


@pytest.fixture(scope="session")
def dmae():
    """`run_dmae`: the command line."""
    return run_dmae


ISOLATED = """
import sys
sys.path += {packages!r}
import importlib.util
assert importlib.util.find_spec("dmae") is None, "this package is importable: the test would prove nothing"
"""


def run_isolated(code: str, folder: Path, environment: dict[str, str], python: str = sys.executable) -> str:
    """Run `code` in a fresh `python -I -S` inside `folder`, where `dmae` cannot be imported; returns what it prints.

    `-I` ignores the working directory and PYTHON*; `-S` skips site-packages' .pth files, and with them this checkout's
    editable install, so site-packages itself is added by hand.
    """
    own = python == sys.executable
    packages = [str(Path(torch.__file__).parents[1])] if own else []  # an environment may stand on another's
    command = [python, "-I", *(["-S"] if own else []), "-c", ISOLATED.format(packages=packages) + code]
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def run_dmae(arguments: list[str], environment: dict[str, str], expect: int = 0) -> str:
    """`python -m dmae …` in its own process (the Hub's address is read at import); returns stdout and stderr."""
    command = [sys.executable, "-m", "dmae", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr

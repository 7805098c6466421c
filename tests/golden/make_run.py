"""Makes `run/`: a model and a checkpoint as this version writes them, for every later version to open.

    python tests/golden/make_run.py

Run it only when the format changes on purpose, and say so in the changelog: what people have saved will not open
either. It trains four steps on a generated data set, keeps the checkpoint of step 3, and notes what the run said next.
Left out of the model are its code, which belongs to its version, and the tagger (3 MB), which is the package's own.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor
from dmae.data.miniature import make_miniature
from dmae.processing.words_dmae import BUNDLED
from dmae.training.config import config_from_dict
from dmae.training.loop import train
from dmae.training.record import read_metrics

HERE = Path(__file__).resolve().parent / "run"
TOWER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
RECIPE = {
    "model": {
        "projection_dim": 8,
        "text_config": TOWER,
        "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
        "max_words": 12,
        "max_frames": 3,
        "temporal_layers": 1,
        "temporal_init": "random",
    },
    "processor": {"vocab_size": 280, "sampling": "uniform"},
    "data": {"captions_per_epoch": "one", "num_workers": 0},
    "training": {"train_batch_size": 4, "max_steps": 4, "save_steps": 3, "logging_steps": 1, "report_to": []},
}
CAPTIONS = ["a red square", "a small blue square"]


def golden_config(videos: Path, output: Path, **training):
    """The run's configuration on this machine's paths."""
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["videos"] = str(videos)
    recipe["training"] |= {"output_dir": str(output), **training}
    return config_from_dict(recipe)


def with_tagger(folder: Path) -> Path:
    """The model's folder, made whole again with the package's tagger."""
    for path in BUNDLED.glob("word_tagger.*"):
        shutil.copy(path, folder)
    return folder


def scores_of(folder: Path) -> list[list[float]]:
    """(2, 2) similarities of two captions with two clips of noise, by the model and the processor in `folder`."""
    model, processor = DMAEForTextVideoRetrieval.from_pretrained(folder).eval(), DMAEProcessor.from_pretrained(folder)
    batch = processor(text=CAPTIONS, return_tensors="pt")
    pixels = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return model(**batch, pixel_values=pixels).logits_per_text.tolist()


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the checkpoint names its paths, which should be nobody's
        train(golden_config(make_miniature("videofolder", "videos").videos, Path("out")))
        expected = {"scores": scores_of(Path("out/last"))}
        shutil.copytree("out/checkpoint-3", HERE / "checkpoint-3")
        shutil.copytree("out/last", HERE / "model", ignore=shutil.ignore_patterns("*.py", "word_tagger.*"))
        losses = {row["step"]: row["loss"] for row in read_metrics(Path("out/metrics.jsonl")) if "loss" in row}
        os.chdir(HERE)
    expected["loss_of_step_4"] = losses[4]
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

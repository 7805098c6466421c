"""Every recipe trains by the command its header shows, on a miniature of its dataset in the true file formats."""

import json
import re
import shlex
import shutil

import pytest
from transformers import CLIPConfig, CLIPModel

from dmae.training.config import load_config, recipes_folder
from dmae.training.record import read_metrics
from dmae.training.run import main
from dmae.training.tokenizer import train_bpe_tokenizer

DATASETS = {
    "msrvtt_b32": "msrvtt-9k",
    "msrvtt_b16": "msrvtt-9k",
    "msvd": "msvd",
    "didemo": "didemo",
    "activitynet": "activitynet",
    "own_data": "videofolder",
    "vatex": "vatex",
    "lsmdc": "lsmdc",
    "small_gpu": "msrvtt-9k",
}
VARIANTS = ("baseline", "dmae_ti", "dmae_wti", "dmae_plus")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP checkpoint on disk, in CLIP's format, with random weights and 77 text positions."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_bpe_tokenizer(["a red square moves left"], 300, 77)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = {"crop_size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


def header_command(name: str) -> list[str]:
    """The arguments of `dmae train` in the recipe's header."""
    header = (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    text = " ".join(line.lstrip("# ").rstrip("\\") for line in header.splitlines())
    command = re.search(r"dmae train (--config \S+(?: +--(?:variant|set) \S+)*)", text)
    return shlex.split(command.group(1))


def train_miniature(name, variant, miniature, clip, output) -> dict:
    """The header's command with this machine's paths, sizes that fit a miniature, and three steps."""
    data = miniature(DATASETS[name])
    arguments = header_command(name)
    arguments[arguments.index("--config") + 1] = str(recipes_folder() / f"{name}.yaml")
    small = {
        "model.from_clip": clip,
        "data.annotations": data.annotations,
        "data.videos": data.videos,
        "data.num_workers": 0,
        "training.train_batch_size": 4,
        "training.report_to": "[]",
        "training.logging_steps": 1,
    }
    if load_config(recipes_folder() / f"{name}.yaml").data.holdout:
        small["data.holdout"] = 3
    for key, value in small.items():
        arguments += ["--set", f"{key}={value}"]
    assert main([*arguments, "--variant", variant, "--max_steps", "3", "--output_dir", str(output)]) == 0
    return json.loads((output / "run.json").read_text())


@pytest.mark.parametrize("name", DATASETS)
def test_a_recipe_trains_on_its_dataset(name, miniature, clip, tmp_path):
    record = train_miniature(name, "dmae_ti", miniature, clip, tmp_path / "out")
    assert record["steps"] == 3 and record["splits"]["train"]["dataset"] == DATASETS[name]
    assert record["splits"]["validation"]["videos"] > 0 and record["best"]["value"] > 0
    assert (tmp_path / "out" / "best" / "model.safetensors").is_file()
    rows = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 3 and all(row["partial_order"] > 0 for row in rows)
    assert {row["clip_learning_rate"] <= 1e-6 < 1e-5 < row["learning_rate"] for row in rows[:-1]} == {True}


@pytest.mark.parametrize("variant", ["baseline", "dmae_wti"])
def test_the_other_variants_train(variant, miniature, clip, tmp_path):
    record = train_miniature("msvd", variant, miniature, clip, tmp_path / "out")
    assert record["steps"] == 3 and record["config"]["variant"] == variant


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_in_every_variant(name, variant, miniature, clip, tmp_path):
    assert train_miniature(name, variant, miniature, clip, tmp_path / "out")["steps"] == 3


def test_the_plan_says_what_would_be_run(miniature, clip, capsys):
    data = miniature("msvd")
    arguments = ["--config", str(recipes_folder() / "msvd.yaml"), "--dry_run", "--set", f"model.from_clip={clip}"]
    arguments += ["--set", f"data.annotations={data.annotations}", "--set", f"data.videos={data.videos}"]
    assert main([*arguments, "--set", "training.train_batch_size=4"]) == 0
    text = capsys.readouterr().out
    assert "12 videos, 36 captions (published: 1200)" in text and "4 videos" in text
    assert "3 for each pair in each direction" in text and "GiB per process" in text
    assert re.search(r"steps +45 over 5 epochs of 36 pairs", text)
    assert "M at clip_learning_rate 1e-07" in text and "M at learning_rate 0.0001" in text


def test_the_plan_names_what_is_missing_and_what_differs_from_the_paper(miniature, clip, capsys, tmp_path):
    data = miniature("msvd")
    videos = shutil.copytree(data.videos, tmp_path / "videos")
    gone = sorted(videos.rglob("*.*"))[:5]
    for path in gone:
        path.unlink()
    arguments = ["--config", "msvd", "--dry-run", "--set", f"model.from_clip={clip}", "--set", f"data.videos={videos}"]
    arguments += ["--set", f"data.annotations={data.annotations}", "--set", "training.train_batch_size=4"]
    assert main([*arguments, "--set", "training.learning_rate=1e-3", "--set", "training.lora.r=2"]) == 0
    text = capsys.readouterr().out
    assert text.count("  missing   ") == 4 and "missing   2 more" in text and gone[0].stem in text
    assert "REFUSED   5 of 12 train videos are lost" in text
    differing = {line.split()[1] for line in text.splitlines() if line.startswith("differs")}
    assert differing == {"training.learning_rate", "training.lora", "global"}
    assert "differs     training.learning_rate 0.001 (paper: 0.0001)" in text
    assert re.search(r"parameters .* M frozen", text)


def test_bad_input_is_one_line_and_exit_code_one(tmp_path, capsys):
    recipe = str(recipes_folder() / "own_data.yaml")
    assert (
        main(["--config", recipe, "--set", f"data.videos={tmp_path / 'nowhere'}", "--output_dir", str(tmp_path)]) == 1
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "nowhere" in error

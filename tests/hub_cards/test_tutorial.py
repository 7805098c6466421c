"""docs/from_videos_to_hub.md, run as written, in order, against a loopback Hub that serves a small CLIP."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"```(bash|python)\n(.*?)```", (ROOT / "docs/from_videos_to_hub.md").read_text(encoding="utf-8"), re.S
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def clip_on_the_hub(hub, tokenizer, tmp_path_factory):
    """openai/clip-vit-base-patch32, but tiny and random: the page's commands need not change."""
    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1, projection_dim=64)
    text = dict(
        tower, vocab_size=len(tokenizer), max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    config = CLIPConfig(text_config=text, vision_config=dict(tower, image_size=32, patch_size=16), projection_dim=64)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hub.create("models/openai/clip-vit-base-patch32")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.commit("models/openai/clip-vit-base-patch32", "a tiny one", files)
    return hub


@pytest.fixture(scope="module")
def desk(clips, tmp_path_factory) -> Path:
    """The reader's folder: the checkout's `training/` and `my_videos/` with its three splits."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "training").symlink_to(ROOT / "training")
    for split, copies in (("train", 4), ("validation", 1), ("test", 1)):
        folder = desk / "my_videos" / split
        folder.mkdir(parents=True)
        rows = []
        for name, path in clips.items():
            for number in range(copies):
                file = f"{name}{number or ''}.mp4"
                shutil.copy(path, folder / file)
                rows.append(json.dumps({"file_name": file, "captions": [f"a {name} square moves {number}"]}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return desk


def test_the_tutorial_runs_as_written(clip_on_the_hub, desk, isolated, tmp_path):
    hub = clip_on_the_hub
    environment = hub.environment(tmp_path) | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    printed = []
    for language, code in BLOCKS:
        code = code.replace("your-name/", "user/")  # the name of the test Hub's user
        if language == "python":
            printed.append(isolated(code, desk, environment))
            continue
        command = ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(
            command, cwd=desk, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        printed.append(done.stdout)
    assert len(printed) == 7
    assert "(to be created)" in printed[3] and "published: " in printed[4]
    assert len(printed[5].splitlines()) == 2  # two videos, two scores
    found = printed[6]
    assert sum(name in found for name in ("red", "green", "blue")) >= 1 and ".mp4" in found

    repository = "models/user/my-videos"
    assert len(hub.repos[repository]) == 2 and hub.private[repository]  # created by the second push, in one commit
    card = hub.files(repository)["README.md"].decode()
    measured = json.loads((desk / "outputs/mine/test/results.json").read_text())["metrics"]["text_to_video_R@1"]
    assert "**my_videos, test split**" in card and f"| text → video | {100 * measured:.1f} |" in card
    assert "train: my_videos, 12 videos, 12 captions" in card and "wall time" in card and str(desk) not in card

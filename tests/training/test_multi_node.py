"""Two machines (on loopback) and two processes end like one process with the same global batch, whatever is on."""

import json
import subprocess

import pytest

from dmae.training.config import config_from_dict
from dmae.training.loop import train

LORA = {"lora": {"r": 3, "target": ["q_proj", "v_proj"]}}
CACHE = {"gradient_cache_chunk": 2, "gradient_checkpointing": True}
MERGING = {"merge_tokens": 1, "temporal_input": "patch"}
MEANS = {  # words of `model` and of `training`
    "token merging": (MERGING, {}),
    "LoRA": ({}, LORA),
    "gradient cache": ({}, CACHE),
    "running mean": ({}, {"ema": 0.5}),
    "all of them": (MERGING, {**LORA, **CACHE, "ema": 0.5}),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_nodes_train_as_one_process(launcher, tiny, miniature, tmp_path):
    videos = miniature("videofolder").videos
    words = {"max_steps": 4, "train_batch_size": 5}  # 12 clips: batches of 5, 5 and 2, never even
    outputs = {nodes: tmp_path / f"nodes{nodes}" for nodes in (1, 2)}
    processes = []
    port = str(tiny.free_port())
    for nodes, output in outputs.items():
        recipe = tiny.write_recipe(tmp_path / f"{nodes}.yaml", tiny.tiny_recipe(videos, output, **words))
        for rank in range(nodes):
            node = tiny.launch_node if launcher == "accelerate" else tiny.torchrun_node
            command = tiny.launch(1, 0) if nodes == 1 else node(rank, nodes, port)
            command = [*command, "training/run.py", "--config", str(recipe)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            processes.append(subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(), **pipes))
    for process in processes:
        said, _ = process.communicate(timeout=1100)
        assert process.returncode == 0, said[-3000:]
    records = {nodes: json.loads((output / "run.json").read_text()) for nodes, output in outputs.items()}
    assert {nodes: record["world_size"] for nodes, record in records.items()} == {1: 1, 2: 2}
    one, two = (tiny.weights(output / "last") for output in outputs.values())
    assert max((one[name] - two[name]).abs().max() for name in one) < 2e-5
    names = ("text_to_video_R@1", "video_to_text_mean_rank")
    assert [records[1]["best"]["metrics"][name] for name in names] == [
        records[2]["best"]["metrics"][name] for name in names
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", MEANS)
def test_every_means_against_memory_trains_on_two_processes_as_on_one(name, tiny, miniature, tmp_path):
    """Batches of 5 over two processes are never even. The cached run is held against one that caches nothing."""
    if "LoRA" in name or "all" in name:
        pytest.importorskip("peft")
    model, training = MEANS[name]
    recipes = []
    for processes in (1, 2):
        recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / f"by{processes}", max_steps=4)
        recipe["model"] |= model
        recipe["training"] |= {"train_batch_size": 5, **training}
        recipes.append(recipe)
    for word in CACHE:
        recipes[0]["training"].pop(word, None)
    train(config_from_dict(recipes[0]))
    path = tiny.write_recipe(tmp_path / "2.yaml", recipes[1])
    command = [*tiny.torchrun(2, tiny.free_port()), "-m", "dmae", "train", "--config", str(path)]
    options = {"cwd": tiny.ROOT, "env": tiny.environment(), "capture_output": True, "text": True, "timeout": 1000}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "by2" / "run.json").read_text())["world_size"] == 2
    one, two = (tiny.weights(tmp_path / f"by{processes}" / "last") for processes in (1, 2))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max() for name in one) < 2e-5

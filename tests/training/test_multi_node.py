"""Two `accelerate launch`es on loopback, as on two machines, end like one process with the same global batch."""

import json
import subprocess

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_train_as_one_process(tiny, miniature, tmp_path):
    videos = miniature("videofolder").videos
    words = {"max_steps": 4, "train_batch_size": 5}  # 12 clips: batches of 5, 5 and 2, never even
    outputs = {nodes: tmp_path / f"nodes{nodes}" for nodes in (1, 2)}
    processes = []
    port = str(tiny.free_port())
    for nodes, output in outputs.items():
        recipe = tiny.write_recipe(tmp_path / f"{nodes}.yaml", tiny.tiny_recipe(videos, output, **words))
        for rank in range(nodes):
            command = tiny.launch(1, 0) if nodes == 1 else tiny.launch_node(rank, nodes, port)
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

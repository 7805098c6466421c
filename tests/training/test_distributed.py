"""Two processes give the gradient of one: for every loss, with uneven batches, duplicates across ranks and chunks."""

import json
import subprocess

import pytest


@pytest.fixture(scope="module")
def two_ranks(tiny):
    command = [*tiny.launch(2, tiny.free_port()), "tests/training/two_ranks.py"]
    options = {"cwd": tiny.ROOT, "env": tiny.environment(), "capture_output": True, "text": True, "timeout": 1000}
    done = subprocess.run(command, check=False, **options)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def test_there_really_are_two_processes(two_ranks):
    assert two_ranks["num_processes"] == 2


def test_every_loss_has_the_one_process_gradient(two_ranks):
    gradients = two_ranks["gradients"]
    assert len(gradients) == 11
    assert {name: value for name, value in gradients.items() if not value < 1e-6} == {}

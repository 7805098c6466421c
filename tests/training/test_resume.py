"""A run that is killed and goes on ends with the very weights of one that was never interrupted."""

import multiprocessing
import os
import random
import runpy
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest

from dmae.training.record import read_metrics

pytestmark = pytest.mark.timeout(1800)  # several whole runs each
WORDS = {"num_train_epochs": 6, "save_steps": 1, "save_total_limit": 3, "train_batch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def processes(tiny):
    """Runs are real processes, forked off a server that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmae.training.loop", "dmae.training.plan"])
    with mock.patch.dict(os.environ, tiny.environment()):
        yield context


def start(processes, recipe, *options, strike: tuple = ()):
    """`python -m dmae.training.run --config RECIPE …` in a process of its own; strike: what struck.py takes."""
    command, target = ["run.py"], (runpy.run_module, ("dmae.training.run", None, "__main__"))
    if strike:
        script = str(Path(__file__).with_name("struck.py"))
        command, target = [script, *map(str, strike)], (runpy.run_path, (script, None, "__main__"))
    with mock.patch.object(sys, "argv", [*command, "--config", str(recipe), *options]):
        process = processes.Process(target=target[0], args=target[1])
        process.start()
    return process


def finish(process, code: int = 0) -> None:
    process.join(600)
    assert process.exitcode == code


def recipe_of(tiny, videos, output):
    """Twelve clips with three captions each, dropout on: all that there is to restore."""
    recipe = tiny.tiny_recipe(videos, output, **WORDS)
    for tower in ("text_config", "vision_config"):
        recipe["model"][tower]["attention_dropout"] = 0.1
    recipe["data"]["captions_per_epoch"] = "all"  # workers: none, they would import everything anew off the server
    return tiny.write_recipe(output.parent / f"{output.name}.yaml", recipe)


@pytest.fixture(scope="module")
def uninterrupted(processes, miniature, tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    finish(start(processes, recipe_of(tiny, miniature("videofolder").videos, output)))
    return output


def kill_and_resume(processes, tiny, miniature, uninterrupted, output, kills: int, seed: int) -> None:
    """Kill at random moments, after at least one more step each time, then let it finish and compare."""
    chance = random.Random(seed)
    recipe = recipe_of(tiny, miniature("videofolder").videos, output)
    codes = []
    for _ in range(kills):
        strike = (signal.SIGKILL.value, 1, chance.random() * 0.5)
        process = start(processes, recipe, "--resume_from_checkpoint", "last", strike=strike)
        process.join(600)
        codes.append(process.exitcode)
    assert codes[0] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, 0}  # 0: nothing was left to do
    finish(start(processes, recipe, "--resume_from_checkpoint", "last"))
    tiny.assert_same_weights(uninterrupted / "last", output / "last")
    tiny.assert_same_weights(uninterrupted / "best", output / "best")
    assert log_of(output) == log_of(uninterrupted)


def log_of(output) -> list:
    """Steps with their losses, and validations: what a reader of the curves sees."""
    names = ("step", "loss", "text_to_video_rsum", "learning_rate")
    return [[row.get(name) for name in names] for row in read_metrics(output / "metrics.jsonl")]


def test_three_kills_change_nothing(processes, tiny, miniature, uninterrupted, tmp_path):
    kill_and_resume(processes, tiny, miniature, uninterrupted, tmp_path / "killed", kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_change_nothing(processes, tiny, miniature, uninterrupted, tmp_path):
    for run in range(5):
        kill_and_resume(processes, tiny, miniature, uninterrupted, tmp_path / f"killed{run}", kills=4, seed=10 + run)


def test_sigterm_saves_and_exits_zero(processes, tiny, miniature, uninterrupted, tmp_path):
    output = tmp_path / "stopped"
    recipe = recipe_of(tiny, miniature("videofolder").videos, output)
    strike = (signal.SIGTERM.value, 3, 0)
    finish(start(processes, recipe, "--set", "training.save_steps=null", strike=strike))
    saved = [int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")]
    assert saved and max(saved) < 54  # 36 pairs in 9 steps an epoch, 6 epochs
    assert not (output / "curves.png").exists()
    finish(start(processes, recipe, "--resume_from_checkpoint", "last"))
    tiny.assert_same_weights(uninterrupted / "last", output / "last")


def test_ctrl_c_exits_130_and_leaves_only_whole_folders(processes, tiny, miniature, tmp_path):
    output = tmp_path / "interrupted"
    recipe = recipe_of(tiny, miniature("videofolder").videos, output)
    finish(start(processes, recipe, strike=(signal.SIGINT.value, 3, 0)), code=130)
    assert not list(output.glob("*.tmp"))
    assert all((path / "state.json").is_file() for path in output.glob("checkpoint-*"))

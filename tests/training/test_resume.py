"""A run that is killed and goes on ends with the very weights of one that was never interrupted."""

import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
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


def start(processes, recipe, *options):
    """`python -m dmae.training.run --config RECIPE …` in a process of its own."""
    with mock.patch.object(sys, "argv", ["run.py", "--config", str(recipe), *options]):
        process = processes.Process(target=runpy.run_module, args=("dmae.training.run", None, "__main__"))
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


def wait_for(condition, process) -> None:
    """Until `condition()` holds; the test's own timeout ends the wait for a run that does not get on."""
    while not condition():
        assert process.exitcode in (None, 0)
        time.sleep(0.005)


def steps_logged(output) -> int:
    log = output / "metrics.jsonl"
    return len(read_metrics(log)) if log.exists() else 0


def kill_and_resume(processes, tiny, miniature, uninterrupted, output, kills: int, seed: int) -> None:
    """Kill at random moments, after at least one more logged step each time, then let it finish and compare."""
    chance = random.Random(seed)
    recipe = recipe_of(tiny, miniature("videofolder").videos, output)
    met = 0
    for _ in range(kills):
        before = steps_logged(output)
        process = start(processes, recipe, "--resume_from_checkpoint", "last")
        wait_for(lambda: steps_logged(output) > before or process.exitcode == 0, process)  # noqa: B023
        time.sleep(chance.random() * 0.5)
        met += process.is_alive()
        process.kill()
        process.join()
    assert met, "the run was over before the first kill: nothing was tested"
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
    process = start(processes, recipe, "--set", "training.save_steps=null")
    wait_for(lambda: steps_logged(output) >= 1, process)
    process.terminate()
    finish(process)
    saved = [int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")]
    assert saved and max(saved) < 54  # 36 pairs in 9 steps an epoch, 6 epochs
    assert not (output / "curves.png").exists()
    finish(start(processes, recipe, "--resume_from_checkpoint", "last"))
    tiny.assert_same_weights(uninterrupted / "last", output / "last")


def test_ctrl_c_exits_130_and_leaves_only_whole_folders(processes, tiny, miniature, tmp_path):
    output = tmp_path / "interrupted"
    process = start(processes, recipe_of(tiny, miniature("videofolder").videos, output))
    wait_for(lambda: steps_logged(output) >= 2, process)
    os.kill(process.pid, signal.SIGINT)
    finish(process, code=130)
    assert not list(output.glob("*.tmp"))
    assert all((path / "state.json").is_file() for path in output.glob("checkpoint-*"))

"""What an earlier version saved still opens: see tests/golden/make_run.py."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from dmae.training.checkpoints import find_checkpoint, read_state
from dmae.training.loop import train
from dmae.training.record import read_metrics

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    """The script that made it, as a module."""
    spec = importlib.util.spec_from_file_location("make_run", GOLDEN / "make_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDEN / "run" / "expected.json").read_text())


def test_the_golden_model_gives_the_scores_it_gave(golden, expected, tmp_path):
    shutil.copytree(GOLDEN / "run" / "model", tmp_path / "model")
    scores = golden.scores_of(golden.with_tagger(tmp_path / "model"))
    assert scores == [pytest.approx(row, abs=1e-3) for row in expected["scores"]]


def test_the_golden_checkpoint_goes_on_as_it_went_on(golden, expected, miniature, tmp_path):
    shutil.copytree(GOLDEN / "run" / "checkpoint-3", tmp_path / "checkpoint-3")
    assert read_state(find_checkpoint("last", tmp_path))["step"] == 3
    videos = miniature("videofolder").videos
    result = train(golden.golden_config(videos, tmp_path, resume_from_checkpoint="last"))
    assert result.status == "finished" and result.steps == 4
    losses = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row}
    assert losses == {4: pytest.approx(expected["loss_of_step_4"], rel=1e-3)}
    assert json.loads((tmp_path / "run.json").read_text())["resumed_at_step"] == 3

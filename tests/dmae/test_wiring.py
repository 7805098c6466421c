"""What is typed arrives: every option of `dmae evaluate`, at a value that is no default, reaches the evaluation."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmae.cli import app


@pytest.fixture
def called(monkeypatch):
    """called("module.function", result) -> (arguments, named arguments) of its call, once it was called."""

    def watch(place: str, result=None):
        seen = []
        monkeypatch.setattr(place, lambda *arguments, **named: seen.append((arguments, named)) or result)
        return seen

    return watch


def run(*words) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluate(called, tmp_path):
    seen = called("dmae.evaluation.evaluate_model.evaluate_model")
    settings = {
        "split": "validation", "protocol": "individual", "ties": "pessimistic", "post": "dsl", "bank_split": "other",
        "bank_videos": 7, "batch_size": 3, "num_workers": 5, "dtype": "bfloat16", "device": "cuda:1", "samples": 11,
        "seed": 13,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--annotations", "an", "--videos", "vi", "--output", tmp_path / "out", "--compare", tmp_path / "other"]
    words += ["--per-query", tmp_path / "q.jsonl", "--pictures", "--cache", tmp_path / "cache"]
    run("evaluate", "--model", "some/model", "--dataset", "msvd", *words)
    ((model, dataset, output, options, cache, other, pictures, per_query), _) = seen.pop()
    assert {name: getattr(options, name) for name in settings} == settings and options.confidence == 0.95
    assert (model, *dataset[:3]) == ("some/model", "msvd", "an", "vi") and pictures is True
    assert (output, other, per_query) == (tmp_path / "out", tmp_path / "other", tmp_path / "q.jsonl")
    assert cache == tmp_path / "cache"
    run("evaluate", "--model", "some/model", "--dataset", "msvd", "--split", "train", "--no-cache")
    ((_, _, output, _, cache, *_), _) = seen.pop()
    assert cache is None and output == Path("outputs/evaluate/model/msvd-train")

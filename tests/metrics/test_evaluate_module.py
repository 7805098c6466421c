"""`evaluate.load` of the folder, in a process of its own that has no network and cannot see the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmae import retrieval_metrics
from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals
from dmae.metrics.text_video_retrieval.postprocessing import dsl
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks, summarize_ranks

METRIC = Path(__file__).resolve().parents[2] / "metrics" / "text_video_retrieval"
SCRIPT = """
import json, sys
import evaluate
import numpy as np

sys.modules["dmae"] = None  # what the Hub runs has no such package
metric = evaluate.load(sys.argv[1])
similarities = np.random.default_rng(0).standard_normal((30, 20))
gold = np.arange(30) % 20
plain = metric.compute(predictions=similarities, references=gold, ties="pessimistic", protocol="individual")
dual = metric.compute(predictions=similarities, references=gold, postprocessing="dsl", confidence=0.9)
metric.add_batch(predictions=similarities[:10], references=gold[:10])
metric.add_batch(predictions=similarities[10:], references=gold[10:])
batched = metric.compute()
errors = []
for predictions, references, options in [
    ([[0.1, float("nan")]], [0], {}), ([[0.1, 0.2]], [0], {"postprocessing": "x"}), ([[0.1, 0.2]], [0.5], {}),
    ([[0.1, 0.2], [0.3]], [0, 1], {}),
]:
    try:
        evaluate.load(sys.argv[1]).compute(predictions=predictions, references=references, **options)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([plain, dual, batched, errors]))
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    pytest.importorskip("evaluate")
    folder = tmp_path_factory.mktemp("hf")
    environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(METRIC)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_the_module_gives_what_the_function_gives(computed):
    similarities, gold = np.random.default_rng(0).standard_normal((30, 20)), np.arange(30) % 20
    assert computed[0] == retrieval_metrics(similarities, gold, ties="pessimistic", protocol="individual")


def test_postprocessing_and_intervals_are_options(computed):
    _, dual, batched, _ = computed
    assert dual["text_to_video_mean_rank"] != batched["text_to_video_mean_rank"]
    similarities, gold = np.random.default_rng(0).standard_normal((30, 20)), np.arange(30) % 20
    to_video, to_text = dsl(similarities)
    ranks = retrieval_ranks(to_video, gold)[0], retrieval_ranks(to_text, gold)[1]
    intervals = bootstrap_intervals(*ranks, gold, summarize_ranks, confidence=0.9)
    assert {name: tuple(interval) for name, interval in dual.pop("intervals").items()} == intervals
    assert dual == summarize_ranks(*ranks) and batched == retrieval_metrics(similarities, gold)


def test_errors_reach_the_user(computed):
    assert any("NaN" in error for error in computed[3])
    assert any("'dsl'" in error for error in computed[3])
    assert any("rows have 1 to 2" in error for error in computed[3])
    assert any("whole numbers" in error and "0.5" in error for error in computed[3])


@pytest.fixture(scope="module")
def module():
    """The module as this process imports it, past the checks and the files of the `evaluate` library."""
    pytest.importorskip("evaluate")
    from dmae.metrics.text_video_retrieval.text_video_retrieval import TextVideoRetrieval

    return TextVideoRetrieval


def test_every_option_reaches_the_ranks_and_the_intervals(module):
    similarities, gold = np.random.default_rng(0).integers(0, 9, (12, 5)).astype(float), np.arange(12) % 4
    references = gold.astype(float).tolist()

    def compute(**options):
        return module._compute(None, similarities.tolist(), references, **options)

    assert compute() == retrieval_metrics(similarities, gold)
    options = {"ties": "optimistic", "protocol": "individual"}
    assert compute(**options) == retrieval_metrics(similarities, gold, **options) != compute()
    to_video, to_text = dsl(similarities)
    ranks = retrieval_ranks(to_video, gold, **options)[0], retrieval_ranks(to_text, gold, **options)[1]
    found = compute(postprocessing="dsl", confidence=0.5, seed=3, **options)
    expected = bootstrap_intervals(*ranks, gold, summarize_ranks, confidence=0.5, seed=3)
    assert found == {**summarize_ranks(*ranks), "intervals": expected}
    info = module._info(None)
    assert {name: str(column) for name, column in info.features.items()} == {
        "predictions": "List(Value('float64'))", "references": "Value('float64')",
    }  # fmt: skip
    assert "Tied scores share" in info.description and "jiang2023dual" in info.citation
    assert "postprocessing" in info.inputs_description


@pytest.mark.parametrize(
    "predictions, references, options, told",
    [
        ([[1, 2]], [0], {"postprocessing": "qbnorm"}, r"^postprocessing='qbnorm' is unknown; use None or 'dsl'$"),
        ([[1, 2], [3]], [0, 0], {}, "^every text needs a score for every video; rows have 1 to 2$"),
        ([[1, 2], [3, 4]], [0, 1.5], {}, r"^references must be whole numbers \(columns of the matrix\), got 1\.5$"),
        ([[1, 2], [3, 4]], [0, float("inf")], {}, "whole numbers .* got nan$"),
    ],
)
def test_what_is_wrong_is_said_in_full(module, predictions, references, options, told):
    with pytest.raises(ValueError, match=told):
        module._compute(None, predictions, references, **options)

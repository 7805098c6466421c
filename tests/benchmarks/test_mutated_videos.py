"""The short version of the run over mutated videos."""

import sys
from pathlib import Path

import numpy as np
import pytest

FAULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "faults"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(FAULTS))
    import mutated_videos

    yield mutated_videos
    sys.modules.pop("mutated_videos")


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_mutated_videos_never_stop_the_command(harness, tmp_path):
    result = harness.run(240, seed=7, batch=120, work=tmp_path)
    assert {name: result[name] for name in ("crashes", "hangs", "good_lost", "unaccounted")} == {
        "crashes": 0,
        "hangs": 0,
        "good_lost": 0,
        "unaccounted": 0,
    }
    assert 40 < result["indexed"] < 200, "the mutations are too weak or too strong to test anything"
    before = (tmp_path / "batches_7_120.jsonl").read_text()
    assert harness.run(240, seed=7, batch=120, work=tmp_path) == result
    assert (tmp_path / "batches_7_120.jsonl").read_text() == before, "batches that were done were run again"


def test_a_mutant_depends_on_its_number_alone(harness):
    data = bytes(range(256)) * 20
    mutants = [harness.mutate(data, np.random.default_rng([0, number])) for number in range(50)]
    assert mutants == [harness.mutate(data, np.random.default_rng([0, number])) for number in range(50)]
    assert len({*mutants, data}) > 45

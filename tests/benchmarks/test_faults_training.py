"""The fault harness of training and `dmae prepare`, a short version: kills, power failures and failing disks."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_and_frame_caches_survive_what_strikes_them(tmp_path):
    words = ["--every", "60", "--no-result", "--progress", tmp_path / "progress.jsonl"]
    command = [sys.executable, FAULTS / "training.py", *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    done = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert len(done) > 20 and all('"training"' in line or '"prepare"' in line for line in done)

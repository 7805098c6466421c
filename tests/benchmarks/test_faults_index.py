"""The fault harness for the index, short; and it notices a writer that does not sync."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults"
UNSYNCED = """
import sys, tempfile, pathlib, torch
sys.path.insert(0, sys.argv[1])
import index
from dmae import files
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    bench = index.Bench(pathlib.Path(folder))
    setattr(files, sys.argv[2], lambda path: None)
    verdicts = [trial() for _, _, trial in index.kills(bench, 60, power=True)]
print(sum(verdict != "ok" for verdict in verdicts))
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(sys.platform == "win32", reason="forks")]


def test_kills_power_failures_and_failing_disks_lose_nothing(tmp_path):
    quiet = {"capture_output": True, "text": True, "timeout": 800}
    command = [sys.executable, FAULTS / "index.py", "--trials", "80", "--scripts", "1", "--no-result"]
    done = subprocess.run([*command, "--progress", tmp_path / "p"], check=False, **quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = [json.loads(line) for line in (tmp_path / "p").read_text().splitlines()]
    assert len(entries) > 300 and {entry["verdict"] for entry in entries} <= {"ok", None}


@pytest.mark.parametrize("sync", ["sync_file", "sync_names"])
def test_a_writer_that_does_not_sync_is_caught(sync):
    program = [sys.executable, "-c", UNSYNCED, FAULTS, sync]
    done = subprocess.run(program, capture_output=True, text=True, timeout=800, check=True)
    assert int(done.stdout) > 0

"""The short form of the load harness: 32 clients, half a minute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults" / "load_http.py"


@pytest.mark.load
@pytest.mark.timeout(900)
def test_every_answer_is_of_a_committed_state_and_memory_is_bounded():
    command = [sys.executable, str(SCRIPT), "--seconds", "30", "--clients", "32", "--no-result"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["answers"] > 32 and result["commits"] > 3
    assert result["wrong"] == 0 and result["failed"] == {}
    assert result["growth_mib"] < 100

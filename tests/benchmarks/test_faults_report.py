"""The fault harnesses' results stand beside each other in one file."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults" / "report.py"


def test_results_stand_beside_each_other_with_their_conditions(tmp_path):
    spec = importlib.util.spec_from_file_location("faults_report", SCRIPT)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    path = tmp_path / "results" / "faults.json"
    report.merge_result("b", {"lost": 1}, seed=1, trials=5, path=path)
    report.merge_result("a", {"lost": 0}, path=path)
    report.merge_result("b", {"lost": 0}, seed=2, trials=7, path=path)
    found = json.loads(path.read_text())
    assert list(found) == ["a", "b"]
    assert found["b"]["lost"] == 0
    conditions = found["b"]["conditions"]
    assert (conditions["seed"], conditions["trials"]) == (2, 7) and conditions["platform"] and "git" in conditions

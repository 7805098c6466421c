"""The pages that are made from result files say what the files say."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_of_ratios_is_that_of_the_result_files():
    table = script("table")
    assert table.PAGE.read_text(encoding="utf-8") == table.table(table.RESULTS), "run python benchmarks/table.py"


def test_the_search_page_is_that_of_the_result_files():
    report = script("search_report")
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.filled(page) == page, "run python benchmarks/search_report.py"


@pytest.mark.parametrize("rows, machines", [(10**6, 1), (10**8, 10), (10**9, 100)])
def test_sizing_grows_by_machines_and_not_by_their_share(rows, machines):
    report = script("search_report")
    base = {"kind": "hard", "rows": 10**6, "dimension": 512, "disk_bytes": 10**10, "stored_as": "float16"}
    base |= {"stages": {"engine_ms": 20.0, "exact_ms": 10.0}, "search": {"calibrated": {"p50_ms": 31.0}}}
    lines = {line.split(" | ")[0]: line for line in report.sizing([base]).splitlines()}
    share, line = rows / machines, lines[f"| 10^{len(str(rows)) - 1}"]
    assert f"| {machines} |" in line and f"| {share / 1e6 * 20 + 11:.0f} ms |" in line

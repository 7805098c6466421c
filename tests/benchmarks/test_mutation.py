"""The wrong edits of the mutation run: each parses and changes something; those of by_hand.yaml fit the code."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
def f(a, b: int = 1):
    """1 + 1 is not code."""
    if a < b and not g(a, b):
        raise ValueError("at least 1")
    a.x = [b, "é"] + h(3)
    g(a)
    return a if b == 2 else b
'''


@pytest.fixture(scope="module")
def mutation(tmp_path_factory):
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("benchmarks.mutation.__main__")
    finally:
        sys.path.remove(str(ROOT))


def test_each_edit_is_one_small_wrong_change(mutation, tmp_path):
    path = tmp_path / "x.py"
    path.write_text(SOURCE, encoding="utf-8")
    changed = [edit.applied(path.read_bytes()).decode() for edit in mutation.edits(path)]
    assert len(set(changed)) == len(changed) > 12 and SOURCE not in changed
    for text in changed:
        tree = ast.parse(text)
        assert ast.get_docstring(tree.body[0]) == "1 + 1 is not code."
        assert "at least 1" in text or "raise" not in text
    for part in ["a <= b", " or not g", "if not (a < b and not g(a, b))", "and (g(a, b))", "g(b, a)", "h(4)",
                 '[b, "é"] - h(3)', "b != 2", "return None", "(b if b == 2 else a)"]:  # fmt: skip
        assert sum(part in text for text in changed) == 1, part
    assert sum("    pass\n" in text for text in changed) == 3  # raise, the assignment, the call


def test_what_is_written_by_hand_fits_the_code(mutation):
    jobs = mutation.written_by_hand()
    assert len({job["name"] for job in jobs}) == len(jobs) > 10
    for job in jobs:
        ast.parse(job["source"])


def test_a_file_is_judged_by_the_tests_that_name_it_first(mutation):
    named, *others = mutation.tests_of("retrieval/bound.py")
    assert "tests/retrieval/test_bound.py" in named and ["tests/retrieval/test_windows.py"] in others
    assert all(len(other) == 1 and other[0] not in named for other in others)


def test_the_score_leaves_out_what_changes_nothing(mutation):
    known = {
        "a": {"found": "caught"}, "b": {"found": "survived"}, "c": {"found": "survived", "why": "the same value"},
        "d": {"found": "no sound tests"}, "e": {"found": "caught"},
    }  # fmt: skip
    assert mutation.score(known) == round(2 / 3, 4) and mutation.score({}) is None

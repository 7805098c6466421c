"""The wrong edits of the mutation run: each parses and changes something; those of by_hand.yaml fit the code."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    path.write_text("def f(a, b):\n    return min(a, b) + max(b, a)\n", encoding="utf-8")
    assert not any("min(b, a)" in edit.applied(path.read_bytes()).decode() for edit in mutation.edits(path)), "the same"
    assert sum("    pass\n" in text for text in changed) == 3  # raise, the assignment, the call


def test_what_is_written_by_hand_fits_the_code(mutation):
    """All but a few: code moves on, and the run names those that it has left behind."""
    jobs, text = mutation.written_by_hand(), mutation.BY_HAND.read_text(encoding="utf-8")
    assert len({job["name"] for job in jobs}) == len(jobs) > 0.8 * text.count("  - file: ")
    for job in jobs:
        ast.parse(job["source"])
        assert job["source"].decode() != (ROOT / job["file"]).read_text(encoding="utf-8")
        assert not job["lines"] or max(job["lines"]) <= job["source"].count(b"\n") + 2


def test_the_tests_of_a_line_are_those_that_ran_it_cheapest_first(mutation, tmp_path, monkeypatch):
    """Lines are found where they stand today; a fixture's lines belong to all who ask for it."""
    executed = importlib.import_module("benchmarks.mutation.executed")
    (tmp_path / "now").mkdir()
    then = ["def f(a):", "    if a:", "        return 1", "    return 2", "", "X = 3"]
    (tmp_path / "now" / "thing.py").write_text("\n".join(["# a line more", *then]))
    lines = {"2": ["t::a", "t::b", "t::slow"], "3": ["t::b"], "4": ["t::a", "t::broken"]}
    tests = {name: {"passed": name != "t::broken", "seconds": 9.0 if "slow" in name else 1.0, "processes": False}
             for name in ("t::a", "t::b", "t::slow", "t::broken")}  # fmt: skip
    record = {"tests": tests, "files": {"now/thing.py": {"source": then, "lines": lines}}}
    (tmp_path / "t.json").write_text(json.dumps(record))
    monkeypatch.setattr(executed, "ROOT", tmp_path)
    found = {line: executed.tests_for("now/thing.py", [line], tmp_path) for line in (3, 4, 5, 7)}
    assert set(found[3][:2]) == {"t::a", "t::b"} and found[3][2:] == ["t::slow"]
    assert found[4] == ["t::b"] and found[5] == ["t::a"]
    assert set(found[7]) == {"t::a", "t::b", "t::slow"}, "outside functions: all that run any of it"


def test_a_module_s_own_tests_are_those_that_name_it(mutation):
    trial = importlib.import_module("benchmarks.mutation.trial")
    assert trial.naming("retrieval/bound.py")[0] == "tests/retrieval/test_bound.py"


def test_the_score_leaves_out_what_changes_nothing(mutation):
    known = {
        "a": {"found": "caught"}, "b": {"found": "survived"}, "c": {"found": "survived", "why": "the same value"},
        "d": {"found": "no sound tests"}, "e": {"found": "caught"},
    }  # fmt: skip
    assert mutation.score(known) == round(2 / 3, 4) and mutation.score({}) is None
    known["e"]["at_first"] = "survived"
    assert mutation.score(known) == round(2 / 3, 4) and mutation.score(known, at_first=True) == round(1 / 3, 4)


def test_an_edit_is_put_into_the_functions_that_run(mutation, tmp_path, monkeypatch):
    """Into the one that was edited, also where the lines below it move; a function that nobody holds is not tried."""
    patched = importlib.import_module("benchmarks.mutation.patched")
    source = (
        "def f(a):\n    return (a\n        + 1)\n\n"
        "def outer():\n    def inner(x):\n        return x * 2\n    return inner\n"
    )
    (tmp_path / "thing.py").write_text(source)
    monkeypatch.setattr(patched, "ROOT", tmp_path)
    names: dict = {}
    exec(compile(source, str(tmp_path / "thing.py"), "exec"), names)
    held = names["outer"]()
    functions, _ = patched.alive({"thing.py"})

    def put(before: str, after: str) -> int:
        return patched.put_in_place({"file": "thing.py", "source": source.replace(before, after).encode()}, functions)

    assert put("(a\n        + 1)", "None") == 1 and names["f"](1) is None and held(3) == 6
    assert put("x * 2", "x * 3") == 2 and held(3) == 9 and names["outer"]()(3) == 9
    assert put("a\n", "a  \n") == 0, "nothing that runs has changed"


def test_the_tests_of_a_room_judge_an_edit_in_a_fork(mutation, tmp_path):
    """Caught, survived and not run, as the tests are; a test that fails without an edit judges none."""
    pytest.importorskip("coverage", reason="the extra `bench`")
    project = tmp_path / "project"
    (project / "benchmarks").mkdir(parents=True)
    (project / "benchmarks" / "mutation").symlink_to(ROOT / "benchmarks" / "mutation")
    (project / "thing.py").write_text(
        "def f(a):\n    return a + 1\n\n\ndef g(a):\n    return [a, 1]\n\n\ndef h():\n    return 5\n"
    )
    (project / "test_thing.py").write_text(
        "import pytest, thing\n\n\n@pytest.fixture(scope='module')\ndef made():\n    return thing.f(1)\n\n\n"
        "def test_made(made):\n    assert made == 2\n\n\ndef test_g():\n    assert thing.g(2)\n\n\n"
        "runs = []\n\n\ndef test_only_once():\n    runs.append(thing.g(3))\n    assert len(runs) == 1\n"
    )
    code = (
        "import json, sys; sys.path[:0] = ['.']; from pathlib import Path; from benchmarks.mutation import patched\n"
        "patched.ROOT = Path.cwd(); patched.measured_tests = dict; source = Path('thing.py').read_text()\n"
        "def job(line, before, after):\n"
        "    changed = source.replace(before, after).encode()\n"
        "    return {'name': before, 'file': 'thing.py', 'lines': [line], 'source': changed}\n"
        "jobs = [job(2, 'a + 1', 'a - 1'), job(6, '[a, 1]', '[a, 2]'), job(10, '5', '6')]\n"
        "print('FOUND', json.dumps(patched.judged(jobs, ['test_thing.py'])))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.split("FOUND ")[1]) == {
        "a + 1": {"found": "caught", "by": "test_thing.py::test_made"},
        "[a, 1]": {"found": "survived", "tests": 1},
    }, ran.stderr


def test_what_survives_in_the_fork_goes_to_the_copy_and_what_changes_nothing_goes_nowhere(
    mutation, tmp_path, monkeypatch
):
    """And an edit counts as caught at first where only the second look caught it, unless an earlier run did not."""
    names = ["caught", "dear", "lost", "again", "same"]
    jobs = [{"name": f"visuals/{name}.py: x", "file": f"visuals/{name}.py", "kind": "result"} for name in names]
    tried, asked = [], []

    def judged(given, tests):
        asked.append(tests)
        return {
            job["name"]: {"found": "caught" if "caught" in job["name"] else "survived", "tests": 1} for job in given
        }

    class Copy:
        def __init__(self, work):
            pass

        def judged(self, job):
            tried.append(job["file"])
            return {"found": "survived" if "lost" in job["file"] else "caught", "tests": 3}

    (tmp_path / "by_hand.yaml").write_text("equivalent: [{name: 'visuals/same.py: x', why: the same}]\n")
    monkeypatch.setattr(mutation, "BY_HAND", tmp_path / "by_hand.yaml")
    monkeypatch.setattr(mutation.patched, "judged", judged)
    monkeypatch.setattr(mutation, "Laboratory", Copy)
    known = {"visuals/again.py: x": {"file": "visuals/again.py", "kind": "result", "found": "survived"}}
    args = SimpleNamespace(results=tmp_path / "r.json", quick=False, work=tmp_path, minutes=60, seed=3)
    mutation.run(jobs, known, args)
    assert tried == ["visuals/dear.py", "visuals/lost.py", "visuals/again.py"] and asked == [["tests/visuals"]]
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["score"], written["score_at_first"]) == (0.75, 0.5)
    assert written["rooms"] == {"visuals": {"edits": 5, "caught": 3, "equivalent": 1, "survived": 1}}
    mutation.run(jobs, known := {}, SimpleNamespace(**{**vars(args), "quick": True}))
    assert len(tried) == 3 and known["visuals/dear.py: x"]["found"] == "survived"
    assert mutation.tests_of("retrieval") == ["tests/retrieval", "--ignore=tests/retrieval/server"]


def test_a_child_that_fails_gives_no_result(mutation, capfd):
    """What it had found by then must not be taken for all there is."""
    from_child = importlib.import_module("benchmarks.mutation.forks").from_child
    assert from_child(lambda: {"a": [1]}, "lost") == {"a": [1]}
    with pytest.raises(RuntimeError, match=r"^lost$"):
        from_child(lambda: 1 / 0, "lost")
    assert "ZeroDivisionError" in capfd.readouterr().err

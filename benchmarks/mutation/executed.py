"""Which tests run which line, what each costs, and which of them start processes of their own.

    python -m benchmarks.mutation.executed tests/metrics tests/modeling_dmae   # further words go to pytest

One JSON per test file below --work, to be read by `tests_for`. A line that a fixture ran counts for every test that
asks for the fixture. What happens in another process is not seen: tests that start one are known by that alone.
"""

import argparse
import ast
import difflib
import functools
import json
import multiprocessing.process
import resource
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(tempfile.gettempdir()) / "dmae-mutation-executed"


def seconds() -> float:
    """CPU of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Recorder:
    """A pytest plugin; contexts of `measured` (a coverage.Coverage) are node ids and `fixture <base> <name>`."""

    def __init__(self, measured, work: Path):
        self.measured, self.work, self.context, self.setup = measured, work, "", 0.0
        self.tests: dict[str, dict] = {}
        self.starters: set[str] = set()
        started = multiprocessing.process.BaseProcess.start

        def start(process):
            self.starters.add(self.context)
            started(process)

        multiprocessing.process.BaseProcess.start = start
        sys.addaudithook(lambda event, _: event == "subprocess.Popen" and self.starters.add(self.context))

    def enter(self, context: str) -> str:
        before, self.context = self.context, context
        self.measured.switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.enter(item.nodeid)
        started, self.setup = seconds(), 0.0
        fixtures = [f"fixture {made[-1].baseid} {name}" for name, made in item._fixtureinfo.name2fixturedefs.items()]
        test = self.tests[item.nodeid] = {"fixtures": fixtures, "passed": False}
        result = yield
        test["seconds"] = round(seconds() - started - self.setup, 3)  # shared fixtures are paid once
        if nextitem is None or nextitem.path != item.path:
            self.save(item.nodeid.split("::")[0])
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before, started = self.enter(f"fixture {fixturedef.baseid} {fixturedef.argname}"), seconds()
        try:
            return (yield)
        finally:
            self.enter(before)
            if fixturedef.scope != "function":
                self.setup += seconds() - started

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.tests[report.nodeid]["passed"] = report.passed

    def save(self, test_file: str) -> None:
        data, files = self.measured.get_data(), {}
        tests = {name: dict(test) for name, test in self.tests.items() if name.split("::")[0] == test_file}
        users: dict[str, list[str]] = {}
        for name, test in tests.items():
            contexts = {name, *test.pop("fixtures")}
            test["processes"] = bool(contexts & self.starters)
            for context in contexts:
                users.setdefault(context, []).append(name)
        for path in data.measured_files():
            lines = {}
            for line, contexts in data.contexts_by_lineno(path).items():
                used = sorted({test for context in contexts for test in users.get(context, [])})
                lines |= {line: used} if used else {}
            if lines:
                source = Path(path).read_text(encoding="utf-8").split("\n")
                files[Path(path).relative_to(ROOT).as_posix()] = {"source": source, "lines": lines}
        self.work.mkdir(parents=True, exist_ok=True)
        record = json.dumps({"tests": tests, "files": files})
        (self.work / f"{test_file.replace('/', '.')}.json").write_text(record, encoding="utf-8")


def measure(tests: list[str], work: Path) -> int:
    import coverage  # of the extra `bench`: only measuring needs it

    rooms = [f"{ROOT}/{room}/*" for room in ROOMS]
    measured = coverage.Coverage(data_file=None, include=rooms, config_file=False)
    recorder = Recorder(measured, work)
    measured.start()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    measured.stop()
    return int(code)


ROOMS = [
    "modeling_dmae", "processing", "metrics", "inference", "data", "evaluation", "visuals", "retrieval",
    "retrieval/server", "hub_cards", "training", "dmae",
]  # fmt: skip


@functools.cache
def _records(work: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.json"))]


@functools.cache
def measured_tests(work: Path = WORK) -> dict[str, dict]:
    """{node id: {"passed", "seconds", "processes"}}"""
    return {name: test for record in _records(work) for name, test in record["tests"].items()}


def tests_for(file: str, lines: list[int], work: Path = WORK) -> list[str]:
    """Names of the tests that run one of `lines` of `file` as it is today: the file's own, then the cheapest first.

    For a line that was run by none, or outside functions, as imports run it: those of the line before it that was.
    """
    today = (ROOT / file).read_text(encoding="utf-8").split("\n")
    users: dict[int, set[str]] = {}
    for record in _records(work):
        if file in record["files"]:
            measured = record["files"][file]
            matcher = difflib.SequenceMatcher(None, measured["source"], today, autojunk=False)
            for then, now, size in matcher.get_matching_blocks():
                for step in range(size):
                    found = measured["lines"].get(str(then + step + 1), ())
                    users.setdefault(now + step + 1, set()).update(found)
    inside = {
        line
        for node in ast.walk(ast.parse("\n".join(today)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for line in range(node.body[0].lineno, node.end_lineno + 1)
    }
    found: set[str] = set()
    for line in lines:
        if line in inside:
            run = next((before for before in range(line, 0, -1) if users.get(before)), None)
            found |= users.get(run, set())
        else:
            found |= {test for number, tests in users.items() if number in inside for test in tests}
    tests, own = measured_tests(work), f"test_{Path(file).stem.removesuffix('_dmae')}.py"
    passed = [name for name in found if tests[name]["passed"]]
    return sorted(passed, key=lambda name: (own not in name.split("::")[0], tests[name]["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--work", type=Path, default=WORK)
    args, more = parser.parse_known_args()
    sys.exit(measure([*args.tests, *more], args.work))


if __name__ == "__main__":
    main()

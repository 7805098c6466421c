"""One wrong edit against the tests: in a copy of the project, in a process forked from one with the heavy packages."""

import importlib
import os
import resource
import runpy
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .executed import ROOT, measured_tests, tests_for
from .forks import from_child

CPU_SECONDS = 240  # of one process; an endless loop is noticed too
WALL_SECONDS = 1500
MOST_SECONDS = 40.0  # CPU of the measured tests that run an edit's lines


class Laboratory:
    """The copy, and which tests are known to pass in it without an edit."""

    def __init__(self, work: Path):
        self.copy = fresh_copy(work)
        # a test that has gone since it was measured would end the run of all the others
        self.there, modules = collected(self.copy)
        for name in modules:  # what every child would import again
            with suppress(Exception):
                importlib.import_module(name)
        self.sound: dict[str, bool] = {test: False for test in measured_tests() if test not in self.there}

    def judged(self, job: dict) -> dict:
        """{"found": "caught" | "survived" | "no sound tests", "tests", "by"}; a test counts that passes without it.

        What no test runs has survived; "no sound tests": there are some, and they fail here without the edit too.
        """
        ran, found = 0, stages(job, self.there)
        for stage in found:
            stage = [test for test in stage if self.sound.get(test, True)]
            while stage:
                failed = self._failing(job, stage)
                if failed is None:
                    ran += len(stage)
                    break
                known = failed if failed in stage else stage[0]
                if self._is_sound(job, known):
                    return {"found": "caught", "tests": ran + stage.index(known) + 1, "by": failed}
                stage = [test for test in stage if test != known]
        return {"found": "survived" if ran or not any(found) else "no sound tests", "tests": ran}

    def _failing(self, job: dict, tests: list[str]) -> str | None:
        """The first test that fails with the edit, None where all pass."""
        target = self.copy / job["file"]
        original = target.read_bytes()  # of the copy: here somebody may be editing
        target.write_bytes(job["source"])
        try:
            return first_failure(tests, self.copy)
        finally:
            target.write_bytes(original)

    def _is_sound(self, job: dict, test: str) -> bool:
        if test not in self.sound:
            self.sound[test] = first_failure([test], self.copy) is None
        return self.sound[test]


def stages(job: dict, there: set[str]) -> list[list[str]]:
    """Measured tests that run the lines; those of `there` that were not measured; and those that start processes, whose
    lines measuring does not see: of the room or of files that name the module."""
    measured, mapped, spent = measured_tests(), [], 0.0
    for test in tests_for(job["file"], job["lines"]):
        spent += measured[test]["seconds"]
        if spent < MOST_SECONDS or not mapped:
            mapped.append(test)
    room, named = f"tests/{job['file'].split('/')[0]}/", set(naming(job["file"]))
    new = sorted(test for test in there - measured.keys() if test.startswith(room) or test.split("::")[0] in named)
    starters = [test for test, about in measured.items() if about["processes"] and test.split("::")[0] in named]
    return [mapped, new, [test for test in starters if test not in mapped]]


def naming(file: str) -> list[str]:
    """Test files that name the module, those of its room first."""
    module = "dmae." + file.removeprefix("dmae/").removesuffix(".py").replace("/", ".")
    folder, name = ROOT / "tests" / file.split("/")[0], module.rsplit(".", 1)
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if module in text or f"from {name[0]} import {name[1]}" in text:
            found.append((folder not in path.parents, path.relative_to(ROOT).as_posix()))
    return [path for _, path in sorted(found)]


def collected(copy: Path) -> tuple[set[str], list[str]]:
    """Names of all tests of the copy, and of the modules that come with them and are none of ours."""
    names, modules = from_child(lambda: _collected(copy), f"the tests cannot be collected; see {copy / 'pytest.log'}")
    return set(names), modules


def _collected(copy: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    at_start = set(sys.modules)
    if code := in_child(["--collect-only", "tests"], copy, Note(names)):
        raise RuntimeError(f"pytest ended with {code}")
    return names, [name for name, module in sys.modules.items() if name not in at_start and installed(module)]


def installed(module) -> bool:
    """Whether a module comes with Python or a package: others import the code that is edited, or are it."""
    file = getattr(module, "__file__", None) or ""
    return "site-packages" in file or file.startswith(sys.base_prefix)


def first_failure(tests: list[str], copy: Path) -> str | None:
    """The first of `tests` that fails in a forked child, where the rooms are those of the copy."""
    told = copy / "failed.txt"
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = in_child(tests, copy, Tell(told))
        finally:
            os._exit(code)
    deadline, done, status = time.monotonic() + WALL_SECONDS, 0, 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, 9)  # also servers that a test left behind
    if not done:
        os.waitpid(child, 0)
    elif os.waitstatus_to_exitcode(status) == 0:
        return None
    return told.read_text(encoding="utf-8") if told.is_file() else tests[0]


class Note:
    """A pytest plugin: the names of what was collected."""

    def __init__(self, names: list[str]):
        self.names = names

    def pytest_collection_finish(self, session) -> None:
        self.names += [item.nodeid for item in session.items]


class Tell:
    """A pytest plugin: the first test that failed."""

    def __init__(self, told: Path):
        self.told = told

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.told.exists():
            self.told.write_text(report.nodeid, encoding="utf-8")


def in_child(arguments: list[str], copy: Path, plugin) -> int:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    rooms = str(copy / "build" / "rooms")
    sys.path.insert(0, rooms)
    os.environ["PYTHONPATH"] = rooms
    os.chdir(copy)
    with open(copy / "pytest.log", "wb") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    import pytest

    for name in [name for name in sys.modules if name.split(".")[0] == "dmae"]:
        del sys.modules[name]
    import dmae

    if not Path(dmae.__file__).is_relative_to(copy):  # an edit that no test can see would be said to survive
        raise RuntimeError(f"the tests would run {dmae.__file__}, not the copy in {copy}")
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments], plugins=[plugin]))


def fresh_copy(work: Path) -> Path:
    """What git tracks, as it lies here, with the rooms laid out as they are installed."""
    shutil.rmtree(work, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    runpy.run_path(str(work / ".ci" / "link_rooms.py"), run_name="__main__")
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = True  # an edit of equal length in the same second would meet the old bytecode
    return work

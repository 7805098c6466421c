"""Edits judged in the process that has run the tests: they run once, then every edit in a fork where all stands ready.

Imports and shared fixtures are nearly all that a test costs. A fork has them; the code of the edited functions is put
in the place of the old one, what was kept by caches and what fixtures made with those lines is made again, and the
tests that ran the lines run, cheapest first. A second an edit instead of a minute, but it sees no more than this
process does: what it calls survived, and what it cannot put in place, goes on to `trial.Laboratory`.
"""

import ast
import functools
import gc
import json
import os
import resource
import signal
import sys
import time
import types
from contextlib import suppress

import pytest
from _pytest.runner import runtestprotocol

from .executed import ROOT, measured_tests
from .forks import from_child

MOST_SECONDS = 20.0  # CPU of the tests for one edit
DEAR_SECONDS = 6.0  # a test that costs more is the laboratory's
OTHERS = {"server", "guarded", "serve", "hub", "loopback"}  # fixtures with threads or processes: a fork has neither


def judged(jobs: list[dict], tests: list[str]) -> dict[str, dict]:
    """{name: {"found": "caught", "by"} or {"found": "survived", "tests"}} of the jobs that could be tried this way."""
    problem = f"the tests of {' '.join(tests)} could not be used; what happened is above"
    return from_child(lambda: in_session(jobs, tests), problem)


def in_session(jobs: list[dict], tests: list[str]) -> dict[str, dict]:
    import coverage  # of the extra `bench`

    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    files = sorted({job["file"] for job in jobs})
    measured = coverage.Coverage(data_file=None, include=[f"{ROOT}/{file}" for file in files], config_file=False)
    measured.start()
    plugin = Session(jobs, measured)
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[plugin])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest ended with {code!r}")
    return plugin.found


class Session:
    """A pytest plugin: all tests once, watched line by line; then all edits."""

    def __init__(self, jobs: list[dict], measured):
        self.jobs, self.measured, self.watching = jobs, measured, True
        self.found: dict[str, dict] = {}
        self.sound: dict[tuple, bool] = {}
        self.context = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if not self.watching or fixturedef.scope == "function":
            return (yield)
        before = self._enter(f"fixture {fixturedef.baseid} {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self._enter(before)

    def _enter(self, context: str) -> str:
        before, self.context = self.context, context
        self.measured.switch_context(context)
        return before

    def pytest_collection_modifyitems(self, items) -> None:
        known = measured_tests()

        def elsewhere(item) -> bool:
            about = known.get(item.nodeid)
            return bool(about and (about["processes"] or about["seconds"] > DEAR_SECONDS))

        items[:] = [item for item in items if not OTHERS & set(item.fixturenames) and not elsewhere(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session) -> bool:
        self.items, self.cost = {item.nodeid: item for item in session.items}, {}
        for item, following in zip(session.items, [*session.items[1:], session.items[0]], strict=True):
            self._enter(item.nodeid)
            started = time.process_time()
            reports = runtestprotocol(item, nextitem=following, log=False)  # the last keeps what the session shares
            if all(report.passed for report in reports):  # skipped and failing ones judge nothing
                self.cost[item.nodeid] = time.process_time() - started
        self.measured.stop()
        self.watching = False
        self.users: dict[str, list[str]] = {}
        for item in session.items:
            for name, made in item._fixtureinfo.name2fixturedefs.items():
                self.users.setdefault(f"fixture {made[-1].baseid} {name}", []).append(item.nodeid)
        functions, caches = alive({job["file"] for job in self.jobs})
        gc.collect(), gc.freeze(), gc.disable()  # forks then copy few pages
        for number, job in enumerate(self.jobs, 1):
            found = self._judged(session, job, functions, caches)
            if found:
                self.found[job["name"]] = found
            told = found["found"] if found else "not run here"
            print(f"{number}/{len(self.jobs)} {told}: {job['name'][:150]}", file=sys.__stderr__, flush=True)
        return True

    def _judged(self, session, job: dict, functions: dict, caches: list) -> dict | None:
        """What the tests say of the edit, of those alone that pass in such a fork without it."""
        tests, fixtures = self._of(job)
        while tests:
            found = self._tried(session, job, tests, fixtures, functions, caches)
            by = found.get("by") if found else None
            if by not in self.items:
                return found
            if (key := (by, *sorted(fixtures))) not in self.sound:
                unedited = self._tried(session, None, [by], fixtures, functions, caches)
                self.sound[key] = unedited == {"found": "survived", "tests": 1}
            if self.sound[key]:
                return found
            tests.remove(by)
        return None

    def _of(self, job: dict) -> tuple[list[str], set[str]]:
        """The passing tests that ran one of the edit's lines, cheapest first, and the shared fixtures that did."""
        path = os.path.realpath(ROOT / job["file"])
        data = self.measured.get_data()
        seen = next((file for file in data.measured_files() if os.path.realpath(file) == path), None)
        lines = data.contexts_by_lineno(seen) if seen else {}
        contexts: set[str] = set()
        tree = ast.parse((ROOT / job["file"]).read_bytes())
        starts = [node.lineno for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        for line in job["lines"]:  # a line inside a statement: the one where it begins, in the same function
            first = max((start for start in starts if start <= line), default=1)
            run = next((before for before in range(line, first - 1, -1) if any(lines.get(before, ()))), None)
            contexts |= {context for context in lines.get(run, ()) if context}
        fixtures = {context for context in contexts if context.startswith("fixture ")}
        named = contexts - fixtures | {test for fixture in fixtures for test in self.users.get(fixture, ())}
        kept, spent = [], 0.0
        for test in sorted(named & self.cost.keys(), key=lambda test: self.cost[test]):
            spent += self.cost[test]
            if spent < MOST_SECONDS or not kept:
                kept.append(test)
        return kept, fixtures

    def _tried(self, session, job, tests, fixtures, functions, caches) -> dict | None:
        """In a fork: None where the edit cannot be put in place, else what the tests say of it; no job, no edit."""
        spent = sum(self.cost[test] for test in tests)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            told: dict | None = {"found": "broken", "by": "the fork"}  # ours, not the edit's: it never counts as caught
            try:
                alone(int(30 + 6 * spent))
                if job and not put_in_place(job, functions):
                    told = None
                else:
                    for cache in caches:
                        cache.cache_clear()
                    made_again(session, fixtures)
                    told = {"found": "caught", "by": "what ended all tests"}
                    told = self._run(session, [self.items[test] for test in tests])
            except Exception as error:
                told = told and told | {"error": repr(error)}
            finally:
                os.write(write, json.dumps(told).encode())
                os._exit(0)
        os.close(write)
        deadline = time.monotonic() + 60 + 12 * spent
        while not (done := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < deadline:
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not done:
            os.waitpid(child, 0)
        with os.fdopen(read) as file:
            text = file.read()
        found = json.loads(text) if text else {"found": "caught", "by": "a process that hung or crashed"}
        if found and found["found"] == "broken":
            print(f"not tried: {found}", file=sys.__stderr__)
            return None
        return found

    def _run(self, session, items: list) -> dict:
        session._setupstate.teardown_exact(items[0])
        for item, following in zip(items, [*items[1:], items[-1]], strict=True):
            if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
                return {"found": "caught", "by": item.nodeid}
        return {"found": "survived", "tests": len(items)}


def alone(cpu_seconds: int) -> None:
    """A process group and a limit of its own; nothing it prints is seen."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)


def alive(files: set[str]) -> tuple[dict[tuple, list], list]:
    """The functions of these files by (file, name, first line), and the caches of the project."""
    paths = {os.path.realpath(ROOT / file) for file in files}
    functions: dict[tuple, list] = {}
    caches = []
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType):
            place = os.path.realpath(thing.__code__.co_filename)
            if place in paths:
                key = (place, thing.__code__.co_name, thing.__code__.co_firstlineno)
                functions.setdefault(key, []).append(thing)
        elif isinstance(thing, functools._lru_cache_wrapper):
            caches += [thing] if str(getattr(thing, "__module__", "")).startswith("dmae") else []
    return functions, caches


def put_in_place(job: dict, functions: dict[tuple, list]) -> int:
    """How many functions have the edited code now; 0 where it closes over other names than before."""
    path = ROOT / job["file"]
    old, new = (nested(compile(source, str(path), "exec")) for source in (path.read_bytes(), job["source"]))
    swapped = 0
    for place, code in new.items():
        before = old.get(place)
        if before is None or alike(before, code) or code.co_name.startswith("<"):
            continue
        for function in functions.get((os.path.realpath(path), before.co_name, before.co_firstlineno), ()):
            if len(function.__code__.co_freevars) != len(code.co_freevars):
                if swapped:  # inside a function that has been edited already
                    continue
                return 0
            function.__code__ = code
            swapped += 1
    return swapped


def alike(one, other) -> bool:
    """Whether two codes do the same, wherever they stand: an edit may move all lines below it."""
    if not (isinstance(one, types.CodeType) and isinstance(other, types.CodeType)):
        return type(one) is type(other) and one == other
    parts = [
        (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars) for code in (one, other)
    ]
    inner = zip(one.co_consts, other.co_consts, strict=False)
    return parts[0] == parts[1] and len(one.co_consts) == len(other.co_consts) and all(alike(*pair) for pair in inner)


def nested(code: types.CodeType, place: tuple = ()) -> dict[tuple, types.CodeType]:
    """{(name, how-manieth of that name), ... from the outermost in}: code} of all functions of a compiled file."""
    found: dict[tuple, types.CodeType] = {}
    seen: dict[str, int] = {}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            seen[inner.co_name] = seen.get(inner.co_name, 0) + 1
            here = (*place, (inner.co_name, seen[inner.co_name]))
            found |= {here: inner, **nested(inner, here)}
    return found


def made_again(session, fixtures: set[str]) -> None:
    """Forget what these shared fixtures made, and all that was made of it."""
    names = {fixture.rsplit(" ", 1)[1] for fixture in fixtures}
    infos = [item._fixtureinfo.name2fixturedefs for item in session.items]
    made = [one for info in infos for several in info.values() for one in several]
    while more := {one.argname for one in made if names & set(one.argnames)} - names:
        names |= more
    for one in made:
        if one.argname in names:
            one.cached_result = None
            one._finalizers.clear()

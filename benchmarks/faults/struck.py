"""A piece of work in a forked process that is struck while it writes, and what is found afterwards.

A subject (a training run, `dmae prepare`) says how its folder begins (`fresh`), what people repeat until it is done
(`go_on`), and what must then be there (`check`).
"""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
from disk import ForgetfulDisk, kill_at, striking


def in_child(
    work: Callable, strike: Callable | None = None, note: Callable = lambda *_: None, around=nullcontext
) -> str:
    """Run `work` in a forked process, struck by `strike`: its answer, "" for None, or what it raised; None: killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = "broken: no answer"
        try:
            silent = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
            with silent[0], silent[1], striking(strike) if strike else nullcontext(), around():
                answer = work() or ""
        except OSError as error:
            answer = f"refused: {error}"
        except BaseException as error:
            answer = f"raised {type(error).__name__}: {error}"
        finally:
            os.write(writer, b"\n" + answer.encode()[:2000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(child, 0)
    return answer.removeprefix("\n") if answer else None


def points_of(work: Callable) -> list[tuple[str, str]]:
    """The points that `work` passes, in their order."""
    with tempfile.NamedTemporaryFile() as file:

        def noted():
            with striking(lambda *_: None) as seen:
                work()
            Path(file.name).write_text(json.dumps(seen))

        answer = in_child(noted)
        assert answer == "", answer
        return [tuple(point) for point in json.loads(Path(file.name).read_text())]


class Bench:
    """Trials of one subject in a scratch folder."""

    def __init__(self, subject, folder: Path):
        self.subject, self.folder, self.known = subject, folder, {}

    def fresh(self, script: int) -> Path:
        trial = self.folder / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir(parents=True)
        self.subject.fresh(trial / "out", script)
        return trial / "out"

    def points(self, script: int) -> list[tuple[str, str]]:
        if script not in self.known:
            self.known[script] = points_of(partial(self.subject.go_on, self.fresh(script), script))
        return self.known[script]

    def killed(self, script: int, place: int, power: bool) -> str:
        """SIGKILL at the place-th point, or a power failure there."""
        out, crashed = self.fresh(script), self.folder / "crashed"
        shutil.rmtree(crashed, ignore_errors=True)
        notes = self.folder / "acknowledged"
        notes.write_text("")
        disk = ForgetfulDisk(out.parent) if power else None

        def fail_power(number, point, path):
            if number == place:
                disk.crash(crashed, np.random.default_rng([script, place]))
                os.kill(os.getpid(), 9)

        work = partial(self.subject.go_on, out, script, partial(noted, notes))
        answer = in_child(work, fail_power if power else kill_at(place), around=disk.watch if disk else nullcontext)
        if answer is not None:
            return f"broken: the process was not killed: {answer}"
        return self.verdict(crashed / "out" if power else out, script, notes)

    def failing(self, script: int, disk: Callable | None = None, around=nullcontext) -> str | None:
        """The disk fails; the process says so in one line and ends. None: nothing failed."""
        out, notes = self.fresh(script), self.folder / "acknowledged"
        notes.write_text("")
        work = partial(self.subject.go_on, out, script, partial(noted, notes))
        answer = in_child(lambda: work() or "done", disk, around=around)
        if answer == "done":
            return None
        if answer is None or not answer.startswith("refused: ") or "\n" in answer or str(out) not in answer:
            return f"unclear: {answer}"
        return self.verdict(out, script, notes)

    def verdict(self, out: Path, script: int, notes: Path) -> str:
        acknowledged = [int(line) for line in notes.read_text().split()]
        answer = in_child(partial(self.subject.check, out, script, acknowledged))
        return "broken: the check was killed" if answer is None else answer or "ok"


def noted(file: Path, number: int) -> None:
    """Outside the struck folder, and at once: what was acknowledged before a kill."""
    with open(file, "a") as stream:
        stream.write(f"{number}\n")

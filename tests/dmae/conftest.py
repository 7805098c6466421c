"""`dmae` as people run it: a real process, with its terminal's Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from dmae import extras
from dmae.cli import app

# A shell starts its background jobs with SIGINT ignored, which children inherit; a terminal does not.
AS_ON_A_TERMINAL = """
import resource, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("dmae", run_name="__main__", alter_sys=True)
"""


class Command:
    """One running `dmae …`, leader of its own process group; `text` is what it has printed so far.

    file_size: bytes beyond which no file of it can grow, as on a full disk; -1: no limit.
    """

    def __init__(self, arguments, log, file_size=-1):
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AS_ON_A_TERMINAL, str(file_size), *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, condition, seconds: float = 800.0) -> None:
        """Until `condition()` holds; a command that ends before that is an error, with its output."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended too early, exit code {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; it printed:\n{self.text}"
            time.sleep(0.02)

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to the whole group, as a terminal sends it. -> exit code"""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(800)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def start(tmp_path):
    """`start("demo", "--preset", "tiny", …)` -> Command; what still runs at the end of the test is killed."""
    started = []

    def run(*arguments, file_size=-1) -> Command:
        started.append(Command(arguments, tmp_path / f"{len(started)}.log", file_size))
        return started[-1]

    yield run
    for command in started:
        command.end()


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory):
    """(output folder, what was printed) of one `dmae demo --preset tiny`, run to its end."""
    folder = tmp_path_factory.mktemp("demo")
    command = Command(demo_arguments(folder / "out"), folder / "log")
    try:
        code = command.process.wait(800)
    finally:
        command.end()
    assert code == 0, command.text
    return folder / "out", command.text


@pytest.fixture
def demo_of():
    """`demo_of(folder, steps)` -> arguments of the smallest demo."""
    return demo_arguments


def demo_arguments(folder, steps: int = 4) -> list[str]:
    length = ["--set", f"training.max_steps={steps}", "--set", f"training.num_train_epochs={steps}"]  # long enough
    return ["demo", "--preset", "tiny", "--output-dir", str(folder), *length]


@pytest.fixture
def invoke():
    """invoke("search", …) -> (exit code, lines of stdout, lines of stderr), in this process."""

    def call(*words):
        result = CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, words)))
        return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()

    return call


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda name: True)


@pytest.fixture
def an_index(tmp_path):
    """A folder that looks like one before it is opened."""
    folder = tmp_path / "an.index"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder

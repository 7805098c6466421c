"""The `dmae` command: help for everything, one line for an expected error, and the right exit code."""

import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from dmae.cli import _plain_errors, app
from dmae.files import partial_name

GROUP = typer.main.get_command(app)
COMMANDS = [
    *("demo", "index", "watch", "search", "index-info", "serve", "export-clips", "duplicates"),
    *("train", "evaluate", "compare", "prepare", "push", "export", "leaderboard", "models"),
]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_all_commands_are_there_and_the_help_names_them():
    assert sorted(GROUP.commands) == sorted(COMMANDS)
    shown = invoke("--help")
    assert shown.exit_code == 0 and all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_every_option_is_for(name):
    shown = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    for parameter in GROUP.commands[name].params:
        if parameter.name == "help":
            continue
        assert len(parameter.help or "") > 10, f"{name}: {parameter.name} has no help"
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in shown.stdout


def test_version_is_the_packages_one():
    from dmae import __version__

    shown = invoke("--version")
    assert shown.exit_code == 0 and shown.stdout == f"dmae {__version__}\n"


def test_help_needs_none_of_the_heavy_packages():
    code = "import sys, dmae.cli; print([n for n in ('torch', 'transformers', 'spacy', 'av') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_option_or_command_is_a_usage_error():
    for arguments, name in [(["demo", "--bogus"], "--bogus"), (["indecks"], "indecks"), (["index"], "videos")]:
        result = invoke(*arguments)
        assert result.exit_code == 2 and name in result.stderr.lower()
        assert "Traceback" not in result.stderr


BAD_INPUT = {
    "no folder of videos": (["index", "{}/none", "-o", "{}/out", "--model", "m"], "{}/none: no such folder"),
    "no videos in it": (["index", "{}/text", "-o", "{}/out", "--model", "m"], "{}/text: no videos found"),
    "one file": (["index", "{}/text/a.txt", "-o", "{}/out", "--model", "m"], "give a folder of videos"),
    "no model folder": (["index", "{}/clips", "-o", "{}/out", "--model", "{}/text"], "without config.json"),
    "no index": (["search", "{}/none", "red"], "make one with `dmae index`"),
    "wrong caption column": (["prepare", "videofolder", "--videos", "{}/wrong", "-o", "{}/out"], "no column captions"),
    "no annotations": (["evaluate", "--model", "m", "--dataset", "{}/text"], "no metadata.jsonl"),
    "unknown dataset": (["evaluate", "--model", "m", "--dataset", "nosuch"], "msrvtt-9k"),
    "unknown preset": (["demo", "--preset", "nosuch", "--output-dir", "{}/out"], "choose one of demo"),
    "nothing to push": (["push", "{}/none", "--repo-id", "a/b", "--dry-run"], "{}/none: no such folder"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "clips", "wrong"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.txt").write_text("no video")
    (tmp_path / "clips" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "wrong" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "wrong" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "captoins": ["a dog"]}\n')
    return tmp_path


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_that_names_it_and_leaves_nothing(folder, case):
    arguments, said = BAD_INPUT[case]
    result = invoke(*(argument.replace("{}", str(folder)) for argument in arguments))
    *_, last = result.stderr.strip().splitlines()
    assert result.exit_code == 1
    assert last.startswith("error: ") and said.replace("{}", str(folder)) in last
    assert "Traceback" not in result.stderr
    assert not any(path.is_file() for path in (folder / "out").rglob("*"))


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.setenv("DMAE_DEBUG", "1")
    result = invoke("index", folder / "none", "-o", folder / "out")
    assert result.exit_code == 1 and isinstance(result.exception, OSError)


def test_a_full_disk_is_called_so(capsys):
    @_plain_errors
    def write():
        with open("/dev/full", "w") as file:
            file.write("no room")

    with pytest.raises(SystemExit) as stopped:
        write()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith("free some space and run the same command again\n")


def test_ctrl_c_while_rendering_leaves_no_corpus(start, tmp_path):
    command = start("demo", "--preset", "ablation", "--output-dir", tmp_path / "out")
    rendering = partial_name(tmp_path / "out" / "corpus")
    command.wait_for(lambda: len(list(rendering.glob("*/*.mp4"))) > 3)
    assert command.interrupt() == 130
    assert command.text.strip().splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in command.text
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_while_rendering_leaves_no_corpus(start, tmp_path):
    one_clip = 3000  # bytes: no clip fits, the small files do
    command = start("demo", "--preset", "tiny", "--output-dir", tmp_path / "out", file_size=one_clip)
    assert command.process.wait(800) == 1
    assert command.text.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in command.text and "File too large" in command.text
    assert not list((tmp_path / "out").iterdir())


CTRL_C_IN_A_FORK = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))  # where logging lets its lock go
import dmae.cli

def command():
    if not os.fork():
        os._exit(0)
    time.sleep(30)

dmae.cli._plain_errors(command)()
"""


def test_ctrl_c_while_workers_start_is_not_lost(tmp_path):
    """Python prints and drops what a signal raises in a callback of fork: training went on to its end."""
    command = [sys.executable, "-c", CTRL_C_IN_A_FORK]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 130 and ended.stderr.startswith("interrupted; "), ended.stderr


SECOND_CTRL_C = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import dmae.cli, dmae.files

def hung(point, path):  # a disk that does not answer: the first Ctrl-C waits for what is in hand
    said = "writing"
    while True:
        try:  # said inside: the signal may come as soon as it is read
            print(said, flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            said = "kept on"

dmae.files.fault = hung
dmae.cli._plain_errors(lambda: dmae.files.write_file("never", "written"))()
"""


def test_a_second_ctrl_c_is_immediate(tmp_path):
    command = [sys.executable, "-u", "-c", SECOND_CTRL_C]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "kept on\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=600) == 130
            assert process.stdout.read() == ""
        finally:
            process.kill()

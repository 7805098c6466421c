"""How a command ends, in this process: errors as one line, Ctrl-C as it should, and signals as they were before."""

import errno
import io
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from dmae import __version__, cli


@pytest.fixture
def handler():
    """handler() -> what Ctrl-C does now, handler(new) sets it; afterwards it is as it was."""
    usual = signal.getsignal(signal.SIGINT)
    yield lambda *new: signal.signal(signal.SIGINT, *new) if new else signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, usual)


FREE_SOME = "free some space and run the same command again"


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no\nsuch \x1b thing"), 1, "error: no\nsuch \\x1b thing\n"),
        (OSError(errno.ENOSPC, "full"), 1, f"error: [Errno {errno.ENOSPC}] full; {FREE_SOME}\n"),
        (OSError(errno.EDQUOT, "quota"), 1, f"error: [Errno {errno.EDQUOT}] quota; {FREE_SOME}\n"),
        (OSError(errno.EIO, "broken"), 1, "error: [Errno 5] broken\n"),
        (ImportError("give me x"), 1, "error: give me x\n"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept, run the same command again to go on\n"),
    ],
)  # fmt: skip
def test_an_expected_end_is_said_on_stderr(handler, capsys, monkeypatch, error, code, said):
    monkeypatch.delenv("DMAE_DEBUG", raising=False)
    handler(signal.default_int_handler)
    with pytest.raises(SystemExit) as ended:
        cli._plain_errors(raising(error))()
    assert ended.value.code == code and capsys.readouterr() == ("", said)
    assert handler() is signal.default_int_handler
    monkeypatch.setenv("DMAE_DEBUG", "1")
    with pytest.raises(SystemExit if code == 130 else type(error)):
        cli._plain_errors(raising(error))()


def test_what_nobody_expects_is_not_hidden(handler):
    handler(signal.default_int_handler)
    with pytest.raises(ZeroDivisionError):
        cli._plain_errors(raising(ZeroDivisionError()))()
    assert handler() is signal.default_int_handler


def test_a_command_has_its_arguments_its_result_and_its_own_ctrl_c(handler):
    def command(*words, **named):
        return words, named, handler()

    run = cli._plain_errors(command)
    assert run.__name__ == "command"
    handler(signal.default_int_handler)
    assert run(1, a=2) == ((1,), {"a": 2}, cli._interrupted) and handler() is signal.default_int_handler
    for other in (signal.SIG_IGN, lambda number, frame: None):  # a background job's, or somebody's own
        handler(other)
        assert run() == ((), {}, other) and handler() is other
    handler(signal.default_int_handler)
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    assert found == [((), {}, signal.default_int_handler)], "only the main thread may set one"


def test_the_first_ctrl_c_is_an_exception_and_the_second_ends_it(handler, monkeypatch):
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    handler(cli._interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli._interrupted(signal.SIGINT, None)
    assert not ends and handler() is not cli._interrupted
    handler()(signal.SIGINT, None)
    assert ends == [130]


def test_ctrl_c_in_a_fork_waits_until_it_is_over(monkeypatch):
    timers = []

    class Timer:
        def __init__(self, *words):
            self.words = words

        def start(self):
            timers.append(self.words)

    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setattr(cli, "_fork", SimpleNamespace(under_way=False, held_back=False))
    cli._forking()
    assert cli._fork == SimpleNamespace(under_way=True, held_back=False)
    cli._forked()
    assert cli._fork == SimpleNamespace(under_way=False, held_back=False) and not timers
    cli._forking()
    assert cli._interrupted(signal.SIGINT, None) is None and cli._fork.held_back is True
    cli._forked()
    assert cli._fork == SimpleNamespace(under_way=False, held_back=False)
    assert timers == [(0.1, os.kill, [os.getpid(), signal.SIGINT])]
    cli._fork.under_way = cli._fork.held_back = True
    cli._in_child()
    assert cli._fork == SimpleNamespace(under_way=False, held_back=False) and len(timers) == 1


def test_a_name_that_is_no_utf8_goes_out_as_its_bytes(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", newline="\n"))
    monkeypatch.setattr(cli, "app", lambda: print("caf\udce9"))
    cli.main()
    sys.stdout.flush()
    assert written.getvalue() == b"caf\xe9\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # of a notebook
    cli.main()
    assert sys.stdout.getvalue() == "caf\udce9\n"


def test_the_version_is_printed_where_it_is_asked_for(capsys):
    cli._version(False)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(cli.typer.Exit):
        cli._version(True)
    assert capsys.readouterr() == (f"dmae {__version__}\n", "")

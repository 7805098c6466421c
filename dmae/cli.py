"""The `dmae` command: registers the commands and turns expected errors into one clear line."""

import errno
import functools
import io
import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Annotated

import typer

from dmae import __version__
from dmae.commands import (
    compare,
    demo,
    duplicates,
    evaluate,
    export,
    hub,
    index,
    models,
    prepare,
    search,
    towers,
    train,
)
from dmae.terminal import printable

app = typer.Typer(
    name="dmae",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _plain_errors(command):
    """Expected failures print one line and exit 1, Ctrl-C exits 130, a second one at once; DMAE_DEBUG=1 shows the
    traceback."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        usual = signal.getsignal(signal.SIGINT)
        ours = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()
        if ours:  # a shell's background job ignores Ctrl-C, and goes on doing so
            signal.signal(signal.SIGINT, _interrupted)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _stop("interrupted; finished work is kept, run the same command again to go on", code=130)
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("DMAE_DEBUG"):
                raise
            _stop(f"error: {error}{_remedy(error)}", code=1)
        finally:
            if ours:
                signal.signal(signal.SIGINT, usual)

    return run


def _interrupted(number: int, frame) -> None:
    """The first Ctrl-C lets the work in hand be kept; the disk holds a whole index at any moment: a second may kill."""
    if _fork.under_way:
        _fork.held_back = True
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    raise KeyboardInterrupt


# Python drops what is raised in the callbacks of a fork, as of a loader's workers: Ctrl-C would be lost there.
_fork = SimpleNamespace(under_way=False, held_back=False)


def _forking() -> None:
    _fork.under_way = True


def _forked() -> None:
    """Runs after all other callbacks, as it was registered last: from here on Ctrl-C counts, also one held back."""
    if _fork.held_back:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    _in_child()


def _in_child() -> None:
    _fork.under_way = _fork.held_back = False


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_forking, after_in_parent=_forked, after_in_child=_in_child)


def _remedy(error: BaseException) -> str:
    """Python's own words for a full disk name no remedy, and often not even a file."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and run the same command again"
    return ""


def _stop(message: str, code: int) -> None:
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        print(f"dmae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Text-to-video retrieval: search your own videos with words; train, evaluate and publish DMAE models."""


for name, command in {
    "demo": demo.demo,
    "index": index.index,
    "search": search.search,
    "index-info": search.index_info,
    "watch": index.watch,
    "serve": search.serve,
    "export-clips": export.export_clips,
    "duplicates": duplicates.duplicates,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "prepare": prepare.prepare,
    "export": towers.export,
    "models": models.models,
    "push": hub.push,
    "leaderboard": hub.leaderboard,
}.items():
    app.command(name)(_plain_errors(command))


def main() -> None:
    """The `dmae` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name that is not UTF-8 goes out as the bytes it is
    app()


if __name__ == "__main__":
    main()

"""Files and folders are whole or absent, and what is not ours is left alone."""

import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from dmae import files

FAILURES = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "ctrl-c": KeyboardInterrupt(),
    "torch's full disk": RuntimeError("write failed"),
    "safetensors' full disk": SafetensorError("io"),
}
POINTS = ["write", "fsync", "rename", "renamed"]


def fill(kind, path, text):
    if kind == "file":
        files.write_file(path, text)
    else:
        with files.new_folder(path) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "weights").write_text(text)


def content(kind, path):
    return (path if kind == "file" else path / "sub" / "weights").read_text()


@pytest.fixture
def strike(monkeypatch):
    """strike(point, n, error): the n-th time `point` is reached, `error` is raised."""

    def install(point, nth, error):
        seen = []

        def fault(name, path):
            seen.append(name)
            if name == point and seen.count(point) == nth:
                raise error

        monkeypatch.setattr(files, "fault", fault)

    return install


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_what_was_there(tmp_path, kind, earlier, failure):
    path = tmp_path / "best"
    if earlier:
        fill(kind, path, "old")
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OSError
    with pytest.raises(expected) as error, (files.new_file if kind == "file" else files.new_folder)(path) as partial:
        partial.touch() if kind == "file" else (partial / "weights").touch()
        raise failure
    assert os.listdir(tmp_path) == (["best"] if earlier else [])
    assert not earlier or content(kind, path) == "old"
    if expected is OSError:
        assert str(path) in str(error.value) and "is kept" in str(error.value)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_refusal_at_any_point_leaves_the_old_or_the_new(tmp_path, strike, kind, point, nth):
    path = tmp_path / "best"
    fill(kind, path, "old")
    strike(point, nth, OSError(errno.EIO, "Input/output error"))
    try:
        fill(kind, path, "new")
        failed = False
    except OSError:
        failed = True
    files.fault = None
    assert content(kind, path) in ({"old", "new"} if failed else {"new"})
    files.tidy(tmp_path)
    assert os.listdir(tmp_path) == ["best"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_leaves_the_old_or_the_new(tmp_path, kind, point):
    path = tmp_path / "best"
    fill(kind, path, "old")
    for nth in (1, 2):
        program = (
            "import os, pathlib, signal, sys\nfrom dmae import files\nseen = []\n"
            f"def fault(name, path):\n    seen.append(name)\n"
            f"    if name == {point!r} and seen.count(name) == {nth}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "files.fault = fault\npath = pathlib.Path(sys.argv[1])\n"
            + ("files.write_file(path, 'new')\n" if kind == "file" else "")
            + (
                ""
                if kind == "file"
                else "with files.new_folder(path) as partial:\n    (partial / 'sub').mkdir()\n"
                "    (partial / 'sub' / 'weights').write_text('new')\n"
            )
        )
        subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=600)
        files.tidy(tmp_path)
        assert os.listdir(tmp_path) == ["best"]
        assert content(kind, path) in {"old", "new"}


def test_tidy_touches_only_what_carries_the_mark(tmp_path):
    for name in ["download.tmp", "videos.old", "thesis.old", ".hidden.tmp", "weights.dmae-new.bak"]:
        (tmp_path / name).write_text("mine")
    (tmp_path / "notes.tmp").mkdir()
    (tmp_path / ".run.json.77.dmae-new").write_text("half")
    (tmp_path / ".best.dmae-new").mkdir()
    (tmp_path / ".best.dmae-old").mkdir()
    files.tidy(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["download.tmp", "videos.old", "thesis.old", ".hidden.tmp", "weights.dmae-new.bak", "notes.tmp", "best"]
    )


def test_the_second_holder_of_a_lock_is_refused_and_the_lock_falls(tmp_path):
    lock = tmp_path / ".lock"
    with files.locked(lock, "held"), pytest.raises(OSError, match="busy"), files.locked(lock, "busy"):
        pass
    with files.locked(lock, "held"):
        pass

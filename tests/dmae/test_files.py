"""Files and folders are whole or absent, and what is not ours is left alone."""

import errno
import os
import subprocess
import sys
from pathlib import Path

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


def test_what_another_writer_has_cleared_away_by_then_is_gone(tmp_path, monkeypatch):
    """Two runs that begin at once both tidy: the slower one finds names that are no more."""
    left, is_dir = files.partial_name(tmp_path / "a.json"), Path.is_dir
    left.touch()

    def looked_at(path, *options, **named):
        found = is_dir(path, *options, **named)
        if path == left:
            left.unlink()
        return found

    monkeypatch.setattr(Path, "is_dir", looked_at)
    files.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


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


@pytest.fixture
def durable(monkeypatch):
    """Every point that was passed, with the file's name, and how often the disk was asked to keep something."""
    seen, synced, sync = [], [], os.fsync
    monkeypatch.setattr(files, "fault", lambda point, path: seen.append((point, path.name)))
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(handle) or sync(handle))
    return seen, synced


def test_a_power_failure_at_any_time_finds_names_only_of_what_is_on_the_disk(tmp_path, durable):
    """The content first, then its name, then the folder that holds the name."""
    seen, synced = durable
    here, place = tmp_path.name, tmp_path / "best"
    files.write_file(tmp_path / "a", "x")
    partial = f".a.{os.getpid()}.dmae-new"
    assert seen == [("write", "a"), ("fsync", partial), ("rename", "a"), ("renamed", "a"), ("fsync", here)]
    filled = [("write", "best"), ("fsync", "sub"), ("fsync", "weights"), ("fsync", ".best.dmae-new")]
    published = [("rename", "best"), ("renamed", "best"), ("fsync", here)]
    seen.clear()
    fill("folder", place, "old")
    assert seen == filled + published
    seen.clear()
    fill("folder", place, "new")
    away = [("rename", ".best.dmae-old"), ("renamed", ".best.dmae-old"), ("fsync", here)]
    assert seen == filled + away + published and content("folder", place) == "new"
    seen.clear()
    files.remove_folder(place)
    assert seen == [("rename", ".best.dmae-new"), ("renamed", ".best.dmae-new"), ("fsync", here)]
    seen.clear()
    files.make_folder(tmp_path / "b" / "c")
    files.make_folder(tmp_path / "b" / "c")
    assert seen == [("fsync", "b"), ("fsync", here)] and (tmp_path / "b" / "c").is_dir()
    assert len(synced) == 2 + 4 + 5 + 1 + 2 and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_a_killed_writer_left_gives_way_to_the_next(tmp_path):
    for name in (".best.dmae-new", ".best.dmae-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    fill("folder", tmp_path / "best", "new")
    assert os.listdir(tmp_path / "best") == ["sub"] and content("folder", tmp_path / "best") == "new"
    (tmp_path / ".best.dmae-new").mkdir()
    (tmp_path / ".best.dmae-new" / "half").touch()
    files.remove_folder(tmp_path / "best")
    assert not any(name == "best" or name.endswith("new") for name in os.listdir(tmp_path))


def test_an_error_of_the_disk_keeps_its_number_and_its_cause(tmp_path):
    cause = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError) as told, files.disk_errors_named(tmp_path / "a"):
        raise cause
    assert (told.value.errno, told.value.__cause__) == (errno.ENOSPC, cause)
    assert str(told.value) == f"{tmp_path / 'a'}: could not be written ({cause}); what was there before is kept"
    with pytest.raises(OSError) as told, files.disk_errors_named(tmp_path / "a"):
        raise RuntimeError("torch")
    assert told.value.errno is None
    with pytest.raises(KeyError), files.disk_errors_named(tmp_path / "a"):
        raise KeyError("ours")


def test_bytes_and_words_are_written_as_they_are(tmp_path):
    files.write_file(tmp_path / "a", "é\n")
    files.write_file(tmp_path / "b", b"\xff\r\n")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == ("é\n".encode(), b"\xff\r\n")


def test_a_writer_that_wrote_nothing_is_told_its_own_error(tmp_path):
    with pytest.raises(KeyError), files.new_file(tmp_path / "a"):
        raise KeyError("before the first byte")
    with pytest.raises(KeyError), files.new_folder(tmp_path / "new" / "b") as partial:
        partial.rmdir()
        raise KeyError("after the last")
    assert os.listdir(tmp_path) == ["new"] and not os.listdir(tmp_path / "new"), "its folder was made for it"


def test_a_lock_is_asked_for_once_and_given_back_and_folders_are_closed(tmp_path, monkeypatch):
    asked = []

    class Lock:
        def __init__(self, path, timeout):
            asked.append((path, timeout))

        def acquire(self):
            asked.append("acquire")

        def release(self):
            asked.append("release")

    monkeypatch.setattr(files, "FileLock", Lock)
    with pytest.raises(KeyError), files.locked(tmp_path / "l", "held"):
        assert asked == [(tmp_path / "l", 0), "acquire"]
        raise KeyError
    assert asked[2:] == ["release"]
    opened, closed, open_, close = [], [], os.open, os.close
    monkeypatch.setattr(os, "open", lambda *words: opened.append(open_(*words)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda handle: closed.append(handle) or close(handle))
    files.sync_names(tmp_path)
    assert len(opened) == 1 and opened[0] in closed

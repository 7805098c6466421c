"""What an index has to do to follow its files, decided by its rows and the files alone: nothing is embedded here."""

import os
from pathlib import Path

import pytest

from dmae.data.sources import SourceVideo
from dmae.retrieval import changes
from dmae.retrieval.changes import Changes, find_changes
from dmae.retrieval.places import content_id


def put(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def signature(path) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]


def row(name: str, path: Path, **about) -> dict:
    """A row as the index has it of a video."""
    known = {"signature": signature(path), "content": content_id(path)}
    return {"video_id": name, "path": str(path), **known, "start": 0.0, "end": 2.0, **about}


def file(name: str, path: Path, **about) -> SourceVideo:
    return SourceVideo(name, str(path), tuple(signature(path)), **about)


def place(path: Path) -> dict:
    return {"path": str(path), "signature": signature(path)}


def item(name: str, path: Path, **about) -> dict:
    """What is to be embedded."""
    return {
        "video_id": name, **place(path), "content": content_id(path),
        "metadata": {}, "clip": None, "copies": [], **about,
    }  # fmt: skip


@pytest.fixture
def a(tmp_path):
    return put(tmp_path / "a.mp4", "content of a")


@pytest.fixture
def b(tmp_path):
    return put(tmp_path / "b.mp4", "content of b, longer")


def test_what_is_where_it_was_is_not_read(a, b, monkeypatch):
    rows = [row("a", a, copies=[place(b)])]
    monkeypatch.setattr(changes, "content_id", lambda path: pytest.fail(f"read {path}"))
    assert find_changes(rows, [file("a", a), file("b", b)], {}) == Changes(unchanged=1)


def test_a_file_that_was_only_touched_keeps_its_row(a):
    rows = [row("a", a)]
    os.utime(a, ns=(5, 5))
    assert find_changes(rows, [file("a", a)], {}) == Changes(
        rewrites={"a": {"signature": [len("content of a"), 5]}}, unchanged=1
    )


def test_columns_that_were_added_or_taken_away_are_rewritten(a, b):
    rows = [row("a", a), row("b", b, metadata={"year": 1})]
    assert find_changes(rows, [file("a", a, metadata={"year": 2}), file("b", b)], {}) == Changes(
        rewrites={"a": {"metadata": {"year": 2}}, "b": {"metadata": {}}}, unchanged=2
    )


def test_a_moved_file_takes_its_new_name_unless_that_is_taken(a, b, tmp_path):
    rows, new = [row("a", a), row("b", b)], tmp_path / "new.mp4"
    os.rename(a, new)
    assert find_changes(rows, [file("b", b), file("new", new)], {}) == Changes(
        rewrites={"a": {"path": str(new), "video_id": "new"}}, unchanged=1, moved=1
    )
    assert find_changes(rows, [file("b", b), file("b", new)], {}).rewrites == {"a": {"path": str(new)}}


def test_a_file_out_of_sight_is_not_gone(a, tmp_path):
    """This run looks at another folder: what it finds there is a copy, and the row stays where it was."""
    rows, other = [row("a", a)], put(tmp_path / "other.mp4", "content of a")
    found = find_changes(rows, [file("other", other)], {})
    assert found == Changes(rewrites={"a": {"copies": [place(other)]}}, unchanged=1)
    rows[0]["copies"] = [place(other)]
    assert find_changes(rows, [file("a", a)], {}) == Changes(unchanged=1), "the copy is out of sight now"
    other.unlink()
    assert find_changes(rows, [file("a", a)], {}) == Changes(rewrites={"a": {"copies": []}}, unchanged=1)


def test_a_row_stays_at_its_own_file_whatever_copy_is_met_first(a, tmp_path):
    first, last = put(tmp_path / "0.mp4", "content of a"), put(tmp_path / "z.mp4", "content of a")
    found = find_changes([row("a", a)], [file("0", first), file("a", a), file("z", last)], {})
    assert found == Changes(rewrites={"a": {"copies": [place(first), place(last)]}}, unchanged=1)


def test_another_content_in_a_known_place_is_another_video(a, tmp_path):
    rows = [row("a", a)]
    put(a, "another content")
    assert find_changes(rows, [file("a", a)], {}) == Changes(todo=[item("a", a)])


def test_a_copy_takes_the_place_of_what_was_replaced(a, tmp_path):
    copy = put(tmp_path / "z.mp4", "content of a")
    rows = [row("a", a, signature=signature(copy), copies=[place(copy)])]
    put(a, "another content")
    assert find_changes(rows, [file("a", a), file("z", copy)], {}) == Changes(
        todo=[item("a", a)], rewrites={"a": {"path": str(copy), "copies": [], "video_id": "z"}}, moved=1
    )


def test_new_files_with_one_content_are_one_video_each_clip_its_own(a, b, tmp_path):
    again = put(tmp_path / "again.mp4", "content of a")
    videos = [
        file("a", a, metadata={"year": 1}), file("again", again), file("b", b), file("cut", b, clip=[1.0, None]),
        file("cut2", again, clip=[1.0, None]),
    ]  # fmt: skip
    assert find_changes([], videos, {}) == Changes(
        todo=[
            item("a", a, metadata={"year": 1}, copies=[place(again)]), item("b", b),
            item("cut", b, clip=[1.0, None]), item("cut2", again, clip=[1.0, None]),
        ]
    )  # fmt: skip


def test_clips_of_one_file_are_told_apart(a):
    rows = [row("one", a, clip=[0.0, 1.0]), row("two", a, clip=[1.0, 2.0])]
    videos = [file("one", a, clip=[0.0, 1.0]), file("two", a, clip=[1.0, 2.0]), file("all", a)]
    assert find_changes(rows, videos, {}) == Changes(todo=[item("all", a)], unchanged=2)


def test_a_name_in_use_elsewhere_is_left_alone(a, b, tmp_path):
    """By a file out of this run's sight, or by one of this run; a name whose file is gone is free."""
    rows, cut = [row("x", a)], [1.0, 2.5]
    assert find_changes(rows, [file("x", b)], {}).todo == [item(str(b), b)]
    assert find_changes(rows, [file("x", a), file("x", b, clip=cut)], {}).todo == [
        item(f"{b}#1-2.5", b, clip=cut)
    ]  # fmt: skip
    moved = tmp_path / "moved.mp4"
    os.rename(a, moved)
    assert find_changes(rows, [file("x", b)], {}).todo == [item("x", b)]
    found = find_changes(rows, [file("y", moved), file("y", b)], {})
    assert found.rewrites == {"x": {"path": str(moved), "video_id": "y"}} and found.todo == [item(str(b), b)]
    found = find_changes(rows, [file("y", moved), file("x", b)], {})
    assert found.todo == [item("x", b)] and found.rewrites["x"]["video_id"] == "y"


def test_what_cannot_be_read_is_named_and_tried_again_when_it_changes(a, b, tmp_path):
    gone = SourceVideo("gone", str(tmp_path / "gone.mp4"), (3, 4))
    told = {"video_id": "gone", "path": gone.path, "error": "cannot be read (No such file or directory)"}
    before = {str(a): {"video_id": "a", **place(a), "error": "damaged"}, str(b): {"signature": [1, 1], "error": "old"}}
    assert find_changes([], [gone, file("a", a), file("b", b)], before) == Changes(
        todo=[item("b", b)], skipped=[told, before[str(a)]]
    )


def test_windows_of_an_interrupted_run_are_not_embedded_again(a, tmp_path):
    rows = [row("a", a, last=False), row("a", a, start=1.0, end=3.0, last=False)]
    done = [(0.0, 2.0), (1.0, 3.0)]
    assert find_changes(rows, [file("a", a)], {}) == Changes(todo=[item("a", a, done=done)])
    bad = {str(a): {"signature": [0, 0]}}
    assert find_changes(rows, [file("a", a)], bad) == Changes(unchanged=1), "the rest of it could not be read"
    for order in ([*rows, row("a", a, start=2.0, last=True)], [row("a", a, last=True), *rows]):
        assert find_changes(order, [file("a", a)], {}) == Changes(unchanged=1)
    moved = tmp_path / "m.mp4"
    os.rename(a, moved)
    found = find_changes(rows, [file("m", moved)], {})
    assert found.todo == [item("m", moved, done=done)] and found.moved == found.unchanged == 0


def test_rows_of_the_oldest_indexes_learn_their_content(a):
    old = row("a", a)
    del old["content"]
    assert find_changes([old], [file("a", a)], {}) == Changes(rewrites={"a": {"content": content_id(a)}}, unchanged=1)
    rows = [{**old, "last": False}]
    assert find_changes(rows, [file("a", a)], {}).todo == [item("a", a, done=[(0.0, 2.0)])]
    del old["signature"]
    assert find_changes([old], [file("a", a)], {}) == Changes(todo=[item("a", a)]), "nothing says that it is the same"

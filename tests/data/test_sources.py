"""What there is to index: every video below a folder once, and the reason for each file that is none."""

import os
from pathlib import Path

import pytest

from dmae.data.listing import VIDEO_EXTENSIONS
from dmae.data.sources import find_videos, unreadable


@pytest.fixture
def folder(tmp_path):
    names = ["a.mp4", "a.mkv", "notes.txt", ".hidden/b.mp4", "@eaDir/e.mp4", "keep/c.MP4", "keep/deep/d.mp4"]
    names += ["keep/x_draft.mp4", "drafts/f.mp4", "../out/g.mp4", ".h.mp4"]
    root = tmp_path / "in"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    (root / "keep" / "up").symlink_to(root)  # a way round
    (root / "far").symlink_to(tmp_path / "out")
    (root / "same").symlink_to(root / "keep")
    (root / "link.mp4").symlink_to(root / "a.mp4")
    return root


def test_a_folder_is_walked_once_and_names_of_others_are_left_out(folder):
    found, skipped = find_videos(folder)
    ids = ["a.mkv", "a.mp4", "drafts/f", "keep/c", "keep/deep/d", "keep/x_draft", "g"]
    assert [video.video_id for video in found] == ids and skipped == []
    assert [Path(video.path).name for video in found] == [
        "a.mkv", "a.mp4", "f.mp4", "c.MP4", "d.mp4", "x_draft.mp4", "g.mp4"
    ]  # fmt: skip
    status = (folder / "a.mkv").stat()
    assert found[0].signature == (5, status.st_mtime_ns) and found[0].clip is None and found[0].metadata == {}


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        (["drafts/"], {"drafts/f"}),
        (["x_*"], {"keep/x_draft"}),
        (["keep/deep"], {"keep/deep/d"}),
        (["deep", "a.m*"], {"keep/deep/d", "a.mp4", "a.mkv"}),
        (["keep/*.mp4", "other/deep"], {"keep/x_draft", "keep/deep/d"}),
    ],
)
def test_patterns_are_of_a_name_or_of_a_path_below_the_folder(folder, exclude, gone):
    everything = {video.video_id for video in find_videos(folder)[0]}
    assert everything - {video.video_id for video in find_videos(folder, exclude)[0]} == gone


def test_what_is_no_file_is_named_with_the_reason(folder, monkeypatch):
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    os.mkfifo(folder / "keep" / "pipe.mp4")
    skipped = find_videos(folder)[1]
    assert [tuple(item.values()) for item in skipped] == [
        ("gone", str(folder / "gone.mp4"), "a link that leads nowhere"),
        ("keep/pipe", str(folder / "keep" / "pipe.mp4"), "a named pipe, not a file"),
    ]
    assert unreadable(folder) == "a folder, not a file" and unreadable("/dev/null") == "a device, not a file"
    assert unreadable(folder / "nothing") == "not found" and "null" in str(unreadable("a\0"))
    assert unreadable(folder / "a.mp4") is None and unreadable(folder / "a.mp4" / "b") == "Not a directory"
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # root may read everything
    assert unreadable(folder / "a.mp4") == "no permission to read it"


def test_rows_of_a_list_that_have_no_file_are_named_and_the_rest_is_taken(folder):
    listing = folder / "list.csv"
    listing.write_text("path,video_id,title\na.mp4,A,first\ngone.mp4,G,x\nkeep,,y\na.mp4,A,\na.mp4,B,\n")
    found, skipped = find_videos(listing)
    assert [(video.video_id, video.path, video.metadata) for video in found] == [
        ("A", str(folder / "a.mp4"), {"title": "first"})
    ]
    assert [tuple(item.values()) for item in skipped] == [
        ("G", str(folder / "gone.mp4"), "listed in list.csv, not found"),
        ("keep", str(folder / "keep"), "listed in list.csv, a folder, not a file"),
    ]
    listing.write_text("path\nfirst.mp4\nsecond.mp4\n")
    with pytest.raises(ValueError) as raised:
        find_videos(listing)
    suffixes = ", ".join(VIDEO_EXTENSIONS)
    assert str(raised.value) == (
        f"{listing}: no videos found (looked for {suffixes}); {folder / 'first.mp4'}: listed in list.csv, not found"
    )
    with pytest.raises(FileNotFoundError) as raised:
        find_videos(folder / "nowhere")
    assert str(raised.value) == f"{folder / 'nowhere'}: no such folder or metadata file"


def test_clips_of_one_id_are_told_apart_by_their_files_and_windows(folder):
    rows = ["path,video_id,start,end,captions", "a.mp4,v,,2,one", "a.mp4,v,,2,two", "a.mkv,v,1,,three", "a.mkv,,0,0.5,"]
    (folder / "list.csv").write_text("\n".join(rows))
    found, _ = find_videos(folder / "list.csv")
    assert [(video.video_id, video.clip, video.metadata["captions"]) for video in found] == [
        ("a.mkv#1-", [1.0, None], "three"),
        ("a#0-0.5", [0.0, 0.5], ""),
        ("a.mp4#0-2", [None, 2.0], ["one", "two"]),
    ]

"""One reader of a folder, or of a list: training and search see the same clips, and nothing is passed over."""

import json

import pytest

from dmae.data.listing import VIDEO_EXTENSIONS, clip_id, file_of, read_rows, window_of
from dmae.data.registry import load_dataset
from dmae.data.sources import find_videos


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.MTS", "sub/c.vob"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


ROWS = [
    {"file_name": "a.mp4", "start": 0, "end": 2, "captions": ["one"], "year": 2019},
    {"file_name": "a.mp4", "start": 2, "end": 4.5, "captions": ["two"]},
    {"file_name": "a.mp4", "start": 0, "end": 2, "captions": ["one again"]},
    {"file_name": "b.MTS", "captions": ["three"], "video_id": "bee"},
]


def test_rows_of_one_file_are_clips_for_training_and_for_search(folder):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    trained = load_dataset("videofolder", folder, folder, None).dataset.to_list()
    found, skipped = find_videos(folder)
    listed = {(video.clip[0], video.clip[1]) if video.clip else (None, None): video for video in found}
    assert [(row["start"], row["end"]) for row in trained] == [(0, 2), (2, 4.5), (None, None)]
    assert set(listed) == {(0, 2), (2, 4.5), (None, None)} and skipped == []
    assert listed[0, 2].metadata == {"captions": ["one", "one again"], "year": 2019}
    assert [video.video_id for video in found] == ["a#0-2", "a#2-4.5", "bee", "sub/c"]


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"file_name": "a.mp4", "start": 1.5, "title": "\xc3\xa9t\xc3\xa9"}\n',
        "file_name,start,title\na.mp4,1.5,été\n".encode("utf-8-sig"),
        "file_name;start;title\r\na.mp4;1,5;été\r\n".encode("utf-8-sig"),
        "file_name\tstart\ttitle\na.mp4\t1.5\tété\n".encode(),
    ],
)
def test_lists_as_spreadsheets_write_them(folder, content):
    path = folder / ("list.jsonl" if b"{" in content else "list.csv")
    path.write_bytes(content)
    ((video,), skipped) = find_videos(path)
    assert (video.clip, video.metadata, skipped) == ([1.5, None], {"title": "été"}, [])


def test_every_suffix_is_looked_for(tmp_path):
    for number, suffix in enumerate(VIDEO_EXTENSIONS):
        (tmp_path / f"v{number}{suffix.upper()}").write_bytes(b"x")
    assert len(find_videos(tmp_path)[0]) == len(VIDEO_EXTENSIONS)
    assert {".mts", ".m2ts", ".vob", ".asf", ".mpg", ".ts"} <= set(VIDEO_EXTENSIONS)


def test_a_list_of_another_kind_and_wrong_rows_are_refused_by_line(folder):
    with pytest.raises(ValueError, match=r"give a folder of videos, or a \.jsonl or \.csv"):
        read_rows(folder / "a.mp4")
    (folder / "list.csv").write_text("file_name,start,end\na.mp4,3,2\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 2: end 2 s is not after start 3 s"):
        find_videos(folder / "list.csv")


@pytest.mark.parametrize("name", [3, " ", "a\0.mp4"])
def test_what_is_no_file_name_is_refused_as_it_stands(name):
    with pytest.raises(ValueError) as raised:
        file_of({"video": name}, "list.csv, line 4")
    assert str(raised.value) == f"list.csv, line 4: {name!r} is no file name"
    assert file_of({"file_name": None, "path": " b.mp4 ", "video": "a.mp4"}, "here") == "b.mp4"


def test_windows_are_finite_forward_and_not_negative():
    assert window_of({"start": "", "end": 0.5}, "x") == (None, 0.5) and window_of({"start": 0}, "x") == (0.0, None)
    for start, end in ((-1, None), (None, -1), (float("inf"), None), (0, float("inf"))):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            window_of({"start": start, "end": end}, "x")
    for start, end, said in ((None, 0, "end 0 s is not after start 0 s"), (2, 2, "end 2 s is not after start 2 s")):
        with pytest.raises(ValueError, match=said):
            window_of({"start": start, "end": end}, "x")


def test_a_clip_is_named_by_its_file_and_its_window_where_it_has_one():
    """`0-` is a window too: its row has said where it begins, and other rows of the file may have other windows."""
    windows = [(None, None), (0.0, None), (None, 2.0), (0.0, 2.5), (1.25, None), (None, 0.5), (60.0, 1234567.0)]
    named = ["a", "a#0-", "a#0-2", "a#0-2.5", "a#1.25-", "a#0-0.5", "a#60-1.23457e+06"]
    assert [clip_id("a", start, end) for start, end in windows] == named


def test_a_row_without_a_file_is_told_what_it_has():
    """Of two columns the first in the order of FILE_COLUMNS counts, wherever it stands in the row."""
    with pytest.raises(ValueError) as raised:
        file_of({"title": "x", "year": 3, "path": None}, "list.csv, line 4")
    wanted = "'file_name' or 'path' or 'video'; it has title, year, path"
    assert str(raised.value) == f"list.csv, line 4: no column {wanted}"
    assert [file_of({name: name for name in names}, "x") for names in (("video", "path"), ("path", "file_name"))] == [
        "path", "file_name",
    ]  # fmt: skip


def test_didemo_and_activitynet_are_found_as_the_lineage_stores_them(tmp_path):
    annotations, videos = tmp_path / "annotations", tmp_path / "videos"
    annotations.mkdir()
    videos.mkdir()
    names = {
        "1@N_a.3gp": "1@N_a.3gp.mp4",
        "2@N_b.mov": "2@N_b.mov.mp4",
        "3@N_c.": "3@N_c.mp4",
        "4@N_d.avi": "4@N_d.avi",
    }
    names |= {"5@N_e.mov": "5@N_e.mov.mp4", "5@N_e.avi": "5@N_e.avi.mp4", "6@N_f.": "6@N_f.m4v.mp4"}
    for name in names.values():
        (videos / name).write_bytes(b"x")
    data = [{"description": "x", "video": name} for name in names]
    (annotations / "test_data.json").write_text(json.dumps(data))
    loaded = load_dataset("didemo", annotations, videos, "test")
    assert {row["video_id"]: row["video"].rsplit("/", 1)[1] for row in loaded.dataset.to_list()} == names
    activity = {"v_--abc-def_g": {"duration": 1.0, "timestamps": [[0, 1]], "sentences": ["One."]}}
    (annotations / "val_1.json").write_text(json.dumps(activity))
    (videos / "--abc-def_g.mp4").write_bytes(b"x")
    rows = load_dataset("activitynet", annotations, videos, "test").dataset.to_list()
    assert [(row["video_id"], row["video"]) for row in rows] == [("v_--abc-def_g", str(videos / "--abc-def_g.mp4"))]

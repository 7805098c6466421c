"""One's own data, and the way from a listed name to a file: nothing outside the folder, nothing lost without a word."""

import json
import wave
from pathlib import Path

import pytest

from dmae.data.registry import available_splits, load_dataset
from dmae.data.videos import VideoFolder, VideoNotFound, open_error, video_stem


def videofolder(folder: Path, rows: list[dict], files=("a.mp4", "b.mp4")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_bytes(b"x")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_metadata_with_captions_text_windows_and_extra_columns(tmp_path):
    rows = [
        {"file_name": "a.mp4", "captions": ["one", "two"], "video_id": "A", "near": ["b"]},
        {"file_name": "b.mp4", "text": "three", "start": 1, "end": 2.5},
        {"file_name": "b.mp4", "text": "four", "start": 3},
        {"file_name": "b.mp4", "text": "five", "start": 3},
    ]
    loaded = load_dataset("videofolder", videos=videofolder(tmp_path, rows))
    assert [tuple(row.values()) for row in loaded.dataset] == [
        ("A", str(tmp_path / "a.mp4"), ["one", "two"], None, None),
        ("b.mp4#1-2.5", str(tmp_path / "b.mp4"), ["three"], 1.0, 2.5),
        ("b.mp4#3-", str(tmp_path / "b.mp4"), ["four", "five"], 3.0, None),
    ]
    assert loaded.metadata == {"A": {"near": ["b"]}}
    assert loaded.paragraphs() == ["one two", "three", "four five"]


def test_split_folders_keep_their_ids_apart(tmp_path):
    for split in ("train", "val"):
        videofolder(tmp_path / split, [{"file_name": "a.mp4", "text": split}])
    assert available_splits("videofolder", None, tmp_path) == ["train", "validation"]
    loaded = {split: load_dataset(str(tmp_path), split=split).dataset[0] for split in ("train", "validation")}
    assert loaded["train"]["video_id"] == "train/a.mp4"
    assert loaded["validation"]["video"] == str(tmp_path / "val" / "a.mp4")
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        load_dataset(str(tmp_path), split="test")


def test_an_undivided_folder_is_never_two_splits(tmp_path):
    folder = videofolder(tmp_path, [{"file_name": "a.mp4", "text": "x"}])
    assert len(load_dataset(str(folder), split=None).dataset) == len(load_dataset(str(folder)).dataset) == 1
    with pytest.raises(ValueError, match="only one undivided set"):
        load_dataset(str(folder), split="test")


def test_csv_groups_captions_and_knows_splits(tmp_path):
    videofolder(tmp_path, [{"file_name": "a.mp4", "text": "x"}])
    table = tmp_path / "mine.csv"
    table.write_text('\ufeffpath, caption\na.mp4,"one, two"\nb.mp4,three\na.mp4,four\n', encoding="utf-8")
    rows = load_dataset("csv", table).dataset.to_list()
    assert [(row["video_id"], row["captions"]) for row in rows] == [
        ("a.mp4", ["one, two", "four"]),
        ("b.mp4", ["three"]),
    ]
    assert available_splits("csv", table, None) == ["train"] == available_splits(str(tmp_path), None, None)
    table.write_text("path,caption,split\na.mp4,one,train\nb.mp4,two,dev\n", encoding="utf-8")
    assert available_splits("csv", table, None) == ["train", "validation"]
    assert load_dataset("csv", table, split="validation").dataset["video_id"][:] == ["b.mp4"]
    with pytest.raises(ValueError, match=r"mine\.csv: no row has the split 'test'"):
        load_dataset("csv", table, split="test")
    table.write_text("path,caption,split\na.mp4,one, Train \nb.mp4,two,later\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.csv, line 3: split 'later' is none of train, validation, test"):
        available_splits("csv", table, None)


WRONG_ROWS = [
    ([{"file": "a.mp4", "text": "x"}], "line 1: no column 'file_name' or 'path' or 'video'; it has file, text"),
    ([{"file_name": "a.mp4", "title": "x"}], r"line 1: no column captions \(or text\); it has file_name, title"),
    ([{"file_name": "a.mp4", "captions": [1]}], "must be a text or a list of texts"),
    ([{"file_name": "a.mp4", "text": "x", "start": 5, "end": 2}], "end 2 s is not after start 5 s"),
    ([{"file_name": "a.mp4", "text": "x", "start": "soon"}], "must be seconds"),
    ([{"file_name": "a.mp4", "text": "x", "end": float("nan")}], "must be finite"),
    ([{"file_name": f"{n}.mp4", "text": "x", "video_id": "same"} for n in "ab"], "already names a.mp4"),
    ([["a.mp4", "x"]], "expected an object"),
    ([], "the file is empty"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG_ROWS)
def test_wrong_metadata_names_file_line_and_remedy(tmp_path, rows, message):
    folder = videofolder(tmp_path, rows)
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(str(folder))
    assert str(folder / "metadata.jsonl") in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"), [("video,title\na,b\n", "no column captions"), ("path,caption\na,b,c\n", "2 columns")]
)
def test_wrong_csv_names_file_and_line(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.csv.*{message}"):
        load_dataset("csv", tmp_path / "mine.csv")


def test_absent_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_dataset("videofolder", videos=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl .*it holds nothing"):
        load_dataset("videofolder", videos=tmp_path)
    with pytest.raises(FileNotFoundError, match="the videos folder is empty"):
        VideoFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such videos folder"):
        VideoFolder(tmp_path / "nowhere")
    assert available_splits("videofolder", tmp_path, None) == ["train"]
    for number in range(12):
        (tmp_path / f"n{number:02d}.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds n00\.txt, .*, n09\.txt$"):
        load_dataset("videofolder", videos=tmp_path)


def test_missing_videos_are_counted_named_and_reported(tmp_path):
    rows = [{"file_name": name, "text": "x"} for name in ("a.mp4", "gone.mp4", "empty.mp4")] + [
        {"file_name": "b.mp4", "text": " "}
    ]
    folder = videofolder(tmp_path / "data", rows, files=("a.mp4", "b.mp4"))
    (folder / "empty.mp4").touch()
    loaded = load_dataset(str(folder))
    reasons = {item["video_id"]: item["reason"] for item in loaded.missing}
    assert set(reasons) == {"gone.mp4", "empty.mp4", "b.mp4"}
    assert (
        "no file gone.mp4" in reasons["gone.mp4"]
        and "0 bytes" in reasons["empty.mp4"]
        and reasons["b.mp4"] == "no caption"
    )
    written = json.loads(loaded.write_report(tmp_path / "out").read_text(encoding="utf-8"))
    assert (written["listed_videos"], written["videos"], written["missing_videos"]) == (4, 1, 3)
    assert written["missing"] == loaded.missing
    (folder / "a.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 4 listed videos can be used"):
        load_dataset(str(folder))


def test_paths_that_leave_the_folder_are_refused_and_named(tmp_path):
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(b"x")
    names = [
        "a.mp4",
        "../secret.mp4",
        str(outside),
        "sub/../../secret.mp4",
        "link.mp4",
        "linked/secret.mp4",
        "inner.mp4",
    ]
    folder = videofolder(tmp_path / "data", [{"file_name": name, "text": "x"} for name in names], files=("a.mp4",))
    (folder / "link.mp4").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "inner.mp4").symlink_to(folder / "a.mp4")
    loaded = load_dataset(str(folder))
    assert loaded.dataset["video_id"][:] == ["a.mp4", "inner.mp4"]
    assert [item["video_id"] for item in loaded.missing] == names[1:6]
    assert all("refused" in item["reason"] and "outside" in item["reason"] for item in loaded.missing)


@pytest.mark.parametrize("video_id", ["../secret", "/etc/secret", "link"])
def test_benchmark_ids_cannot_leave_the_folder_either(tmp_path, video_id):
    annotations, videos = tmp_path / "annotations", tmp_path / "videos"
    annotations.mkdir(), videos.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (videos / "good.mp4").write_bytes(b"x")
    (videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (annotations / "ref_captions.json").write_text(json.dumps({video_id: ["x"], "good": ["y"]}))
    (annotations / "test_list.txt").write_text(f"{video_id}\ngood\n")
    loaded = load_dataset("vatex", annotations, videos, "test")
    assert loaded.dataset["video_id"][:] == ["good"]
    assert "refused" in loaded.missing[0]["reason"]


def test_a_videos_folder_may_itself_be_a_link(tmp_path):
    videofolder(tmp_path / "real", [{"file_name": "a.mp4", "text": "x"}])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(load_dataset(str(tmp_path / "link")).dataset) == 1


def test_one_own_metadata_never_matches_a_namesake_elsewhere(tmp_path):
    rows = [{"file_name": "a.mp4", "text": "x"}, {"file_name": "first/b.mp4", "text": "y"}]
    folder = videofolder(tmp_path, rows, files=("a.mp4",))
    (folder / "second").mkdir()
    (folder / "second" / "b.mp4").write_bytes(b"x")
    assert [item["video_id"] for item in load_dataset(str(folder)).missing] == ["first/b.mp4"]


def test_find_prefers_the_shallow_copy_and_the_listed_extension(tmp_path):
    for name in ("deep/er/v.mp4", "near/v.mp4", "near/w.webm", "near/w.mp4", "near/w.txt", "near/x.avi", "near/x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = VideoFolder(tmp_path)
    assert folder.find("v.avi") == tmp_path / "near" / "v.mp4"
    assert folder.find("w.webm") == tmp_path / "near" / "w.webm"
    assert folder.find("w.avi") == tmp_path / "near" / "w.mp4"
    assert folder.find("x.mov") == tmp_path / "near" / "x.mp4", "the order of VIDEO_EXTENSIONS, not the alphabet's"
    with pytest.raises(VideoNotFound, match="near is a folder"):
        folder.find("near")


@pytest.mark.parametrize(
    ("name", "stem"), [("a.mp4", "a"), ("a.MOV", "a"), ("a.", "a"), ("a.926-00.129", "a.926-00.129"), ("a", "a")]
)
def test_video_stem_strips_video_extensions_only(name, stem):
    assert video_stem(name) == stem


def test_a_file_that_is_no_video_is_told_by_its_header(miniature, tmp_path):
    rows = [{"file_name": name, "text": "x"} for name in ("clip.mp4", "notes.mp4")]
    folder = videofolder(tmp_path, rows, files=())
    (folder / "clip.mp4").write_bytes(next(miniature("vatex").videos.iterdir()).read_bytes())
    (folder / "notes.mp4").write_text("these are notes\n" * 40)
    assert open_error(folder / "clip.mp4") is None
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    assert open_error(tmp_path / "sound.wav") == "has no video stream"
    loaded = load_dataset(str(folder), check_videos=True)
    assert loaded.dataset["video_id"][:] == ["clip.mp4"]
    assert "notes.mp4 is no readable video" in loaded.missing[0]["reason"]

"""`dmae prepare` checks a dataset, says what it found, and leaves a report, a word table and a frame cache."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from typer.testing import CliRunner

from dmae import files
from dmae.cli import app
from dmae.data import preparation
from dmae.data.frame_cache.store import FrameCache, key_of
from dmae.data.preparation import Preparation, count_frames, prepare_dataset
from dmae.data.registry import load_dataset
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.words_dmae import WordWeigher


@pytest.fixture
def copy(miniature, tmp_path):
    """`copy(name)` -> the command's words for a copy of the miniature that a test may damage."""

    def make(name: str) -> list[str]:
        source = miniature(name)
        annotations = shutil.copytree(source.annotations, tmp_path / "annotations")
        videos = annotations if name == "videofolder" else shutil.copytree(source.videos, tmp_path / "videos")
        return [name, "--annotations", str(annotations), "--videos", str(videos), "--output", str(tmp_path / "out")]

    return make


def run(*words: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["prepare", "--num-workers", "1", *words], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_one_command_checks_fits_and_caches(copy, tmp_path):
    words = copy("msrvtt-full")
    (tmp_path / "videos" / "video1.mp4").write_text("no video at all")
    (tmp_path / "videos" / "video2.mp4").unlink()
    output = run(*words, "--frame-cache", "--num-frames", "3", "--size", "32", "--codec", "lossless")
    assert "train: 12 videos listed (published: 6,513), 11 usable, 33 captions" in output
    assert "missing: video2: no file video2.mp4" in output and "unreadable: video1" in output

    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    train = report["splits"]["train"]
    assert [item["video_id"] for item in train["missing"]] == ["video2"]
    assert [item["video_id"] for item in train["unreadable"]] == ["video1"]
    assert report["frame_cache"]["made"] == 20
    assert json.loads((tmp_path / "out" / "data_msrvtt-full_train.json").read_text(encoding="utf-8")) == train

    sampler = FrameSampler(num_frames=3, size=32)
    cache = FrameCache(tmp_path / "out", sampler)
    for row in load_dataset("msrvtt-full", tmp_path / "annotations", tmp_path / "videos", "test").dataset:
        assert torch.equal(cache.frames(key_of(row)).frames, sampler.decode(row["video"]).frames)

    settings = {"content_weight": 2.0, "irrelevant_words": 5}
    weigher = WordWeigher.from_files(lambda name: tmp_path / "out" / "words" / name, settings)
    assert weigher.paragraphs == 11 and "square" in weigher.frequency
    assert "0 clips made, 20 kept" in run(
        *words, "--frame-cache", "--num-frames", "3", "--size", "32", "--codec", "lossless"
    )


def test_a_sample_is_decoded_and_headers_are_read(copy, tmp_path):
    words = copy("videofolder")
    (
        tmp_path / "annotations" / "test" / next(iter(sorted((tmp_path / "annotations" / "test").glob("*.mp4")))).name
    ).write_text("x")
    output = run(*words, "--no-words")
    assert "test: 6 videos listed, 5 usable" in output and "is no readable video" in output
    assert "train: decoded 12 of 12 videos, 0 unreadable" in output
    assert not (tmp_path / "out" / "words").exists() and not (tmp_path / "out" / "frames").exists()


def test_absent_splits_are_left_out_by_name_unless_asked_for(copy, tmp_path):
    words = copy("didemo")
    (tmp_path / "annotations" / "train_data.json").unlink()
    output = run(*words, "--decode", "none")
    assert "train: left out: " in output and "none of train_data.json" in output
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert list(report["splits"]) == ["validation", "test"] and list(report["absent_splits"]) == ["train"]
    assert "none of train_data.json" in run(*words, "--split", "train", exit_code=1)


def test_annotations_alone_and_a_held_out_validation_split(copy, tmp_path):
    name, _, annotations, *_ = copy("activitynet")
    words = [name, "--annotations", annotations, "--output", str(tmp_path / "out"), "--holdout", "3"]
    output = run(*words, "--decode", "none")
    assert "train: 9 videos listed, not looked for, 9 captions" in output
    assert "validation: 3 videos listed, not looked for" in output
    assert "error: give --videos" in run(*words, exit_code=1)


def test_a_folder_of_ones_own_needs_no_other_word(copy, tmp_path):
    copy("videofolder")
    output = run(str(tmp_path / "annotations"), "--output", str(tmp_path / "out"), "--no-words")
    assert "validation: decoded 4 of 4 videos, 0 unreadable" in output


@pytest.fixture
def plan(miniature, tmp_path, monkeypatch):
    """`plan(…)` -> what prepare_dataset gives, what it says and the progress it shows, all in this process."""
    source = miniature("msrvtt-full")
    videos = shutil.copytree(source.videos, tmp_path / "vid\u00e9os")
    (videos / "video1.mp4").write_text("no video at all")
    (videos / "video2.mp4").unlink()
    shown, said, sampler = [], [], FrameSampler(num_frames=2, size=16)

    @contextmanager
    def watched(*told):
        shown.append([told, 0])
        yield lambda count: shown[-1].__setitem__(1, shown[-1][1] + count)

    monkeypatch.setattr(preparation, "progress", watched)

    def make(**options):
        shown.clear(), said.clear()
        options = {"videos": videos, "output": tmp_path / "new" / "out", "workers": 0, **options}
        wanted = Preparation("msrvtt-full", source.annotations, **options)
        return prepare_dataset(wanted, sampler, said.append), said, shown

    return make


def test_everything_in_one_process_is_counted_reported_and_said(plan, tmp_path):
    out = tmp_path / "new" / "out"
    (out / "words").mkdir(parents=True)
    left = files.partial_name(out / "report.json")
    left.write_text("what a killed call left")
    report, said, shown = plan(codec="lossless", shards=True)
    assert list(report) == ["splits", "absent_splits", "frame_cache", "words", "shards"] and not left.exists()
    assert list(report["splits"]) == ["train", "validation", "test"] and report["absent_splits"] == {}
    text = (out / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report and text.startswith('{\n  "splits": {\n    "train"') and "vid\u00e9os" in text
    for split, facts in report["splits"].items():
        assert json.loads((out / f"data_msrvtt-full_{split}.json").read_text(encoding="utf-8")) == facts
        assert [item["video_id"] for item in facts["unreadable"]] == ["video1"] * (split == "train")
    stored = sum(path.stat().st_size for path in (out / "frames").iterdir() if path.suffix == ".arrow")
    counts = {name: report["frame_cache"][name] for name in ("kept", "made", "remade", "bytes", "folder")}
    assert counts == {"kept": 0, "made": 20, "remade": [], "bytes": stored, "folder": "frames"}
    assert shown == [[(21, "frame cache"), 21]]
    weigher = WordWeigher.from_files(lambda name: out / "words" / name, {"content_weight": 2.0, "irrelevant_words": 5})
    assert report["words"] == {"paragraphs": 11, "words": len(weigher.frequency)} and weigher.paragraphs == 11
    assert report["shards"] == {
        "train": {"tars": 1, "clips": 10}, "validation": {"tars": 1, "clips": 4}, "test": {"tars": 1, "clips": 6},
    }  # fmt: skip
    reason = report["splits"]["train"]["unreadable"][0]["reason"]
    assert said == [
        "train: 12 videos listed (published: 6,513), 11 usable, 33 captions",
        f"train: missing: video2: {report['splits']['train']['missing'][0]['reason']}",
        "validation: 4 videos listed (published: 497), 4 usable, 12 captions",
        "test: 6 videos listed (published: 2,990), 6 usable, 18 captions",
        f"train: unreadable: video1: {reason}",
        "frame cache: 20 clips made, 0 kept, 0 were damaged or outdated, 1 unreadable; "
        f"{stored / 1e6:,.1f} MB in {out / 'frames'}",
        f"words: {len(weigher.frequency)} different words in 11 training paragraphs -> {out / 'words'}",
        *(f"{split}: {n} clips in 1 tars -> {out / 'shards' / split}"
          for split, n in (("train", 10), ("validation", 4), ("test", 6))),
        f"report: {out / 'report.json'}",
    ]  # fmt: skip


def test_headers_are_read_where_only_a_sample_is_decoded(plan, tmp_path, monkeypatch):
    """A broken file is missing by its header, or unreadable by its frames; never both, never neither."""
    found, reached = {}, []
    monkeypatch.setattr(files, "fault", lambda point, path: reached.append((point, path)))
    for decode in ("sample", "all", "none"):
        report, said, shown = plan(splits=("train",), decode=decode, words=False)
        train = report["splits"]["train"]
        found[decode] = [[item["video_id"] for item in train[name]] for name in ("missing", "unreadable")]
        assert [line.split(" videos, ")[0] for line in said if "decoded" in line] == (
            {"sample": ["train: decoded 10 of 10"], "all": ["train: decoded 11 of 11"], "none": []}[decode]
        )
        assert shown == {"sample": [[(10, "train: decoding"), 10]], "all": [[(11, "train: decoding"), 11]]}.get(
            decode, []
        )
    assert found == {"sample": [["video1", "video2"], []], "all": [["video2"], ["video1"]], "none": [["video2"], []]}
    assert ("fsync", tmp_path) in reached, "the name of the new folder is made durable"


@pytest.mark.parametrize("gone", [("train", "validation"), ("test",), ("train", "validation", "test")])
def test_splits_without_files_are_left_out_as_long_as_one_has_some(copy, tmp_path, gone):
    copy("didemo")
    annotations, short = tmp_path / "annotations", {"train": "train", "validation": "val", "test": "test"}
    for split in gone:
        (annotations / f"{short[split]}_data.json").unlink()
    wanted = Preparation("didemo", annotations, None, tmp_path / "out", decode="none", words=False)
    if len(gone) == 3:
        with pytest.raises(FileNotFoundError, match="none of test_data"):
            prepare_dataset(wanted, None, print)
        return
    said = []
    report = prepare_dataset(wanted, None, said.append)
    assert list(report["absent_splits"]) == list(gone) and len(report["splits"]) == 3 - len(gone)
    assert [line for line in said if "left out" in line] == [
        f"{split}: left out: {reason}" for split, reason in report["absent_splits"].items()
    ]


@pytest.mark.parametrize(("codec", "decode"), [("jpeg", "none"), (None, "sample"), (None, "all")])
def test_what_needs_the_videos_is_refused_without_them(miniature, tmp_path, codec, decode):
    wanted = Preparation("didemo", miniature("didemo").annotations, None, tmp_path / "out", codec=codec, decode=decode)
    with pytest.raises(ValueError, match=r"^give --videos, the folder of the videos, or --decode none"):
        prepare_dataset(wanted, None, print)
    assert not (tmp_path / "out").exists()


def test_a_clip_is_decoded_within_its_window(clips):
    sampler = FrameSampler(num_frames=9, size=16, fps=8)
    row = {"video": str(clips / "clip00.mp4"), "start": 0.5, "end": 1.0}
    assert count_frames(row, sampler) == len(sampler.decode(row["video"], 0.5, 1.0).frames) < 9

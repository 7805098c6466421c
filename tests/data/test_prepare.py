"""`dmae prepare` checks a dataset, says what it found, and leaves a report, a word table and a frame cache."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from dmae.cli import app
from dmae.data.frame_cache.store import FrameCache, key_of
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

"""Corpora in tars: read in place, frame for frame as from files; what is damaged is named and the rest is used."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

from dmae.data.loaders import shards
from dmae.data.loaders.shards import clips_of, write_shards
from dmae.data.registry import available_splits, load_dataset
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.sources_dmae import PART, VideoDecodeError, file_holding


def pack(path, **members) -> None:
    """A tar of `name__extension=content` members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def clip(miniature) -> bytes:
    return (miniature("videofolder").videos / "train" / "clip_000.mp4").read_bytes()


def test_frames_out_of_a_tar_are_those_of_the_file(miniature, tmp_path):
    files, tars = (load_dataset(*miniature(name), split="train") for name in ("videofolder", "webdataset"))
    assert len({file_holding(row["video"]) for row in tars.dataset}) > 2
    assert [row["captions"] for row in files.dataset] == [row["captions"] for row in tars.dataset]
    assert files.dataset["video_id"][:] == tars.dataset["video_id"][:]
    sampler = FrameSampler(num_frames=4, size=32, sampling="uniform")
    for row in tars.dataset:
        first, last, tar = PART.fullmatch(row["video"]).groups()
        (tmp_path / "out.mp4").write_bytes(Path(tar).read_bytes()[int(first) : int(last)])
        inside, outside = (sampler.decode(str(video)) for video in (row["video"], tmp_path / "out.mp4"))
        assert torch.equal(inside.frames, outside.frames) and torch.equal(inside.timestamps, outside.timestamps)


def test_the_note_beside_a_tar_is_read_while_it_is_true(tmp_path, clip):
    tar = tmp_path / "train-0.tar"
    pack(tar, a__mp4=clip, a__json={"captions": ["one", "two"], "start": 0.5, "end": 1}, b__mp4=clip, b__txt=b"three")
    first = load_dataset("webdataset", videos=tmp_path)
    assert [(row["video_id"], row["captions"], row["start"], row["end"]) for row in first.dataset] == [
        ("a", ["one", "two"], 0.5, 1.0), ("b", ["three"], None, None)
    ]  # fmt: skip
    note = tmp_path / "train-0.tar.clips.jsonl"
    note.write_text(note.read_text().replace("three", "tree"))
    assert load_dataset("webdataset", videos=tmp_path).dataset["captions"][1] == ["tree"]
    pack(tar, a__mp4=clip, a__txt=b"another")
    assert load_dataset("webdataset", videos=tmp_path).dataset["captions"][:] == [["another"]]
    note.write_text("{")
    assert load_dataset("webdataset", videos=tmp_path).dataset["captions"][:] == [["another"]]


def test_what_cannot_be_used_is_named(tmp_path, clip):
    pack(tmp_path / "0.tar", a__mp4=clip, a__txt=b"fine", b__mp4=clip, c__txt=b"no video", d__mp4=clip, d__json=[1])
    pack(tmp_path / "1.tar", a__mp4=clip, a__txt=b"again", e__mp4=clip, e__json={"text": "x", "start": "soon"})
    pack(tmp_path / "2.tar", g__txt=b"cut", g__mp4=clip)
    whole = (tmp_path / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: whole.index(clip) + len(clip) // 2])
    (tmp_path / "3.tar").write_bytes(b"no tar at all")
    loaded = load_dataset("webdataset", videos=tmp_path)
    assert loaded.dataset["video_id"][:] == ["a"] and loaded.report["listed_videos"] == 9
    reasons = {item["video_id"]: item["reason"] for item in loaded.missing if item["video_id"] != "a"}
    assert reasons["b"] == "no caption" and reasons["c"].startswith("0 videos among c.txt")
    assert "d.json holds list" in reasons["d"] and "start is 'soon'" in reasons["e"]
    assert "the tar ends within g.mp4" in reasons["g"]
    assert all("is no whole, uncompressed tar file" in reasons[name] for name in ("2.tar", "3.tar"))
    assert "a shard before this one" in next(item["reason"] for item in loaded.missing if item["video_id"] == "a")


def test_splits_by_folder_or_by_name(tmp_path, clip):
    for name in ("train/0.tar", "val-000.tar", "test_0.tar"):
        pack(tmp_path / name, **{f"{name[:2]}__mp4": clip, f"{name[:2]}__txt": b"x"})
    assert available_splits("webdataset", tmp_path, None) == ["train", "validation", "test"]
    for split, video_id in {"train": "tr", "validation": "va", "test": "te"}.items():
        assert load_dataset("webdataset", tmp_path, split=split).dataset["video_id"][:] == [video_id]
    with pytest.raises(ValueError, match=r"no tar of the split 'dev'; there are: train, validation, test"):
        load_dataset("webdataset", tmp_path, split="dev")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="no tar file"):
        load_dataset("webdataset", tmp_path / "nothing")


def test_a_single_tar_a_folder_that_is_not_there_and_names_that_only_begin_alike(tmp_path, clip):
    for name in ("t-0.tar", "trains.tar"):
        pack(tmp_path / name, **{f"{name[:3]}__mp4": clip, f"{name[:3]}__txt": b"x"})
    assert available_splits("webdataset", tmp_path, None) == ["train"], "neither is a part of a split's name"
    assert load_dataset("webdataset", tmp_path).dataset["video_id"][:] == ["t-0", "tra"]
    assert load_dataset("webdataset", tmp_path, split=None).dataset["video_id"][:] == ["t-0", "tra"]
    assert load_dataset("webdataset", tmp_path / "trains.tar").dataset["video_id"][:] == ["tra"]
    with pytest.raises(ValueError, match=r"no tar of the split 'test'; there are: train$"):
        load_dataset("webdataset", tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of tar files"):
        load_dataset("webdataset", tmp_path / "nowhere")


def test_all_words_of_a_clip_are_taken_in_order(tmp_path, clip):
    words = {"text": "a", "caption": ["b"], "captions": ["c"], "start": 1, "video_id": ""}
    pack(tmp_path / "0.tar", **{"sub/dog__v2__MKV": clip, "sub/dog__json": words, "sub/dog__txt": b"\xef\xbb\xbfd"})
    (found,), wrong = clips_of(tmp_path / "0.tar")
    assert (found.video_id, found.captions, found.start, found.end) == ("sub/dog", ["c", "b", "a", "d"], 1.0, None)
    first, last, tar = PART.fullmatch(found.file).groups()
    assert Path(tar).read_bytes()[int(first) : int(last)] == clip and tar == str(tmp_path / "0.tar") and not wrong


def test_the_reason_names_the_member(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST_TEXT", 30)
    pack(tmp_path / "0.tar", a__mp4=clip, a__mkv=clip, a__txt=b"x", b__mp4=clip, b__txt=b"x" * 30, c__mp4=clip,
         c__txt=b"x" * 31, d__mp4=clip, d__json={"start": True}, e__mp4=clip, e__txt=b"\xff", f__mp4=clip,
         f__json={"text": "x", "end": 2})  # fmt: skip
    found, wrong = clips_of(tmp_path / "0.tar")
    assert [one.video_id for one in found] == ["b", "f"] and (found[1].start, found[1].end) == (None, 2.0)
    place, reasons = f"{tmp_path / '0.tar'}: ", {item["video_id"]: item["reason"] for item in wrong}
    assert [item["video"] for item in wrong] == [place + item["video_id"] for item in wrong]
    assert reasons.pop("e").startswith("e.txt is not readable (")
    assert reasons == {
        "a": "2 videos among a.mp4, a.mkv, a.txt; a clip has one",
        "c": "c.txt has 31 bytes; captions take less",
        "d": "d.json: start is True, expected seconds",
    }


def test_a_clip_that_ends_where_its_tar_was_cut_is_whole(tmp_path, clip):
    pack(tmp_path / "0.tar", a__txt=b"x", a__mp4=clip, b__txt=b"y", b__mp4=clip)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: whole.rindex(clip) + len(clip)])
    found, wrong = clips_of(tmp_path / "0.tar")
    assert [one.video_id for one in found] == ["a", "b"] and [item["video_id"] for item in wrong] in ([], ["0.tar"])


def test_a_note_of_another_hour_is_not_believed(tmp_path, clip):
    pack(tmp_path / "0.tar", a__mp4=clip, a__txt="one ä".encode())
    clips_of(tmp_path / "0.tar")
    note, status = tmp_path / "0.tar.clips.jsonl", (tmp_path / "0.tar").stat()
    state, row = map(json.loads, note.read_text().splitlines())
    assert state == {"bytes": status.st_size, "modified_ns": status.st_mtime_ns} and row["captions"] == ["one ä"]
    note.write_text(note.read_text(encoding="utf-8").replace("one ä", "two ö"), encoding="utf-8")
    assert clips_of(tmp_path / "0.tar")[0][0].captions == ["two ö"]
    os.utime(tmp_path / "0.tar", ns=(0, 10**9))
    assert clips_of(tmp_path / "0.tar")[0][0].captions == ["one ä"] and "ä" in note.read_text(encoding="utf-8")


def test_members_of_packed_tars_have_the_ids_and_words_of_their_rows(tmp_path, clip):
    (tmp_path / "clip.MP4").write_bytes(clip)
    row = {"video": str(tmp_path / "clip.MP4"), "captions": ["ä"], "start": 0.5, "end": None, "more": 1}
    (tar,) = write_shards([{**row, "video_id": name} for name in ("a.b", "a_b", "a\\b")], tmp_path / "new" / "tars")
    assert write_shards([], tmp_path / "new") == [], "a folder that is there already"
    with tarfile.open(tar) as opened:
        names = [member.name for member in opened]
        assert names == ["a_b.mp4", "a_b.json", "a_b_1.mp4", "a_b_1.json", "a_b_2.mp4", "a_b_2.json"]
        text = opened.extractfile("a_b.json").read().decode()
    assert text == '{"video_id": "a.b", "captions": ["ä"], "start": 0.5, "end": null}'


def test_packing_keeps_every_clip_apart(tmp_path, clip):
    (tmp_path / "clip.mp4").write_bytes(clip)
    row = {"video": str(tmp_path / "clip.mp4"), "captions": ["ä <b>"], "start": None, "end": 1.5}
    rows = [{**row, "video_id": name} for name in ("x.1", "x/1", "x_1", "../x")]
    tars = write_shards(rows, tmp_path / "tars", largest=2 * len(clip))
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar"]
    found = [one for tar in tars for one in clips_of(tar)[0]]
    assert [one.video_id for one in found] == ["x.1", "x/1", "x_1", "../x"]
    assert {(tuple(one.captions), one.start, one.end) for one in found} == {(("ä <b>",), None, 1.5)}
    with pytest.raises(FileExistsError, match="already holds tar files"):
        write_shards(rows, tmp_path / "tars")


def test_a_stretch_of_a_file_that_is_gone_or_is_no_video(tmp_path):
    sampler = FrameSampler(num_frames=2, size=16)
    with pytest.raises(VideoDecodeError, match=r"gone\.tar: there is no such file"):
        sampler.decode(f"subfile,,start,0,end,9,,:{tmp_path}/gone.tar")
    (tmp_path / "noise.tar").write_bytes(bytes(4096))
    with pytest.raises(VideoDecodeError, match=r"noise\.tar from byte 512"):
        sampler.decode(f"subfile,,start,512,end,2048,,:{tmp_path}/noise.tar")

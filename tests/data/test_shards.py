"""Corpora in tars: read in place, frame for frame as from files; what is damaged is named and the rest is used."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

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

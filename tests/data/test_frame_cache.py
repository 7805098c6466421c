"""The frame cache gives what decoding gives, survives interruption and damage, and says what it could not do."""

import multiprocessing
import os
import pickle
import random
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from dmae import files
from dmae.data.frame_cache import builder as frame_cache_builder
from dmae.data.frame_cache import codec as frame_cache_codec
from dmae.data.frame_cache.builder import build_frame_cache
from dmae.data.frame_cache.codec import decode_frames, encode_frames
from dmae.data.frame_cache.store import CachedFrames, FrameCache, key_of, with_frame_cache
from dmae.data.registry import load_dataset
from dmae.data.workers import WorkerDied, map_in_workers
from dmae.processing.frames_dmae import FrameSampler

build = partial(build_frame_cache, workers=0)


@pytest.fixture
def sampler():
    return FrameSampler(num_frames=5, size=32, fps=4.0)


@pytest.fixture
def rows(miniature, tmp_path):
    """Twelve clips of our own copy, three with a window: two of these of one file."""
    source = miniature("vatex")
    videos = shutil.copytree(source.videos, tmp_path / "videos")
    rows = load_dataset(source.name, source.annotations, videos).dataset.to_list()
    rows[1] |= {"start": 0.5, "end": 1.0}
    rows[2] |= {"video": rows[1]["video"], "video_id": rows[1]["video_id"], "start": 1.0}
    rows[3]["end"] = 0.75
    return rows


def direct(sampler, row) -> dict:
    return sampler(row["video"], start=row["start"], end=row["end"])


def cached(folder, sampler, rows) -> CachedFrames:
    return CachedFrames(FrameCache(folder, sampler), sampler, rows)


def same(left: dict, right: dict) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_lossless_cache_gives_exactly_what_decoding_gives(rows, sampler, tmp_path):
    report = build(rows, tmp_path / "cache", sampler, codec="lossless", workers=2)
    assert (report.made, report.kept, report.unreadable) == (12, 0, [])
    cache = FrameCache(tmp_path / "cache", sampler)
    assert len(cache) == 12
    for row in rows:
        stored, decoded = cache.frames(key_of(row)), sampler.decode(row["video"], row["start"], row["end"])
        assert torch.equal(stored.frames, decoded.frames) and torch.equal(stored.timestamps, decoded.timestamps)


def test_jpeg_cache_is_close_and_smaller(rows, sampler, tmp_path):
    sizes = {codec: build(rows, tmp_path / codec, sampler, codec).bytes_made for codec in ("jpeg", "lossless")}
    assert sizes["jpeg"] < sizes["lossless"] < 12 * 5 * 3 * 32 * 32
    cache = FrameCache(tmp_path / "jpeg", sampler)
    for row in rows:
        stored, decoded = cache.frames(key_of(row)), sampler.decode(row["video"], row["start"], row["end"])
        assert torch.equal(stored.timestamps, decoded.timestamps)
        assert (stored.frames.float() - decoded.frames.float()).abs().mean() < 4  # of 255


def test_training_does_not_touch_the_videos(rows, sampler, tmp_path):
    build(rows, tmp_path / "cache", sampler, codec="lossless")
    expected = [direct(sampler, row) for row in rows]
    shutil.rmtree(tmp_path / "videos")
    reader = cached(tmp_path / "cache", sampler, rows)
    assert all(same(direct(reader, row), frames) for row, frames in zip(rows, expected))


def test_reader_works_in_loader_workers_of_either_kind(rows, sampler, tmp_path):
    build(rows, tmp_path / "cache", sampler)
    reader, keys = FrameCache(tmp_path / "cache", sampler), [key_of(row) for row in rows]
    here = [reader.frames(key).frames.sum().item() for key in keys]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert [frames.frames.sum().item() for frames in pool.map(reader.frames, keys)] == here
    again = pickle.loads(pickle.dumps(reader))
    assert torch.equal(again.frames(keys[0]).frames, reader.frames(keys[0]).frames)


@pytest.mark.parametrize("finished", [1, 5, 11])
def test_interrupted_build_keeps_what_is_finished_and_resumes(rows, sampler, tmp_path, finished):
    seen = []

    def interrupt_after(count):
        seen.extend([1] * count)
        if len(seen) == finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(rows, tmp_path / "cache", sampler, workers=1, on_progress=interrupt_after)
    assert len(FrameCache(tmp_path / "cache", sampler)) == finished
    report = build(rows, tmp_path / "cache", sampler)
    assert (report.kept, report.made) == (finished, 12 - finished)
    assert len(FrameCache(tmp_path / "cache", sampler)) == 12


def test_a_full_shard_is_written_at_once(rows, sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache_builder, "SHARD_CLIPS", 5)
    build(rows, tmp_path / "cache", sampler)
    assert [path.name for path in sorted((tmp_path / "cache").glob("*.arrow"))] == [
        f"shard-{n:06d}.arrow" for n in range(3)
    ]
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_any_damaged_byte_is_noticed_and_repaired(rows, sampler, tmp_path):
    """Whichever byte of a shard is damaged, loading gives the true frames and a rebuild leaves a sound cache."""
    folder = tmp_path / "cache"
    build(rows, folder, sampler, codec="lossless")
    shard = folder / "shard-000000.arrow"
    sound, expected = shard.read_bytes(), [direct(sampler, row) for row in rows]
    draw = random.Random(0)
    for position in [0, len(sound) - 1, *(draw.randrange(len(sound)) for _ in range(25))]:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << draw.randrange(8)
        shard.write_bytes(damaged)
        reader = cached(folder, sampler, rows)
        for row, frames in zip(rows, expected):
            assert same(direct(reader, row), frames), f"byte {position}"
        del reader
        report = build(rows, folder, sampler, codec="lossless")
        repaired = FrameCache(folder, sampler)
        assert sum(len(repaired.frames(key_of(row)).frames) for row in rows) == sum(
            int(f["video_mask"].sum()) for f in expected
        )
        assert report.kept + report.made == 12
        del repaired
        for path in folder.glob("*.arrow"):
            path.unlink()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_shard_is_removed_and_made_again(rows, sampler, tmp_path, keep, caplog):
    build(rows, tmp_path / "cache", sampler)
    shard = tmp_path / "cache" / "shard-000000.arrow"
    shard.write_bytes(shard.read_bytes()[: int(keep * shard.stat().st_size)])
    report = build(rows, tmp_path / "cache", sampler)
    assert report.made == 12 and [line.split(":")[0] for line in report.damaged_shards] == [shard.name]
    assert FrameCache(tmp_path / "cache", sampler).damaged_shards == [], "it is gone, and its name is taken again"
    assert "shard-000000.arrow: this shard of the frame cache is damaged" in caplog.text


def test_replaced_video_is_decoded_again(rows, sampler, tmp_path):
    build(rows, tmp_path / "cache", sampler, codec="lossless")
    shutil.copyfile(rows[5]["video"], rows[4]["video"])
    report = build(rows, tmp_path / "cache", sampler, codec="lossless")
    assert (report.remade, report.made, report.kept) == ([rows[4]["video_id"]], 1, 11)
    assert same(direct(cached(tmp_path / "cache", sampler, rows), rows[4]), direct(sampler, rows[5]))


def test_unreadable_videos_are_named_and_the_rest_is_made(rows, sampler, tmp_path):
    with open(rows[7]["video"], "wb") as stream:
        stream.write(b"this is no video" * 100)
    os.unlink(rows[8]["video"])
    report = build(rows, tmp_path / "cache", sampler)
    assert report.made == 10
    assert {item["video_id"] for item in report.unreadable} == {rows[7]["video_id"], rows[8]["video_id"]}
    assert all(item["video"] in item["reason"] for item in report.unreadable)
    with pytest.raises(ValueError, match=re.escape(rows[7]["video"])):
        direct(cached(tmp_path / "cache", sampler, rows), rows[7])


def test_other_settings_are_refused_by_name(rows, sampler, tmp_path):
    build(rows[:1], tmp_path / "out" / "frames", sampler)
    assert len(FrameCache(tmp_path / "out", sampler)) == 1
    with pytest.raises(ValueError, match="made with num_frames 5 instead of 6"):
        FrameCache(tmp_path / "out", FrameSampler(num_frames=6, size=32, fps=4.0))
    with pytest.raises(ValueError, match="stored as jpeg, not lossless"):
        build(rows[:1], tmp_path / "out" / "frames", sampler, codec="lossless")
    with pytest.raises(ValueError, match=r"segment_random.*cannot be cached"):
        build(rows[:1], tmp_path / "other", FrameSampler(sampling="segment_random"))
    with pytest.raises(ValueError, match="codec 'png' is unknown; valid: jpeg, lossless"):
        build(rows[:1], tmp_path / "other", sampler, codec="png")
    with pytest.raises(FileNotFoundError, match="no frame cache here"):
        FrameCache(tmp_path / "nowhere", sampler)


def test_one_id_for_two_files_and_two_writers_are_refused(rows, sampler, tmp_path):
    with pytest.raises(ValueError, match="names both"):
        build([rows[4], rows[5] | {"video_id": rows[4]["video_id"]}], tmp_path / "cache", sampler)

    def second_writer(count):
        with pytest.raises(OSError, match="another `dmae prepare`"):
            build(rows[:1], tmp_path / "cache", sampler)

    build(rows[:1], tmp_path / "cache", sampler, on_progress=second_writer)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 224, 224), (2, 3, 33, 17)])
def test_codecs_keep_order_and_shape(shape):
    frames = torch.arange(shape[0])[:, None, None, None] * 60 + torch.zeros(shape)
    frames[:, 0, : shape[2] // 2] += 50
    frames = frames.to(torch.uint8)
    assert torch.equal(decode_frames(encode_frames(frames, "lossless"), "lossless"), frames)
    decoded = decode_frames(encode_frames(frames, "jpeg"), "jpeg")
    assert decoded.shape == frames.shape and (decoded.int() - frames.int()).abs().max() <= 40
    assert (decoded.float() - frames.float()).abs().mean() < 3
    for codec in ("jpeg", "lossless"):
        with pytest.raises(ValueError, match=r"^a stored picture cannot be decoded "):
            decode_frames([b"damaged"], codec)


def test_every_jpeg_has_the_same_fine_quantiser():
    """Noise, for which an encoder left to itself takes coarser steps from picture to picture."""
    frames = torch.randint(0, 256, (6, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tables = [picture[picture.index(b"\xff\xdb") + 5 :][:64] for picture in encode_frames(frames, "jpeg")]
    assert len(tables) == 6 and {max(table) for table in tables} == {20}, "step 2 of the largest entry, 83 of 8"


def square_or_die(number: int) -> int:
    if number == 3:
        os._exit(1)
    if number == 5:
        raise ValueError("five")
    return number * number


def test_a_job_that_kills_its_worker_costs_only_itself():
    results = dict(map_in_workers(square_or_die, range(12), workers=2))
    assert isinstance(results.pop(3), WorkerDied)
    assert str(results.pop(5)) == "five"
    assert results == {number: number * number for number in range(12) if number not in (3, 5)}


class Processor:
    """The one attribute of a processor that matters here."""

    def __init__(self, sampler):
        self.feature_extractor = sampler


def test_a_processor_reads_the_cache_and_decodes_what_it_lacks(rows, sampler, tmp_path, caplog):
    build(rows[:6], tmp_path / "out" / "frames", sampler, codec="lossless")
    processor = Processor(sampler)
    whole = with_frame_cache(processor, rows[:6], tmp_path / "out")
    assert len(whole.feature_extractor.keys) == 6 and not caplog.text, "all are there: nothing to be warned of"
    reading = with_frame_cache(processor, rows, tmp_path / "out")
    assert processor.feature_extractor is sampler and "6 of 12 clips are not in the frame cache" in caplog.text
    for row in rows[:6]:
        os.path.exists(row["video"]) and os.unlink(row["video"])
    assert len(reading.feature_extractor([row["video"] for row in rows[4:8]])["video_mask"]) == 4
    with pytest.raises(ValueError, match="has none of the 6 clips"):
        with_frame_cache(processor, rows[6:], tmp_path / "out")


def test_a_shard_is_full_at_its_bytes_and_new_names_are_made_durable(rows, sampler, tmp_path, monkeypatch):
    folder, reached = tmp_path / "new" / "cache", []
    first = frame_cache_builder.decode_clip(rows[0], sampler, "lossless")
    monkeypatch.setattr(frame_cache_builder, "SHARD_BYTES", sum(map(len, first.pictures)))
    monkeypatch.setattr(files, "fault", lambda point, path: reached.append((point, path)))
    build(rows[:2], folder, sampler, codec="lossless")
    assert len(list(folder.glob("*.arrow"))) == 2 and ("fsync", tmp_path) in reached
    settings = (folder / "cache.json").read_text(encoding="utf-8")
    assert settings.startswith('{\n  "format": 1,\n  "codec": "lossless",\n  "num_frames": 5,\n')


def test_what_is_damaged_is_told_and_decoded(rows, sampler, tmp_path, caplog):
    build(rows[:1], tmp_path, sampler, codec="lossless")
    shard = tmp_path / "shard-000000.arrow"
    content, picture = shard.read_bytes(), FrameCache(tmp_path, sampler).entry(key_of(rows[0])).pictures[0].to_pybytes()
    place = content.index(picture) + len(picture) // 2
    shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert same(direct(cached(tmp_path, sampler, rows), rows[0]), direct(sampler, rows[0]))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        f"{shard}: the frames of {rows[0]['video_id']} are damaged (checksum); decoding the video. "
        "`dmae prepare` with the same options repairs the cache"
    )


def test_a_shard_of_other_columns_or_with_places_outside_it_is_set_aside(rows, sampler, tmp_path):
    build(rows[:1], tmp_path, sampler)
    columns = pa.table({"video_id": ["a"], "more": [1]})
    table = FrameCache(tmp_path, sampler)._tables["shard-000000.arrow"]
    names = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 9, 3], np.int32)), pa.py_buffer(b"abc"))
    twice = pa.concat_tables([table, table]).combine_chunks()
    wild = twice.set_column(0, twice.schema.field(0), names)
    for number, content in ((1, columns), (2, wild)):
        with pa.ipc.new_file(tmp_path / f"shard-00000{number}.arrow", content.schema) as writer:
            writer.write_table(content)
    cache = FrameCache(tmp_path, sampler)
    assert len(cache) == 1 and [path.name for path, _ in cache.damaged_shards] == [
        "shard-000001.arrow", "shard-000002.arrow"
    ]  # fmt: skip
    assert cache.damaged_shards[0][1] == "unknown columns video_id, more"


def test_a_picture_that_gives_no_frame_is_damage(monkeypatch):
    """A decoder may swallow what it cannot read without an error: the frames after it would have others' times."""
    real = frame_cache_codec.av
    pictures = encode_frames(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), "lossless")

    def swallowing(name, mode):
        context, given = real.CodecContext.create(name, mode), []

        def decode(packet):
            given.append(packet)
            return [] if len(given) == 2 else context.decode(packet)

        return SimpleNamespace(decode=decode)

    names = {"Packet": real.Packet, "FFmpegError": real.FFmpegError}
    monkeypatch.setattr(
        frame_cache_codec, "av", SimpleNamespace(CodecContext=SimpleNamespace(create=swallowing), **names)
    )
    with pytest.raises(ValueError, match=r"^3 stored pictures gave 2 frames$"):
        decode_frames(pictures, "lossless")

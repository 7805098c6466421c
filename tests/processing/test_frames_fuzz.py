"""Mutated files: the frames of a plain decode, or VideoDecodeError; no hang, no leaked handle, no memory that grows."""

import contextlib
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.frames_dmae import FrameSampler, VideoDecodeError
from dmae.processing.sources_dmae import DecodeLimits

LIMITS = DecodeLimits(max_pixels=1_000_000, max_cpu_seconds=3.0)
SEEDS = {
    "h264.mp4": {},
    "h264_fragmented.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.flv": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8:min-keyint=8"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, clip_writer) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    return [clip_writer(folder / name, frames=24, **options).read_bytes() for name, options in SEEDS.items()]


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Flip bytes, overwrite a run, cut, double or move a piece, cut off the end, or blow up a length field."""
    data = bytearray(data)
    start = int(random.integers(len(data)))
    length = int(random.integers(1, max(2, len(data) // 8)))
    kind = random.choice(["flip", "flip", "header", "overwrite", "cut", "double", "swap", "truncate", "huge"])
    if kind in ("flip", "header"):
        limit = len(data) if kind == "flip" else min(len(data), 1024)
        for place in random.integers(0, limit, random.integers(1, 20)):
            data[place] = random.integers(256)
    elif kind == "overwrite":
        data[start : start + length] = random.bytes(length)
    elif kind == "cut":
        del data[start : start + length]
    elif kind == "double":
        data[start:start] = data[start : start + length]
    elif kind == "swap":
        data[start : start + length], data[:length] = data[:length], data[start : start + length]
    elif kind == "truncate":
        del data[start:]
    else:
        data[start : start + 4] = random.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00"])
    return bytes(data)


def outcome(path, data: bytes, slow_decode, choose) -> str:
    """-> "refused", "exact" (the frames of a plain decode) or "differs"."""
    path.write_bytes(data)
    began = time.thread_time()  # on a busy machine the clock says nothing about the work
    try:
        with VideoReader(path, LIMITS) as reader:
            frames, times = reader.read(choose, lambda frame: frame.to_ndarray(format="rgb24"))
    except VideoDecodeError as error:
        assert path.name in str(error) and ";" in str(error), "the message names the file and the remedy"
        return "refused"
    finally:
        assert time.thread_time() - began < LIMITS.max_cpu_seconds + 5, "worked on past its bound"
    damage = []
    every_time, every_image = slow_decode(path, damage)
    for time_, frame in zip(times, frames):
        shown = [image for other, image in zip(every_time, every_image) if other == time_]
        if not any(np.array_equal(frame, image) for image in shown):
            # Behind damage a plain decode drags it along, while the reader may have begun at a sound key frame. And a
            # flipped bit can turn an IDR frame into one that what follows may look behind, which no decoder reports.
            from_keys = shown_from_key_frames(path, time_)
            assert damage or any(np.array_equal(frame, image) for image in from_keys), f"shown by no decode at {time_}"
            return "differs"
    return "exact"


def shown_from_key_frames(path, time_: float) -> list[np.ndarray]:
    """What plain decodes show at `time_`, each begun at another packet that the container calls a key frame."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        packets = [packet for packet in container.demux(stream) if packet.size]
        for first in [number for number, packet in enumerate(packets) if packet.is_keyframe]:
            stream.codec_context.flush_buffers()
            for packet in [*packets[first:], None]:
                if packet is not None and packet.pts is not None and packet.pts < packets[first].pts:
                    continue
                with contextlib.suppress(av.FFmpegError):
                    frames = stream.codec_context.decode(packet)
                    found += [frame.to_ndarray(format="rgb24") for frame in frames if frame.time == time_]
    return found


def run(count: int, first: int, seeds, folder, slow_decode) -> Counter:
    process = psutil.Process()
    outcomes = Counter()
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        data = mutate(seeds[number % len(seeds)], random)
        chosen = np.sort(random.random(3))
        path = folder / f"mutant_{number}"
        choose = lambda times, chosen=chosen: np.unique((chosen * len(times)).astype(int))  # noqa: E731
        outcomes[outcome(path, data, slow_decode, choose)] += 1
        path.unlink()
        if number == first + count // 4:
            memory = process.memory_info().rss
    leaked = [file.path for file in process.open_files() if Path(file.path).name.startswith("mutant_")]
    assert not leaked, "file handles were leaked"  # by name: other tests' handles come and go
    if count >= 2000:  # of a few files the growth is other tests' as much as theirs
        assert process.memory_info().rss - memory < 200e6, "memory grew"
    assert count / 10 < outcomes["exact"] < count * 0.95, f"too weak or too strong to test anything: {outcomes}"
    assert outcomes["differs"] <= count / 100, outcomes
    return outcomes


def test_mutated_files(seeds, tmp_path, slow_decode):
    run(200, 0, seeds, tmp_path, slow_decode)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_two_thousand_mutated_files(seeds, tmp_path, slow_decode):
    print(run(2000, 1000, seeds, tmp_path, slow_decode))


def test_noise_and_nothing(tmp_path):
    sampler = FrameSampler(num_frames=2, size=32)
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.ts\n"
    for number, data in enumerate([b"", b"\x00" * 4096, np.random.default_rng(0).bytes(100_000), b"GIF89a", playlist]):
        path = tmp_path / f"noise_{number}.mp4"
        path.write_bytes(data)
        with pytest.raises(VideoDecodeError, match=path.name):
            sampler(path)
        with pytest.raises(VideoDecodeError, match=f"{len(data)} bytes"):
            sampler(data)

"""Small videos of every kind, made here, and the slow reference for them: decode everything, then pick."""

import os
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

SHARED_VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Frame `number`: a gradient with two bars no neighbour has, yet too like its neighbours for a scene cut."""
    random = np.random.default_rng(number)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.linspace(40, 200, width, dtype=np.uint8)[None, :, None]
    row, column = (number * 7) % height, (number * 11) % width
    image[row : row + max(1, height // 8)] += random.integers(10, 50, 3, dtype=np.uint8)
    image[:, column : column + max(1, width // 8)] -= random.integers(10, 40, 3, dtype=np.uint8)
    return image


@contextmanager
def usual_priority():
    """SVT-AV1 makes the thread that calls it a real-time one, where it may: all other processes would wait for it."""
    known = (os.sched_getscheduler(0), os.sched_getparam(0)) if hasattr(os, "sched_getscheduler") else None
    try:
        yield
    finally:
        if known:
            os.sched_setscheduler(0, *known)


@usual_priority()
def write_clip(
    path,
    codec="libx264",
    frames=40,
    width=64,
    height=48,
    rate=10,
    pix_fmt="yuv420p",
    gop=8,
    b_frames=None,
    options=None,
    times=None,
    form=None,
    muxer=None,
    audio_first=False,
    title=None,
):
    """Encode `frames` numbered pictures. times: presentation times in milliseconds, default every 1/rate s."""
    if codec == "libx264" and options is None:
        options = {"x264-params": "scenecut=0"}  # key frames at `gop` only
    with av.open(str(path), "w", format=form, options=muxer or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        audio = container.add_stream("aac", rate=16000) if audio_first else None
        try:
            stream = container.add_stream(codec, rate=rate, options=options or {})
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this FFmpeg has no encoder {codec}")
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        base = Fraction(1, rate) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            sound.rate = 16000
            for packet in [*audio.encode(sound), *audio.encode(None)]:
                container.mux(packet)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number if times is None else times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def decode_all(path, damage: list | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Times and RGB pixels of every frame a plain decode gives, by time; packets that do not decode go to `damage`."""
    shown, damage, packet = [], [] if damage is None else damage, True
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        packets = container.demux(stream)
        while packet is not None:
            try:
                packet = next(packets)
                packet = packet if packet.size else None  # the end
            except av.FFmpegError as error:
                damage.append(error)
                packet = None
            try:
                decoded = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                damage.append(error)
                continue
            for frame in decoded:
                frame.time_base = stream.time_base
                shown.append((frame.time, frame.to_ndarray(format="rgb24")))
        rate = float(stream.average_rate or stream.guessed_rate or 25)
    times = [number / rate if time is None else time for number, (time, _) in enumerate(shown)]
    order = np.argsort(times, kind="stable")
    return np.array(times)[order], [shown[number][1] for number in order]


def rotate(path: Path, quarter_turns: int) -> Path:
    """Set the display matrix of an MP4's track: turn counter-clockwise by quarter_turns x 90 degrees when shown."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    matrix = [cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    offset = data.index(b"tkhd") + 4 + 40
    data[offset : offset + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def clip_writer():
    return write_clip


@pytest.fixture(scope="session")
def slow_decode():
    return decode_all


@pytest.fixture(scope="session")
def set_rotation():
    return rotate


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """4 s of H.264 with B-frames, 64x48 at 10 frames per second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def shared_videos() -> list[Path]:
    if not SHARED_VIDEOS.is_dir():
        pytest.skip(f"no real videos at {SHARED_VIDEOS}")
    return sorted(path for path in SHARED_VIDEOS.iterdir() if path.suffix != ".md")

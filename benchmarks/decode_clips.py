"""Clips for benchmarks/decode.py, pictures that drift and pictures that say which frame they are, and their truth."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dmae.processing.choice_dmae import choose_frames

SECONDS, RATE, FRAMES = 30, 30, 12


def make_clip(path: Path, width: int, height: int, gop: int) -> None:
    """A textured picture that drifts over a gradient: every frame differs from its neighbours, as filmed ones do."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 255, (height // 8 + 40, width // 8 + 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    gradient = np.linspace(0, 127, width).astype(np.uint8)[None, :, None]
    options = {"preset": "veryfast", "crf": "23", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SECONDS * RATE):
            top, left = int(100 + 90 * np.sin(number / 40)), number * 2 % 200
            image = texture[top : top + height, left : left + width] // 2 + gradient
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")))
        container.mux(stream.encode(None))


def chosen_times() -> np.ndarray:
    times = np.arange(SECONDS * RATE) / RATE
    return times[choose_frames(times, FRAMES)]


def rgb(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", threads=1)


def off_frames(path: Path, frames: list[np.ndarray]) -> int:
    """How many frames look less like the true one than like another within 5 of it."""
    truth = {}
    wanted = [round(second * RATE) for second in chosen_times()]
    near = {number + step for number in wanted for step in range(-5, 6)}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in near:
                truth[number] = rgb(frame)[::4, ::4].astype(int)
    off = 0
    for number, frame in zip(wanted, frames, strict=True):
        candidates = [other for other in range(number - 5, number + 6) if other in truth]
        distance = {other: np.abs(truth[other] - frame[::4, ::4]).mean() for other in candidates}
        off += min(distance, key=distance.get) != number
    return off


def coded(number: int) -> np.ndarray:
    """A picture that says which frame it is: 12 black or white bars, the bits of its number."""
    bars = 20 + 200 * (number >> np.arange(12) & 1)
    return np.broadcast_to(bars.repeat(16)[None, :, None], (96, 192, 3)).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    return int((frame[:, 8::16].mean((0, 2)) > 128) @ (1 << np.arange(12)))


def make_coded_clip(path: Path, times: np.ndarray) -> None:
    """One frame at each of the times in seconds; those before 0 are cut off by an edit list, as cutting tools do."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if times[0] < 0 else {}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"x264-params": "keyint=60:bframes=3"})
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(coded(number), "rgb24")
            frame.pts, frame.time_base = round(second * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

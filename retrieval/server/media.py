"""Posters, previews and exported clips: what a browser shows of any video that PyAV reads.

These functions run in a process of their own (see `studio.py`), without torch: a file that crashes FFmpeg takes that
process along and not the server. All of them raise ValueError or OSError for what cannot be shown.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

from dmae.files import new_file
from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.sources_dmae import DecodeLimits

MOST_WIDE = 1920  # pixels of an upload's frames, which go from process to process
LIMITS = DecodeLimits(max_pixels=4096 * 4096, max_packets=1_000_000, max_decoded_pixels=4e10, max_cpu_seconds=60.0)


def write_poster(path: str, moment: float, width: int, target: str) -> None:
    """The frame shown at `moment` seconds, at most `width` wide, as WebP."""
    with VideoReader(path, LIMITS) as reader:
        picture = lambda frame: _scaled(frame, width).to_image()  # noqa: E731
        (frame,), _ = reader.read(lambda times: np.array([_shown_at(times, moment)]), picture, moment, moment + 1.0)
    with new_file(Path(target)) as partial:
        frame.save(partial, "WEBP", quality=78, method=4)


def write_clip(path: str, start: float, end: float, width: int | None, rate: float, target: str) -> None:
    """[start, end] seconds as an MP4 that every browser plays: H.264 4:2:0, AAC, playable before it is all there."""
    sound = _sound(path, start, end)
    options = {"movflags": "+faststart"}
    with (
        VideoReader(path, LIMITS) as reader,  # first: what is wrong with it is no trouble of the disk
        new_file(Path(target)) as partial,
        av.open(str(partial), "w", format="mp4", options=options) as container,
    ):
        writer = _ClipWriter(container, width, rate, with_sound=sound is not None)
        steps = lambda times: _evenly(times, start, end, rate)  # noqa: E731
        reader.read(steps, lambda frame: writer.picture(frame, _seconds(frame, reader.stream)), start, end)
        writer.close(sound or iter(()))


def frame_times(path: str) -> np.ndarray:
    """Seconds at which the frames of an upload begin; one of them is decoded, to see that this is a video."""
    seen: list[np.ndarray] = []

    def first(times: np.ndarray) -> np.ndarray:
        seen[:] = [times]
        return np.array([0])

    with VideoReader(path, LIMITS) as reader:
        reader.read(first, lambda frame: None)
    return seen[0]


def frames_at(path: str, moments: np.ndarray) -> list[np.ndarray]:
    """The frames (H,W,3) of an upload that begin at these seconds, upright, at most MOST_WIDE."""

    def choose(times: np.ndarray) -> np.ndarray:
        return np.unique(np.searchsorted(times, moments - 1e-6).clip(max=len(times) - 1))

    with VideoReader(path, LIMITS) as reader:
        frames, _ = reader.read(choose, _upright)
    return frames


def _upright(frame: av.VideoFrame) -> np.ndarray:
    picture = frame if frame.width <= MOST_WIDE else _scaled(frame, MOST_WIDE)
    pixels = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))  # counter-clockwise


def _seconds(frame: av.VideoFrame, stream) -> float:
    """When a frame is shown. MPEG-2's decoder does not say what its times are counted in: the container does."""
    base = frame.time_base or stream.time_base
    return float(frame.pts * base) if frame.pts is not None and base else 0.0


def _scaled(frame: av.VideoFrame, width: int | None, format: str = "rgb24") -> av.VideoFrame:
    """At most `width` wide, in shape (a frame's pixels need not be square), with even sides as H.264 wants them."""
    stretch = float(getattr(frame, "sample_aspect_ratio", None) or 1)
    shown = frame.width * (stretch if 0.2 < stretch < 5 else 1.0)
    factor = min(1.0, width / shown) if width else 1.0
    wide, high = max(2, round(shown * factor / 2) * 2), max(2, round(frame.height * factor / 2) * 2)
    return frame.reformat(width=wide, height=high, format=format)


def _shown_at(times: np.ndarray, moment: float) -> int:
    """The place of the frame on the screen at `moment`."""
    return max(0, int(np.searchsorted(times, moment + 1e-3, side="right")) - 1)


def _evenly(times: np.ndarray, start: float, end: float, rate: float) -> np.ndarray:
    """Places of frames in [start, end], at most `rate` a second; the one shown at `start` at least."""
    first = _shown_at(times, start)
    inside = np.arange(first, max(first + 1, int(np.searchsorted(times, end, side="right"))))
    slots = np.floor((times[inside] - times[first]) * rate + 1e-6).astype(np.int64)
    return inside[np.unique(slots, return_index=True)[1]]


class _ClipWriter:
    """Encodes frames as they are decoded; times count from the first one."""

    def __init__(self, container, width: int | None, rate: float, with_sound: bool):
        self.container, self.width, self.first, self.last = container, width, None, -1
        self.stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        self.stream.options = {"preset": "veryfast", "crf": "26"}
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, 90_000)
        self.sound = container.add_stream("aac", rate=44_100, layout="stereo") if with_sound else None

    def picture(self, frame: av.VideoFrame, seconds: float) -> None:
        if self.first is None:
            self.first = seconds
            shape = _scaled(frame, self.width, "yuv420p")
            self.stream.width, self.stream.height = shape.width, shape.height
        ticks = round((seconds - self.first) * 90_000)
        if ticks <= self.last:  # the reader began again from the start: these are encoded already
            return
        scaled = frame.reformat(width=self.stream.width, height=self.stream.height, format="yuv420p")
        scaled.pts, scaled.time_base, self.last = ticks, Fraction(1, 90_000), ticks
        scaled.pict_type = PictureType.NONE
        self.container.mux(self.stream.encode(scaled))

    def close(self, sound: Iterator[av.AudioFrame]) -> None:
        self.container.mux(self.stream.encode())
        if self.sound is not None:
            for frame in sound:
                self.container.mux(self.sound.encode(frame))
            self.container.mux(self.sound.encode())


def _sound(path: str, start: float, end: float) -> Iterator[av.AudioFrame] | None:
    """Stereo frames of [start, end] counted from `start`, or None where the file has no sound that can be read."""
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if not container.streams.audio:
                return None
    except (av.FFmpegError, OSError):
        return None
    return _sound_frames(path, start, end)


def _sound_frames(path: str, start: float, end: float) -> Iterator[av.AudioFrame]:
    resampler, samples = av.AudioResampler(format="fltp", layout="stereo", rate=44_100), 0
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            stream = container.streams.audio[0]
            container.seek(int(max(0.0, start) * av.time_base))
            for frame in container.decode(stream):
                if frame.time is None or frame.time < start:
                    continue
                if frame.time > end:
                    return
                for piece in resampler.resample(frame):
                    piece.pts, piece.time_base = samples, Fraction(1, 44_100)
                    samples += piece.samples
                    yield piece
    except (av.FFmpegError, OSError, ValueError):  # the picture matters more than its sound
        return

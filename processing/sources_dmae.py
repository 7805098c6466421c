"""Where a video comes from, the bounds it is read within, and the error that says why it gave no frames."""

import io
import os
import re
from dataclasses import dataclass
from typing import Any

PART = re.compile(r"subfile,,start,(\d+),end,(\d+),,:(.+)", re.DOTALL)  # FFmpeg's own spelling
REENCODE = "re-encode it, e.g. `ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`, or leave it out"


class VideoDecodeError(ValueError):
    """A video gave no frames, or would exceed a bound. The message names the file, the position and the remedy."""


class VideoNotFoundError(VideoDecodeError, FileNotFoundError):
    """There is no file at the given path."""


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds per video, against hostile files. They bound work, not time on the clock: what a video gives must not
    depend on how busy the machine or how slow the disk is.

    max_pixels: width x height of a frame (8192 x 4320).
    max_seconds_to_scan: seconds of video whose packets are read to learn their times (4 h).
    max_packets: packets read, all passes together (5 million: 4 h at 120 frames per second, and a second look).
    max_decoded_pixels: pixels of all frames decoded (2e11: 53 minutes of 1080p at 30 frames per second).
    max_cpu_seconds: CPU time of the thread that decodes (10 minutes), for files that make a decoder toil.
    stall_seconds: wall-clock time in which nothing at all arrives from the file (5 minutes).
    """

    max_pixels: int = 8192 * 4320
    max_seconds_to_scan: float = 4 * 3600.0
    max_packets: int = 5_000_000
    max_decoded_pixels: float = 2e11
    max_cpu_seconds: float = 600.0
    stall_seconds: float = 300.0


def open_source(video: Any) -> tuple[str, Any]:
    """-> (name for messages, what `av.open` takes: an FFmpeg url or a seekable binary file object).

    video: path, stretch of a file (`subfile,,start,0,end,9,,:PATH`), bytes, binary file object, or a dict with "bytes"
        and/or "path" (bytes are used if both are there).
    """
    if isinstance(video, dict):
        video = video.get("bytes") if video.get("bytes") is not None else video.get("path")
    if isinstance(video, (bytes, bytearray, memoryview)):
        return f"<{len(video)} bytes>", io.BytesIO(video)
    if hasattr(video, "read"):
        name = str(getattr(video, "name", f"<{type(video).__name__}>"))
        return name, video if video.seekable() else io.BytesIO(video.read())
    if not isinstance(video, (str, os.PathLike)):
        raise ValueError(
            f"a video of type {type(video).__name__} is not understood; give a path, bytes, a binary file object, "
            '{"path": …, "bytes": …}, or uint8 frames as one array or tensor'
        )
    path = os.fsdecode(video)
    if part := PART.fullmatch(path):
        if not os.path.isfile(part[3]):
            raise VideoNotFoundError(f"{part[3]}: there is no such file; check the path")
        return f"{part[3]} from byte {part[1]}", f"subfile,,start,{part[1]},end,{part[2]},,:file:{part[3]}"
    if not os.path.exists(path):
        raise VideoNotFoundError(f"{path}: there is no such file; check the path")
    if not os.path.isfile(path):
        raise VideoDecodeError(f"{path}: is not a file; give the path of one video")
    return path, f"file:{path}"  # `file:` keeps FFmpeg from reading a protocol into an odd file name


def file_holding(video: str | os.PathLike) -> str:
    """The file that a path is, or that a stretch of a file lies in."""
    part = PART.fullmatch(os.fsdecode(video))
    return part[3] if part else os.fsdecode(video)

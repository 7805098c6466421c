"""An open video file within its bounds: its first video stream, and that stream's packets one after the other."""

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Discard, Disposition

from .sources_dmae import PART, REENCODE, DecodeLimits, VideoDecodeError, open_source

# Where libavformat writes the end as the length. Other writers mean the length: they claim too little, and a caller
# that reads on from there finds the end; a file that starts late and claims too much would get seconds without frames.
ENDS = ("matroska,webm", "nut")


class VideoContainer:
    """One open video: `with VideoContainer(source) as video: for packet in video.packets(): …`.

    source: see `open_source`; a file object stays open, at no particular position. Raises VideoDecodeError.
    """

    def __init__(self, source: Any, limits: DecodeLimits | None = None):
        self.limits = limits or DecodeLimits()
        self.name, self._file = open_source(source)
        self.container: Any = None
        self.damaged = 0  # packets that could not be read or decoded
        self._packets_read, self._pixels_decoded = 0, 0
        self._position: float | None = None  # seconds into the video, for messages

    def __enter__(self):
        self._cpu_began = time.thread_time()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None

    def error(self, what: str, remedy: str) -> VideoDecodeError:
        where = "" if self._position is None else f" at {self._position:.2f} s"
        return VideoDecodeError(f"{self.name}: {what}{where}; {remedy}")

    def seconds(self, pts):
        """Presentation time in seconds, computed as PyAV computes `frame.time`, so that the two are equal."""
        base = self.stream.time_base or Fraction(1, 1)
        return pts * float(base.numerator) / float(base.denominator)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return max(self.container.size, 0)

    def claimed_span(self) -> tuple[float, float] | None:
        """(first, last) second by the header's word; None where it does not say."""
        stream, base = self.stream, self.stream.time_base
        if stream.duration and base:
            start = float(self.seconds(stream.start_time or 0))
            return start, start + float(self.seconds(stream.duration))
        if self.container.duration:
            start, length = (self.container.start_time or 0) / av.time_base, self.container.duration / av.time_base
            return start, length if self.container.format.name in ENDS and length > start else start + length
        return None

    def packet_times(self, after: float | None = None, first: int | None = None) -> np.ndarray:
        """Ascending seconds of the frames, by their packets: all, the `first` few, or from before `after`."""
        if after is None:
            self._open()
        else:
            try:
                self.container.seek(int(after / self.stream.time_base), stream=self.stream)
            except (av.FFmpegError, OverflowError, ValueError):
                return np.empty(0)
        times: list[int] = []
        for packet in self._packets():
            shown = None if packet is None else packet.dts if packet.pts is None else packet.pts
            if packet is None or (first is not None and len(times) == first):
                break
            if shown is not None:
                times.append(shown)
        return np.sort(self.seconds(np.array(times, dtype=np.float64)))

    def _open(self, strict: bool = True) -> None:
        """(Re)open at the beginning. strict: the decoder reports damage instead of painting over it."""
        self.close()
        trusted = strict and self._begins_like_mp4()
        self.container = self._opened({"fflags": "+noparse+nofillin"} if trusted else {})
        if trusted and "mp4" not in self.container.format.name:
            self.container.close()
            self.container = self._opened({})
        self.stream = self._first_video_stream()
        for other in self.container.streams:
            if other is not self.stream:
                other.discard = Discard.all
        # One thread: loader workers run side by side, and each packet must be decoded before the next is read.
        codec = self.stream.codec_context
        codec.thread_type, codec.thread_count = "NONE", 1
        codec.options = {"max_pixels": str(self.limits.max_pixels), **({"err_detect": "explode"} if strict else {})}

    def _begins_like_mp4(self) -> bool:
        """MP4 and QuickTime tell every packet's times and key frames: FFmpeg need not look for them in the data."""
        if isinstance(self._file, str):
            try:
                part = PART.fullmatch(self._file)
                with open((part[3] if part else self._file).removeprefix("file:"), "rb") as file:
                    file.seek(int(part[1]) if part else 0)
                    return file.read(8)[4:] == b"ftyp"
            except OSError as error:
                raise self.error(f"cannot be read ({error.strerror})", "check its permissions and the disk") from error
        self._file.seek(0)
        return self._file.read(8)[4:] == b"ftyp"

    def _opened(self, options: dict[str, str]) -> Any:
        """Only the file itself may be read: a playlist must not reach the network."""
        if not isinstance(self._file, str):
            self._file.seek(0)
        part = isinstance(self._file, str) and PART.fullmatch(self._file)
        try:
            return av.open(
                self._file,
                options={"protocol_whitelist": "subfile,file" if part else "file", **options},
                timeout=self.limits.stall_seconds,
                metadata_errors="replace",  # a title in another encoding is no reason to refuse the frames
            )
        except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
            raise self.error(f"cannot be opened as a video ({error})", REENCODE) from error

    def _first_video_stream(self):
        for stream in self.container.streams.video:
            if not stream.disposition & Disposition.attached_pic:  # a cover picture is not the video
                if stream.codec_context is None:
                    raise self.error("is in a codec that this FFmpeg cannot decode", REENCODE)
                self._check_size(stream.codec_context.width, stream.codec_context.height)
                return stream
        raise self.error("has no video stream", "give a file that has one")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise self.error(
                f"a frame of {width}x{height} pixels exceeds max_pixels={self.limits.max_pixels}",
                "raise max_pixels or scale the video down",
            )

    def _too_long(self) -> VideoDecodeError:
        return self.error(
            f"lasts longer than max_seconds_to_scan={self.limits.max_seconds_to_scan:g} s",
            "give a start/end window or raise max_seconds_to_scan",
        )

    def _count_packet(self) -> None:
        self._packets_read += 1
        if self._packets_read > self.limits.max_packets:
            what = f"has more packets than max_packets={self.limits.max_packets}"
            raise self.error(what, "give a start/end window or cut the video")
        if time.thread_time() - self._cpu_began > self.limits.max_cpu_seconds:
            what = f"decoding took more CPU time than max_cpu_seconds={self.limits.max_cpu_seconds:g} s"
            raise self.error(what, "raise max_cpu_seconds or cut the video")

    def _count_frame(self, frame: av.VideoFrame) -> None:
        self._pixels_decoded += frame.width * frame.height
        if self._pixels_decoded > self.limits.max_decoded_pixels:
            what = f"takes more than max_decoded_pixels={self.limits.max_decoded_pixels:g} to decode"
            raise self.error(what, "raise max_decoded_pixels, give a start/end window, or cut or scale the video")

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets from the current position on, then None: the end of the data, or of what can be read of it."""
        try:
            for packet in self.container.demux(self.stream):
                self._count_packet()
                if packet.size:
                    yield packet
        except av.FFmpegError:
            self.damaged += 1
        yield None

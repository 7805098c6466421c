"""Frame-exact decoding with PyAV: read the packet times, choose frames by time, decode only what those need.

"GOP skip": one demux pass (no decoding) gives every presentation time and every key frame. The chosen frames are then
decoded from the nearest key frame at or before them; the reader seeks only when that key frame lies ahead of what it
has read. Where the container's account proves wrong (no timestamps, frames the decoder never shows, damaged packets)
the file is decoded from its beginning instead: slower, and always what a plain decode of everything gives.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, dropwhile, groupby
from typing import Any, NamedTuple

import av
import numpy as np

from .sources_dmae import REENCODE, DecodeLimits, VideoDecodeError, open_source

logger = logging.getLogger(__name__)

Choose = Callable[[np.ndarray], np.ndarray]
Convert = Callable[[av.VideoFrame], Any]

# Decoders that can leave out frames nothing else is predicted from, packet by packet, without a trace in the others.
SKIP_UNREFERENCED = ("h264", "hevc")


class _IndexMismatch(Exception):
    """The packets promised something that the decoder did not deliver: decode from the beginning instead."""


class PacketIndex(NamedTuple):
    """What the container says. pts: times of the frames, ascending, distinct; key_frames: (pts, dts), ascending."""

    pts: np.ndarray
    key_frames: list[tuple[int, int]]


class VideoReader:
    """One open video: `with VideoReader(source) as reader: frames, times = reader.read(choose, convert)`.

    source: see `open_source`; a file object stays open, at no particular position. Raises VideoDecodeError.
    """

    def __init__(self, source: Any, limits: DecodeLimits | None = None):
        self.limits = limits or DecodeLimits()
        self.name, self._file = open_source(source)
        self.container: Any = None
        self.damaged = 0  # packets that could not be read or decoded
        self._position: float | None = None  # seconds into the video, for messages
        self._last_key: int | None = None  # pts of the newest key frame given to the decoder
        self._wanted: frozenset[int] = frozenset()  # pts of the chosen frames

    def __enter__(self) -> "VideoReader":
        self._stop_at = time.monotonic() + self.limits.deadline
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

    def read(
        self, choose: Choose, convert: Convert, start: float | None = None, end: float | None = None
    ) -> tuple[list[Any], np.ndarray]:
        """Decode the frames that `choose` picks, in time order.

        choose: ascending times in seconds (n,) -> ascending indices to decode. It sees every frame between `start` and
        `end` (seconds) and the one shown at `start`; it may see more.
        convert: called with each chosen `av.VideoFrame`; what it returns is kept, the frame itself is not.
        -> (converted frames, their times (k,) float64 seconds, equal to PyAV's `frame.time`)
        """
        try:
            try:
                frames, times = self._decode_from_key_frames(self._index_packets(start, end), choose, convert)
            except _IndexMismatch:
                frames, times = self._decode_everything(choose, convert)
        except VideoDecodeError:
            raise
        except (av.FFmpegError, ValueError, ArithmeticError, LookupError, RuntimeError, OSError) as error:
            raise self.error(f"cannot be decoded ({error})", REENCODE) from error
        if self.damaged:
            logger.warning("%s: %d damaged packets left out; the frames come from the rest", self.name, self.damaged)
        return frames, times

    def error(self, what: str, remedy: str) -> VideoDecodeError:
        where = "" if self._position is None else f" at {self._position:.2f} s"
        return VideoDecodeError(f"{self.name}: {what}{where}; {remedy}")

    def seconds(self, pts):
        """Presentation time in seconds, computed as PyAV computes `frame.time`, so that the two are equal."""
        base = self.stream.time_base or Fraction(1, 1)
        return pts * float(base.numerator) / float(base.denominator)

    # -- opening and reading packets ----------------------------------------------------------------------------------

    def _open(self, strict: bool = True) -> None:
        """(Re)open at the beginning. strict: the decoder reports damage instead of painting over it.

        Only the file itself may be read: a playlist must not reach the network.
        """
        self.close()
        self._last_key = None
        if not isinstance(self._file, str):
            self._file.seek(0)
        try:
            self.container = av.open(
                self._file,
                options={"protocol_whitelist": "file"},
                timeout=self.limits.deadline,
                metadata_errors="replace",  # a title in another encoding is no reason to refuse the frames
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            self._check_deadline()
            raise self.error(f"cannot be opened as a video ({error})", REENCODE) from error
        self.stream = self._first_video_stream()
        for other in self.container.streams:
            if other is not self.stream:
                other.discard = av.stream.Discard.all
        # One thread: loader workers run side by side, and each packet must be decoded before the next is read.
        codec = self.stream.codec_context
        codec.thread_type = "NONE"
        codec.options = {"max_pixels": str(self.limits.max_pixels), **({"err_detect": "explode"} if strict else {})}

    def _first_video_stream(self):
        for stream in self.container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic:  # a cover picture is not the video
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

    def _check_deadline(self) -> None:
        if time.monotonic() > self._stop_at:
            what = f"decoding took longer than deadline={self.limits.deadline:g} s"
            raise self.error(what, "raise deadline or cut the video")

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets from the current position on, then None: the end of the data, or of what can be read of it."""
        try:
            for packet in self.container.demux(self.stream):
                self._check_deadline()
                if packet.size:
                    yield packet
        except av.FFmpegError:
            self._check_deadline()
            self.damaged += 1
        yield None

    def _choose(self, choose: Choose, times: np.ndarray) -> np.ndarray:
        chosen = choose(times)
        if not len(chosen):
            raise self.error(
                f"has no frame in the chosen window: its frames lie between {times[0]:.2f} s and {times[-1]:.2f} s",
                "move the window",
            )
        return chosen

    def _convert(self, convert: Convert, frame: av.VideoFrame) -> Any:
        self._check_size(frame.width, frame.height)
        return convert(frame)

    # -- the fast way: packet times first, then only the groups of pictures that are needed ---------------------------

    def _index_packets(self, start: float | None, end: float | None) -> PacketIndex:
        """Times of the frames from `start` (or before it) to `end`."""
        pts, key_frames = [], []
        ticks = 1 / (self.stream.time_base or Fraction(1, 1))
        longest = int(self.limits.max_seconds_to_scan * ticks)
        last = None if end is None else math.ceil(end * ticks)
        for packet in self._packets_from_before(start):
            if packet is None:
                break
            shown = packet.pts
            if shown is None or packet.is_corrupt:
                raise _IndexMismatch
            if packet.is_keyframe:
                key_frames.append((shown, shown if packet.dts is None else packet.dts))
            if packet.is_discard:  # before the start of an edit list: decoded, never shown
                continue
            pts.append(shown)
            if abs(shown - pts[0]) > longest:
                self._position = float(self.seconds(shown))
                raise self._too_long()
            # A packet is decoded before it is shown: once dts is past the end, so is everything after it.
            if last is not None and packet.dts is not None and packet.dts > last:
                break
        if not pts or not key_frames:
            raise _IndexMismatch
        return PacketIndex(np.unique(np.array(pts, dtype=np.int64)), sorted(key_frames))

    def _packets_from_before(self, start: float | None) -> Iterator[av.Packet | None]:
        """Packets from a key frame before `start` on, so that a window late in a long video costs only itself."""
        if start is None or not self.stream.time_base:
            return self._packets()
        target = int((start - 1.0) / self.stream.time_base)  # 1 s early: some containers seek by decoding time
        try:
            self.container.seek(target, stream=self.stream)
            packets = self._packets()
            first = next(packets)
            if first is not None and first.is_keyframe and first.pts is not None and first.pts <= target:
                return chain([first], packets)
        except av.FFmpegError:
            pass
        self._open()
        return self._packets()

    def _decode_from_key_frames(
        self, index: PacketIndex, choose: Choose, convert: Convert
    ) -> tuple[list[Any], np.ndarray]:
        chosen = index.pts[self._choose(choose, self.seconds(index.pts.astype(np.float64)))]
        self._wanted = frozenset(chosen.tolist())
        key_of = np.searchsorted([pts for pts, _ in index.key_frames], chosen, side="right") - 1
        if key_of[0] < 0:
            raise _IndexMismatch
        frames: Iterator[av.VideoFrame] = iter(())
        converted = {}
        for key, group in groupby(zip(key_of.tolist(), chosen.tolist()), key=lambda pair: pair[0]):
            if self._last_key is None or self._last_key < index.key_frames[key][0]:
                frames = self._frames_from(*index.key_frames[key])
            for pts in [pts for _, pts in group]:
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= pts), None)
                if frame is None or frame.pts != pts:
                    raise _IndexMismatch
                self._position = float(self.seconds(pts))
                converted[pts] = self._convert(convert, frame)
        return [converted[pts] for pts in chosen.tolist()], self.seconds(chosen.astype(np.float64))

    def _frames_from(self, pts: int, dts: int) -> Iterator[av.VideoFrame]:
        """Frames from the key frame (pts, dts) on. Containers seek by one or the other, and may overshoot by pts."""
        for target in (pts, dts):
            try:
                self.container.seek(target, stream=self.stream)
            except av.FFmpegError as error:
                raise _IndexMismatch from error
            packets = self._packets()
            first = next(packets)
            if first is not None and first.pts is not None and first.pts <= pts:
                ahead = dropwhile(lambda packet: packet is not None and packet.pts != pts, chain([first], packets))
                return self._decode_strictly(ahead, pts)
        raise _IndexMismatch

    def _decode_strictly(self, packets: Iterator[av.Packet | None], begin: int) -> Iterator[av.VideoFrame]:
        """Frames from the one shown at `begin` on, the key frame that the packets start with."""
        codec = self.stream.codec_context
        may_skip = codec.name in SKIP_UNREFERENCED
        expect_key = True
        for packet in packets:
            if packet is not None:
                if packet.pts is not None and packet.pts < begin:  # an open group's leading frames need the one before
                    continue
                expect_key &= not packet.is_discard  # then the key frame is decoded, but not shown
                if packet.is_keyframe and packet.pts is not None:
                    self._last_key = packet.pts
                if may_skip:
                    codec.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
            try:
                frames = codec.decode(packet)
            except av.FFmpegError as error:
                raise _IndexMismatch from error
            for frame in frames:
                # Damage reaches the frames predicted from this one; or the container took it for a key frame wrongly.
                if frame.is_corrupt or (expect_key and not frame.key_frame):
                    raise _IndexMismatch
                expect_key = False
                yield frame

    # -- the plain way: everything, in order --------------------------------------------------------------------------

    def _decode_everything(self, choose: Choose, convert: Convert) -> tuple[list[Any], np.ndarray]:
        """Two passes from the beginning: one for the times, one for the frames. Damaged packets are left out."""
        times = np.array([seconds for _, seconds in self._all_frames()], dtype=np.float64)
        if not len(times):
            raise self.error(
                f"decoded 0 frames ({self.damaged} damaged packets)", f"the file may be truncated: {REENCODE}"
            )
        order = np.argsort(times, kind="stable")
        chosen = order[self._choose(choose, times[order])]
        damaged, missing, converted = self.damaged, set(chosen.tolist()), {}
        for number, (frame, _) in enumerate(self._all_frames()):
            if number in missing:
                converted[number] = self._convert(convert, frame)
                missing.discard(number)
                if not missing:
                    break
        self.damaged = damaged
        return [converted[number] for number in chosen.tolist()], times[chosen]

    def _all_frames(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """(frame, seconds) of everything that decodes; a stream without times runs at its nominal rate."""
        self._open(strict=False)
        self.damaged = 0
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        shown, first = 0, 0.0
        for packet in self._packets():
            try:
                frames = self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
                continue
            for frame in frames:
                self._position = shown / rate if frame.pts is None else float(self.seconds(frame.pts))
                first = self._position if not shown else first
                if abs(self._position - first) > self.limits.max_seconds_to_scan:
                    raise self._too_long()
                yield frame, self._position
                shown += 1

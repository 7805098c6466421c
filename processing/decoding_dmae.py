"""Frame-exact decoding with PyAV: read the packet times, choose frames by time, decode only what those need.

"GOP skip": one demux pass (no decoding) gives every presentation time and every key frame. The chosen frames are then
decoded from the nearest key frame at or before them; once the last one of a group of pictures is in the decoder, it is
drained instead of fed what would follow. Where the container's account proves wrong (no timestamps, frames the decoder
never shows, damaged packets) the file is decoded from its beginning instead: slower, and always what a plain decode of
everything gives.
"""

import logging
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, dropwhile, groupby
from typing import Any, NamedTuple

import av
import numpy as np

from .container_dmae import VideoContainer
from .sources_dmae import REENCODE, DecodeLimits, VideoDecodeError

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


class VideoReader(VideoContainer):
    """`with VideoReader(source) as reader: frames, times = reader.read(choose, convert)`."""

    def __init__(self, source: Any, limits: DecodeLimits | None = None):
        super().__init__(source, limits)
        self._last_key: int | None = None  # pts of the newest key frame given to the decoder
        self._wanted: frozenset[int] = frozenset()  # pts of the chosen frames
        self._may_drain = True

    def _open(self, strict: bool = True) -> None:
        super()._open(strict)
        self._last_key = None

    def read(
        self,
        choose: Choose,
        convert: Convert,
        start: float | None = None,
        end: float | None = None,
        key_frames: bool = False,
    ) -> tuple[list[Any], np.ndarray]:
        """Decode the frames that `choose` picks, in time order.

        choose: ascending times in seconds (n,) -> ascending indices to decode. It sees every frame between `start` and
        `end` (seconds) and the one shown at `start`; it may see more.
        key_frames: show `choose` the key frames alone, where it picks any of them: each is decoded by itself.
        convert: called with each chosen `av.VideoFrame`; what it returns is kept, the frame itself is not.
        -> (converted frames, their times (k,) float64 seconds, equal to PyAV's `frame.time`)
        """
        try:
            try:
                index = self._index_packets(start, end)
                index = self._keys_alone(index, choose, start) if key_frames else index
                frames, times = self._decode_from_key_frames(index, choose, convert)
            except _IndexMismatch:
                frames, times = self._decode_everything(choose, convert)
        except VideoDecodeError:
            raise
        except (av.FFmpegError, ValueError, ArithmeticError, LookupError, RuntimeError, OSError, MemoryError) as error:
            raise self.error(f"cannot be decoded ({error})", REENCODE) from error
        if self.damaged:
            logger.warning("%s: %d damaged packets left out; the frames come from the rest", self.name, self.damaged)
        return frames, times

    def _keys_alone(self, index: PacketIndex, choose: Choose, start: float | None) -> PacketIndex:
        """Only the key frames that are shown; everything where none of them lies in the window."""
        keys = np.intersect1d(index.pts, [pts for pts, _ in index.key_frames])
        times = self.seconds(keys.astype(np.float64))
        picked = choose(times) if len(keys) else keys
        inside = len(picked) and (start is None or times[picked[0]] >= start - 1e-9)
        return index._replace(pts=keys) if inside else index

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
        """Times of the frames from `start` (or before it) to `end`. One pass over every packet: kept short."""
        pts, key_frames = [], []
        ticks = 1 / (self.stream.time_base or Fraction(1, 1))
        longest = int(self.limits.max_seconds_to_scan * ticks)
        last = math.inf if end is None else math.ceil(end * ticks)
        low, high = -math.inf, math.inf  # within `longest` of the first frame
        for packet in self._packets_from_before(start):
            if packet is None:
                break
            shown, decoded = packet.pts, packet.dts
            if shown is None or packet.is_corrupt:
                raise _IndexMismatch
            if packet.is_keyframe:
                key_frames.append((shown, shown if decoded is None else decoded))
            if packet.is_discard:  # before the start of an edit list: decoded, never shown
                continue
            if not low <= shown <= high:
                self._position = float(self.seconds(shown))
                raise self._too_long()
            if not pts:
                low, high = shown - longest, shown + longest
            pts.append(shown)
            # A packet is decoded before it is shown: once dts is past the end, so is everything after it.
            if decoded is not None and decoded > last:
                break
        if not pts or not key_frames:
            raise _IndexMismatch
        times = np.unique(np.array(pts, dtype=np.int64))
        if len(times) < len(pts):  # two frames of one time cannot be told apart by it
            raise _IndexMismatch
        return PacketIndex(times, sorted(key_frames))

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
        for key, pairs in groupby(zip(key_of.tolist(), chosen.tolist()), key=lambda pair: pair[0]):
            group = [pts for _, pts in pairs]
            if self._last_key is None or self._last_key < index.key_frames[key][0]:
                frames = self._frames_from(index.key_frames[key], group)
            for pts in group:
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= pts), None)
                if frame is None or frame.pts != pts:
                    raise _IndexMismatch
                self._position = float(self.seconds(pts))
                converted[pts] = self._convert(convert, frame)
        return [converted[pts] for pts in chosen.tolist()], self.seconds(chosen.astype(np.float64))

    def _frames_from(self, key: tuple[int, int], group: list[int]) -> Iterator[av.VideoFrame]:
        """Frames from the key frame (pts, dts) on, until those of the pts in `group` have come.

        Containers seek by pts or by dts, and may overshoot by pts.
        """
        for target in key:
            try:
                self.container.seek(target, stream=self.stream)
            except av.FFmpegError as error:
                raise _IndexMismatch from error
            packets = self._packets()
            first = next(packets)
            if first is not None and first.pts is not None and first.pts <= key[0]:
                ahead = dropwhile(lambda packet: packet is not None and packet.pts != key[0], chain([first], packets))
                return self._decode_strictly(ahead, key, group)
        raise _IndexMismatch

    def _decode_strictly(
        self, packets: Iterator[av.Packet | None], key: tuple[int, int], group: list[int]
    ) -> Iterator[av.VideoFrame]:
        """Frames from the one shown at `key[0]` on, the key frame that the packets start with.

        A packet comes after all that it is predicted from, so with those of `group` in, the decoder can be drained.
        """
        codec = self.stream.codec_context
        may_skip = codec.name in SKIP_UNREFERENCED
        expect_key, missing = True, set(group)
        for packet in packets:
            if packet is not None:
                if packet.pts is not None and packet.pts < key[0]:  # an open group's leading frames need the one before
                    continue
                expect_key &= not packet.is_discard  # then the key frame is decoded, but not shown
                if packet.is_keyframe and packet.pts is not None:
                    self._last_key = packet.pts
                if may_skip:
                    codec.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
                missing.discard(packet.pts)
            drain = self._may_drain and not missing
            try:
                frames = codec.decode(packet) + (codec.decode(None) if drain else [])
            except av.FFmpegError as error:
                raise _IndexMismatch from error
            if drain:
                self._last_key = None  # a drained decoder takes nothing more before the next seek
                if any(frame.interlaced_frame for frame in frames):  # its second field may be in the next packet
                    self._may_drain = False
                    yield from self._frames_from(key, group)
                    return
            for frame in frames:
                self._count_frame(frame)
                # Damage reaches the frames predicted from this one; or the container took it for a key frame wrongly.
                if frame.is_corrupt or (expect_key and not frame.key_frame):
                    raise _IndexMismatch
                expect_key = False
                yield frame
            if drain:
                return

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
                self._count_frame(frame)
                self._position = shown / rate if frame.pts is None else float(self.seconds(frame.pts))
                first = self._position if not shown else first
                if abs(self._position - first) > self.limits.max_seconds_to_scan:
                    raise self._too_long()
                yield frame, self._position
                shown += 1

"""VideoReader gives exactly the frames and times of a plain decode of everything, on every kind of file."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.sources_dmae import REENCODE, DecodeLimits, VideoDecodeError

X265 = "log-level=none:keyint=8:min-keyint=8"
FAST = {  # files that must be read by GOP skip
    "h264.mp4": {},
    "h264_pyramid.mp4": {"gop": 24, "options": {"x264-params": "bframes=5:b-pyramid=normal:scenecut=0"}},
    "h264_short_gop.mp4": {"gop": 2},  # seeking by pts overshoots: the next key frame's dts comes first
    "h264_low_delay.mp4": {"options": {"tune": "zerolatency", "x264-params": "scenecut=0"}},
    "h264_10bit.mp4": {"pix_fmt": "yuv420p10le"},
    "h264_interlaced.mp4": {"options": {"x264-params": "tff=1:scenecut=0"}},
    "h264_interlaced.ts": {"options": {"x264-params": "tff=1:scenecut=0"}, "rate": 25},
    "h264_444.mp4": {"pix_fmt": "yuv444p"},
    "h264.mkv": {},  # no frame count, dts missing at first
    "h264.flv": {},
    "h264.ts": {},  # starts above 0
    "h264_fragmented.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_audio_first.mp4": {"audio_first": True},
    "h264_one_frame.mp4": {"frames": 1},
    "h264_variable.mp4": {"times": [0, 40, 80, 500, 520, 540, 2500, 2501, 2600] + [3000 + 333 * i for i in range(31)]},
    "h264_negative.mp4": {"times": [100 * i - 500 for i in range(40)], "muxer": {"avoid_negative_ts": "disabled"}},
    "h264_late.mp4": {"times": [5000 + 100 * i for i in range(40)]},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265}},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": X265 + ":open-gop=1:bframes=4"}},
    "hevc_10bit.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": X265}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4_b.mp4": {"codec": "mpeg4", "b_frames": 2},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2, "rate": 25},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mjpeg_odd.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "width": 37, "height": 51},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "deadline": "realtime"}},
    "vp9_alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {"deadline": "realtime"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}, "frames": 20},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "ffv1_odd.mkv": {"codec": "ffv1", "width": 33, "height": 17, "pix_fmt": "yuv444p"},
    "png_alpha.mov": {"codec": "png", "pix_fmt": "rgba"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}
SLOW = {  # files whose packet times or key frames cannot be relied on
    # strict decoding takes an open group's references to the group before it for damage
    "h264_open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "h264_negative.mkv": {"times": [100 * i - 400 for i in range(40)], "muxer": {"avoid_negative_ts": "disabled"}},
    "h264_raw.h264": {"form": "h264"},
    "h264_intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=8"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2, "rate": 25},
}


def pixels(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


class CountingReader(VideoReader):
    """Counts how often the reader had to decode from the beginning."""

    plain = 0

    def _decode_everything(self, *args):
        self.plain += 1
        return super()._decode_everything(*args)


def assert_exact(path, times, images, rounds=6) -> int:
    """Compare several random choices of frames with the reference; -> how many needed a decode from the beginning."""
    random = np.random.default_rng(0)
    plain = 0
    for round_ in range(rounds):
        chosen = np.sort(random.choice(len(times), min(len(times), 1 + round_), replace=False))
        with CountingReader(path) as reader:
            frames, found = reader.read(lambda seen, chosen=chosen: chosen, pixels)
            plain += reader.plain
        assert found.tolist() == times[chosen].tolist()
        for frame, number in zip(frames, chosen):
            np.testing.assert_array_equal(frame, images[number])
    return plain


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_every_kind_of_file_gives_the_frames_of_a_plain_decode(name, tmp_path, clip_writer, slow_decode):
    path = clip_writer(tmp_path / name, **{**FAST, **SLOW}[name])
    times, images = slow_decode(path)
    plain = assert_exact(path, times, images)
    assert plain == 0 or name in SLOW, "the fast way was given up"


def test_real_videos(shared_videos, slow_decode):
    for path in shared_videos:
        times, images = slow_decode(path)
        assert len(times) > 0, path
        assert_exact(path, times, images, rounds=3)


def test_a_file_that_calls_every_frame_a_key_frame(tmp_path, clip_writer, slow_decode):
    """Without its `stss` table an MP4 claims that each frame can be decoded alone."""
    path = clip_writer(tmp_path / "no_stss.mp4", codec="mpeg4", gop=20)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    with av.open(str(path)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert assert_exact(path, *slow_decode(path)) > 0


def test_frames_before_an_edit_list_are_not_shown(tmp_path, clip_writer, slow_decode):
    path = clip_writer(tmp_path / "edited.mp4", gop=30, b_frames=0, times=[100 * i for i in range(40)])
    with av.open(str(path)) as container:
        second = container.streams.video[0].time_base.denominator
    data = bytearray(path.read_bytes())
    offset = data.index(b"elst") + 4 + 8 + 4  # media_time of the first edit
    begin = int.from_bytes(data[offset : offset + 4], "big") + second
    data[offset : offset + 4] = begin.to_bytes(4, "big")
    path.write_bytes(data)
    times, images = slow_decode(path)
    assert 0 < len(times) < 40
    assert_exact(path, times, images)


def test_times_out_of_order(tmp_path, slow_decode):
    """Intra-only packets whose presentation times jump back and forth: the decoder gives them in packet order."""
    path = tmp_path / "unordered.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number, pts in enumerate([0, 120, 40, 80, 240, 160, 200, 280]):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number * 30, np.uint8), "rgb24")
            for packet in stream.encode(frame.reformat(format="yuvj420p")):
                packet.time_base = Fraction(1, 1000)
                packet.pts, packet.dts = pts, number * 40 - 400
                container.mux(packet)
    times, images = slow_decode(path)
    assert len(times) == 8 and (np.diff([image.mean() for image in images]) < 0).any()
    assert_exact(path, times, images)


def test_two_frames_of_one_time(tmp_path, clip_writer, slow_decode):
    whole, path = clip_writer(tmp_path / "whole.mp4", frames=24), tmp_path / "twice.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        packets[-1].pts = packets[-2].pts = max(packets[-1].pts, packets[-2].pts)
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    times, images = slow_decode(path)
    assert len(set(times.tolist())) == len(times) - 1 == 23
    with VideoReader(path) as reader:
        frames, found = reader.read(lambda seen: np.arange(len(seen)), pixels)
    assert found.tolist() == times.tolist()
    np.testing.assert_array_equal(frames, images)


def test_the_first_video_stream_that_is_no_cover_picture(tmp_path, clip_writer):
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"cover.mp4: has no video stream"), VideoReader(tmp_path / "cover.mp4"):
        pass


def test_a_window_late_in_a_file_reads_only_its_packets(tmp_path, clip_writer, slow_decode):
    path = clip_writer(tmp_path / "long.mp4", frames=300)
    times, images = slow_decode(path)
    with CountingReader(path) as reader:
        seen = []
        frames, found = reader.read(lambda t: seen.extend(t) or np.flatnonzero((t >= 20) & (t <= 21)), pixels, 20, 21)
        assert reader.plain == 0
    assert len(seen) < 60
    np.testing.assert_array_equal(found, times[200:211])
    np.testing.assert_array_equal(frames, images[200:211])


def test_only_the_needed_groups_of_pictures_are_decoded(tmp_path, clip_writer, monkeypatch):
    path = clip_writer(tmp_path / "gops.mp4", frames=80, gop=10, b_frames=0)
    with CountingReader(path) as reader:
        index = reader._index_packets(None, None)
        assert len(index.pts) == 80 and len(index.key_frames) == 8
    decoded = []
    strictly = VideoReader._decode_strictly
    monkeypatch.setattr(
        VideoReader,
        "_decode_strictly",
        lambda self, packets, *rest: strictly(self, (decoded.append(packet) or packet for packet in packets), *rest),
    )
    with VideoReader(path) as reader:
        reader.read(lambda times: np.array([0, 33, 71]), pixels)
    assert len(decoded) == 1 + 4 + 2, "from each key frame to the frame, and none for the decoder to show it"


def test_key_frames_alone_are_whole_frames_of_the_clip(clip, slow_decode):
    """The clip has a key frame every 8 frames at 10 a second; a window without one falls back on all frames."""
    sampler = FrameSampler(num_frames=6, size=32, key_frames=True)
    out = sampler(clip)
    assert out.timestamps[out.video_mask].tolist() == pytest.approx([0.0, 0.8, 1.6, 2.4])
    times, _ = slow_decode(clip)
    plain = sampler.replaced(key_frames=False, num_frames=40)
    every = plain(clip, do_sample_frames=False).pixel_values
    rows = [int(np.argmin(np.abs(times - time))) for time in out.timestamps[out.video_mask].tolist()]
    assert torch.equal(out.pixel_values[out.video_mask], every[rows])
    assert sampler(clip, start=0.3, end=0.5).timestamps[0] == pytest.approx(0.3)


def damaged_copy(clip, path, numbers) -> int:
    """The clip with the data of these packets made unreadable; -> how many packets it has."""
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        content = bytearray(clip.read_bytes())
        for number in numbers:
            place, size = packets[number].pos, packets[number].size
            content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    return len(packets)


@pytest.mark.parametrize("packet", [0, 8, 39])
def test_a_damaged_packet_is_counted_once_and_the_rest_is_a_plain_decode(packet, clip, tmp_path, slow_decode, caplog):
    """Also where it lies behind all that is chosen in the end: every packet has been read once to learn the times."""
    path, damage = tmp_path / "damaged.mp4", []
    damaged_copy(clip, path, [packet])
    times, images = slow_decode(path, damage)
    assert len(damage) == 1 and len(times) < 40
    with CountingReader(str(path)) as reader:
        reader.damaged = 5  # by the first look at the packets
        frames, found = reader.read(lambda seen: np.arange(40 if len(seen) == 40 else 2), pixels)
        assert (reader.plain, reader.damaged, found.tolist()) == (1, 1, times[:2].tolist())
        assert "err_detect" not in reader.stream.codec_context.options, "a plain decode paints over what it can"
    np.testing.assert_array_equal(frames, images[:2])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{path}: 1 damaged packets left out; the frames come from the rest"


def test_a_file_that_gives_nothing_says_what_was_wrong(clip, tmp_path):
    path = tmp_path / "lost.mp4"
    count = damaged_copy(clip, path, range(40))
    with pytest.raises(VideoDecodeError) as raised, VideoReader(str(path)) as reader:
        reader.read(lambda times: np.arange(1), pixels)
    assert str(raised.value) == (
        f"{path}: decoded 0 frames ({count} damaged packets); the file may be truncated: {REENCODE}"
    )

    def broken(frame):
        raise OSError("the disk is full")

    with pytest.raises(VideoDecodeError) as raised, VideoReader(str(clip)) as reader:
        reader.read(lambda times: np.array([15]), broken)
    assert str(raised.value) == f"{clip}: cannot be decoded (the disk is full) at 1.50 s; {REENCODE}"


def test_a_window_is_read_from_the_key_frame_before_it(tmp_path, clip_writer):
    """One that ends in the same tick, too; without that key frame the file would be decoded from its beginning."""
    path = clip_writer(tmp_path / "long_gop.mp4", frames=80, gop=40, b_frames=0)
    for start, first in ((5.0, 4.0), (4.9, 0.0), (7.5, 4.0)):
        with CountingReader(str(path)) as reader:
            seen = []
            _, times = reader.read(
                lambda t, start=start, seen=seen: seen.extend(t) or [int(np.argmin(np.abs(t - start)))], pixels, start
            )
            assert (reader.plain, seen[0], times.tolist()) == (0, first, [start])


def test_packets_begin_at_a_key_frame_or_at_the_beginning(tmp_path, clip_writer):
    """Some containers seek to any packet, or past the wanted time: their packets are then all of them."""
    for name in ("h264.ts", "mpeg4_b.avi"):
        path = clip_writer(tmp_path / name, **FAST[name])
        with VideoReader(str(path)) as reader:
            every = [packet.pts for packet in reader._packets() if packet]
        for start in np.arange(0.5, 4, 0.45):
            with VideoReader(str(path)) as reader:
                packets = [packet for packet in reader._packets_from_before(float(start)) if packet]
                first, origin = packets[0], float(reader.seconds(min(every)))
            assert first.is_keyframe, (name, start)
            assert len(packets) == len(every) or reader.seconds(first.pts) <= start - 1 + 1e-6, (name, start, origin)


@pytest.mark.parametrize(
    ("pts", "times"),
    [
        ([None, None], [0.0, 0.04]),  # a stream that tells no rate runs at 25 a second
        ([100, 120, 80], [10.0, 12.0, 8.0]),
        ([100, 121], None),
        ([100, 79], None),
    ],
)
def test_how_far_a_plain_decode_may_get_from_its_first_frame(pts, times, clip):
    shown = [SimpleNamespace(pts=tick, width=1, height=1) for tick in pts]
    with VideoReader(str(clip), DecodeLimits(max_seconds_to_scan=2.0)) as reader:
        codec = SimpleNamespace(decode=lambda packet: [packet])
        stream = SimpleNamespace(average_rate=None, guessed_rate=None, time_base=Fraction(1, 10), codec_context=codec)
        reader._open = lambda strict: setattr(reader, "stream", stream)
        reader._packets = lambda: iter(shown)
        if times:
            assert list(reader._all_frames()) == list(zip(shown, times))
        else:
            with pytest.raises(VideoDecodeError, match=r"max_seconds_to_scan=2 s at (12\.10|7\.90) s"):
                list(reader._all_frames())

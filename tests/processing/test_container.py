"""An open file: how it is opened, which packets it gives and where its bounds are, each on both of its sides."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Discard, Disposition

from dmae.processing import container_dmae
from dmae.processing.container_dmae import VideoContainer
from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.sources_dmae import DecodeLimits, VideoDecodeError


@pytest.fixture
def opened(monkeypatch):
    """The options of every opening."""
    found, really = [], av.open
    monkeypatch.setattr(
        container_dmae.av, "open", lambda *given, **named: found.append((given[0], named)) or really(*given, **named)
    )
    return found


TRUSTED = {"fflags": "+noparse+nofillin"}


def test_the_word_of_an_mp4_alone_is_trusted(clip, clip_writer, tmp_path, opened):
    with VideoContainer(str(clip)) as video:
        assert video.size == clip.stat().st_size and video.damaged == 0
        video._open(strict=False)
    plain = {"protocol_whitelist": "file"}
    usual = {"timeout": 300.0, "metadata_errors": "replace"}
    assert opened == [
        (f"file:{clip}", {"options": plain | TRUSTED} | usual), (f"file:{clip}", {"options": plain} | usual)
    ]  # fmt: skip
    matroska = clip_writer(tmp_path / "a.mkv", frames=4)
    opened.clear()
    with VideoContainer(str(matroska), DecodeLimits(stall_seconds=7.0)):
        assert opened == [(f"file:{matroska}", {"options": plain} | usual | {"timeout": 7.0})]
    (tmp_path / "tar").write_bytes(bytes(512) + clip.read_bytes())
    part = f"subfile,,start,512,end,{512 + clip.stat().st_size},,:{tmp_path / 'tar'}"
    with open(clip, "rb") as file:
        for source in (part, file, clip.read_bytes()):
            opened.clear()
            with VideoContainer(source) as video:
                assert len(video.packet_times()) == 40
            assert {tuple(named["options"]) for _, named in opened} == {("protocol_whitelist", "fflags")}
            assert opened[0][1]["options"]["protocol_whitelist"] == ("subfile,file" if source is part else "file")


def test_what_only_begins_like_an_mp4_is_opened_once_more_without_trust(clip_writer, tmp_path, opened, monkeypatch):
    matroska = clip_writer(tmp_path / "a.mkv", frames=4)
    opened.clear()
    monkeypatch.setattr(VideoContainer, "_begins_like_mp4", lambda self: True)
    with VideoContainer(str(matroska)) as video:
        assert [TRUSTED.items() <= named["options"].items() for _, named in opened] == [True, False]
        assert len(video.packet_times()) == 4


def test_one_stream_is_read_by_one_thread_within_the_bounds(clip_writer, tmp_path):
    path = clip_writer(tmp_path / "sound.mp4", frames=9, audio_first=True)
    with VideoContainer(str(path), DecodeLimits(max_pixels=3072)) as video:
        assert video.stream.type == "video"
        discards = [stream.discard for stream in video.container.streams]
        assert [discard == Discard.all for discard in discards] == [True, False]
        codec = video.stream.codec_context
        assert (codec.thread_count, codec.options) == (1, {"max_pixels": "3072", "err_detect": "explode"})
        assert str(codec.thread_type).endswith("NONE")
        video._open(strict=False)
        assert video.stream.codec_context.options == {"max_pixels": "3072"}
    assert video.container is None, "it is closed"
    with pytest.raises(VideoDecodeError) as raised, VideoContainer(str(path), DecodeLimits(max_pixels=3071)) as video:
        pass
    assert str(raised.value) == (
        f"{path}: a frame of 64x48 pixels exceeds max_pixels=3071; raise max_pixels or scale the video down"
    )


def test_times_of_packets_are_those_of_the_frames(clip, clip_writer, tmp_path, slow_decode):
    times, _ = slow_decode(clip)
    late = clip_writer(tmp_path / "late.mkv", frames=30, times=[5000 + 40 * number for number in range(30)])
    with VideoContainer(str(clip)) as video:
        assert video.packet_times().tolist() == times.tolist()
        assert len(video.packet_times(first=1)) == 1 and len(video.packet_times(first=40)) == 40
        assert video.packet_times(first=3).tolist() == sorted(video.packet_times(first=3).tolist())
        tail = video.packet_times(after=3.5)
        assert tail[0] <= 3.5 and tail[-1] == times[-1] and len(tail) < 20
        assert video.packet_times(after=1e30).tolist() == []
        np.testing.assert_allclose(video.claimed_span(), (0.0, 4.0))
        assert video.seconds(video.stream.time_base.denominator) == 1.0
        video.stream = SimpleNamespace(duration=None, time_base=video.stream.time_base)
        np.testing.assert_allclose(video.claimed_span(), (0.0, 4.0))
        claims = SimpleNamespace(duration=2_500_000, start_time=None, close=video.container.close)
        video.container, claims.format = claims, video.container.format
        assert video.claimed_span() == (0.0, 2.5)
        claims.start_time = 500_000
        assert video.claimed_span() == (0.5, 3.0)
        claims.format = SimpleNamespace(name="matroska,webm")
        assert video.claimed_span() == (0.5, 2.5), "FFmpeg writes the end as the length"
        claims.start_time = 2_500_000
        assert video.claimed_span() == (2.5, 5.0), "this can only be a length"
        video.container = SimpleNamespace(duration=None, close=claims.close, size=-1)
        assert video.claimed_span() is None and video.size == 0
    with VideoContainer(str(late)) as video:
        start, end = video.claimed_span()
        assert start == pytest.approx(5.0, abs=0.01) and 6.16 <= end < 6.3, "not 11.2: the last frame begins at 6.16"
        shown = SimpleNamespace(duration=30, start_time=10, time_base=video.stream.time_base / 1)
        video.stream = shown
        second = shown.time_base.denominator
        np.testing.assert_allclose(video.claimed_span(), (10 / second, 40 / second))
        shown.start_time = None
        np.testing.assert_allclose(video.claimed_span(), (0.0, 30 / second))


def test_bounds_hold_at_their_value_and_not_one_beyond(clip):
    limits = DecodeLimits(max_packets=2, max_decoded_pixels=200, max_cpu_seconds=1e9)
    with VideoContainer(str(clip), limits) as video:
        frame = SimpleNamespace(width=20, height=5)
        video._count_packet(), video._count_packet(), video._count_frame(frame), video._count_frame(frame)
        with pytest.raises(VideoDecodeError) as packets:
            video._count_packet()
        video._position = 1.5
        with pytest.raises(VideoDecodeError) as pixels:
            video._count_frame(SimpleNamespace(width=1, height=1))
        longer = video._too_long()
    assert str(packets.value) == (
        f"{clip}: has more packets than max_packets=2; give a start/end window or cut the video"
    )
    assert str(pixels.value) == (
        f"{clip}: takes more than max_decoded_pixels=200 to decode at 1.50 s; raise max_decoded_pixels, give a "
        "start/end window, or cut or scale the video"
    )
    assert str(longer) == (
        f"{clip}: lasts longer than max_seconds_to_scan=14400 s at 1.50 s; give a start/end window or raise "
        "max_seconds_to_scan"
    )


def test_damage_is_counted_and_said_and_ends_what_can_be_read(clip, clip_writer, tmp_path, caplog):
    stream = clip_writer(tmp_path / "a.ts", rate=25)
    content = bytearray(stream.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    stream.write_bytes(content)
    with VideoReader(str(stream)) as reader:
        frames, times = reader.read(lambda times: np.arange(len(times)), lambda frame: frame.pts)
        assert 20 < len(frames) == len(times) and reader.damaged >= 0
    if reader.damaged:
        assert f"{stream}: {reader.damaged} damaged packets left out; the frames come from the rest" in caplog.text
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    with pytest.raises(VideoDecodeError, match=r"cut\.mp4: cannot be opened as a video \(.*\); re-encode it"):
        VideoContainer(str(tmp_path / "cut.mp4")).__enter__()


def test_a_file_without_permission_says_so(clip, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(container_dmae, "open", refused, raising=False)
    with pytest.raises(VideoDecodeError) as raised, VideoContainer(str(clip)):
        pass
    assert str(raised.value) == f"{clip}: cannot be read (Permission denied); check its permissions and the disk"


def test_what_was_open_is_closed_before_it_is_opened_again(clip):
    closed = []
    with VideoContainer(str(clip)) as video:
        really = video.container.close
        video.container = SimpleNamespace(close=lambda: closed.append(really()))
        video._open()
        assert len(closed) == 1 and len(video.packet_times()) == 40


def test_a_stream_that_is_none_or_has_no_decoder_is_refused(clip):
    with VideoContainer(str(clip)) as video:
        real, picture = video.container, SimpleNamespace(disposition=Disposition.attached_pic, codec_context=None)
        unknown = SimpleNamespace(disposition=Disposition(0), codec_context=None)
        for streams, said in (
            ([picture], "has no video stream; give a file that has one"),
            ([picture, unknown], "is in a codec that this FFmpeg cannot decode; re-encode it, e.g. "),
        ):
            video.container = SimpleNamespace(streams=SimpleNamespace(video=streams), close=real.close)
            with pytest.raises(VideoDecodeError) as raised:
                video._first_video_stream()
            assert str(raised.value).startswith(f"{clip}: {said}")


def test_time_on_the_processor_and_packets_are_counted_while_they_are_read(clip, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(container_dmae, "time", SimpleNamespace(thread_time=lambda: now[0]))
    with VideoContainer(str(clip), DecodeLimits(max_cpu_seconds=5.0, max_packets=30)) as video:
        now[0] = 15.0
        video._count_packet()
        now[0] = 15.5
        with pytest.raises(VideoDecodeError) as raised:
            video._count_packet()
        now[0] = 10.0
        with pytest.raises(VideoDecodeError, match="has more packets than max_packets=30"):
            video.packet_times()
    assert str(raised.value) == (
        f"{clip}: decoding took more CPU time than max_cpu_seconds=5 s; raise max_cpu_seconds or cut the video"
    )


def test_packets_end_where_no_more_can_be_read(clip):
    packet, empty = SimpleNamespace(size=3), SimpleNamespace(size=0)

    def demux(stream):
        yield from (packet, empty, packet)
        raise av.error.InvalidDataError(1, "damaged")

    with VideoContainer(str(clip)) as video:
        real = video.container
        video.container = SimpleNamespace(demux=demux, close=real.close)
        assert list(video._packets()) == [packet, packet, None] and video.damaged == 1
        video.container = SimpleNamespace(demux=lambda stream: iter([packet]), close=real.close)
        assert list(video._packets()) == [packet, None] and video.damaged == 1


def test_a_whole_stream_without_times_has_no_damage_to_tell_of(clip_writer, tmp_path, slow_decode, caplog):
    """It is read from its beginning, twice; what it gives is what a plain decode gives."""
    path = clip_writer(tmp_path / "a.h264", form="h264", frames=12)
    with VideoReader(str(path)) as reader:
        frames, times = reader.read(lambda times: np.array([0, 5, 11]), lambda frame: frame.to_ndarray(format="rgb24"))
        assert reader.damaged == 0 and caplog.text == ""
    expected, pictures = slow_decode(path)
    assert times.tolist() == expected[[0, 5, 11]].tolist()
    np.testing.assert_array_equal(frames, [pictures[number] for number in (0, 5, 11)])


def test_a_stream_without_times_is_bounded_and_left_once_all_is_there(clip_writer, tmp_path):
    path = clip_writer(tmp_path / "a.h264", form="h264", frames=12)
    with VideoReader(str(path)) as reader:
        reader.read(lambda times: np.array([0, 2]), lambda frame: None)
        assert reader._pixels_decoded == (12 + 3) * 64 * 48, "all for the times, then up to the last chosen one"
    with (
        pytest.raises(VideoDecodeError) as raised,
        VideoReader(str(path), DecodeLimits(max_seconds_to_scan=0.2)) as reader,
    ):
        reader.read(lambda times: np.array([0]), lambda frame: None)
    assert str(raised.value) == (
        f"{path}: lasts longer than max_seconds_to_scan=0.2 s at 0.24 s; give a start/end window or raise "
        "max_seconds_to_scan"
    )


def test_damaged_packets_are_told_with_their_count(clip, caplog):
    with VideoReader(str(clip)) as reader:
        reader.damaged = 3
        reader.read(lambda times: np.array([0]), lambda frame: None)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == f"{clip}: 3 damaged packets left out; the frames come from the rest"


def test_a_window_that_begins_at_a_key_frame_has_it(clip):
    sampler = FrameSampler(num_frames=6, size=16, fps=10, key_frames=True)
    assert sampler.decode(str(clip), 0.8, 1.0).timestamps.tolist() == pytest.approx([0.8])
    assert sampler.decode(str(clip), 0.9, 1.1).timestamps.tolist() == pytest.approx([0.9, 1.0, 1.1]), "none is in it"


def test_seconds_are_ticks_of_the_time_base_and_a_refused_file_is_closed(clip):
    with VideoContainer(str(clip)) as video:
        for base, seconds in ((Fraction(3, 100), 1.5), (Fraction(1, 25), 2.0), (None, 50.0)):
            video.stream = SimpleNamespace(time_base=base)
            assert video.seconds(50) == pytest.approx(seconds)
    refused = VideoContainer(str(clip), DecodeLimits(max_pixels=1))
    with pytest.raises(VideoDecodeError, match="exceeds max_pixels=1"):
        refused.__enter__()
    assert refused.container is None

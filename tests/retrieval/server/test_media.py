"""Which frames and which sound a poster, a preview and an upload are made of."""

import io
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from dmae.retrieval.server import media


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Sixteen frames of 64 x 48 in two seconds, each with its own grey; a second of silence, then one of a tone."""
    path = tmp_path_factory.mktemp("media") / "tone.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=8)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8_000, layout="mono")
        for number in range(16):
            image = np.full((48, 64, 3), 15 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            seconds = np.arange(1_000) / 8_000 + number / 8
            wave = np.where(seconds < 1, 0, 20_000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8_000, 1_000 * number, Fraction(1, 8_000)
            container.mux(sound.encode(frame))
        container.mux(video.encode()), container.mux(sound.encode())
    return str(path)


def greys(pictures) -> list[int]:
    """Which of the source's frames these are."""
    return [round(float(np.asarray(picture).mean()) / 15) for picture in pictures]


def test_a_poster_is_the_frame_on_the_screen_in_shape_and_size(source, tmp_path):
    target = tmp_path / "poster.webp"
    shown = []
    for moment, width in ((0.0, 480), (0.6, 32), (1.2495, 64), (99.0, 63)):
        media.write_poster(source, moment, width, str(target))
        with Image.open(io.BytesIO(target.read_bytes())) as poster:
            shown.append((poster.format, poster.size, *greys([poster.convert("RGB")])))
    assert shown == [("WEBP", (64, 48), 0), ("WEBP", (32, 24), 4), ("WEBP", (64, 48), 10), ("WEBP", (64, 48), 15)]


def test_a_preview_has_the_frames_and_the_sound_of_its_seconds(source, tmp_path):
    target = tmp_path / "preview.mp4"
    media.write_clip(source, 0.5, 1.5, 32, 24.0, str(target))
    with av.open(str(target)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 32, 24)
        assert (sound.codec_context.name, sound.rate, sound.layout.name) == ("aac", 44_100, "stereo")
        frames = list(container.decode(video))
        assert [frame.time for frame in frames] == pytest.approx([number / 8 for number in range(9)], abs=1e-4)
        assert greys(frame.to_ndarray(format="rgb24") for frame in frames) == list(range(4, 13))
        container.seek(0)
        pieces = [frame.to_ndarray() for frame in container.decode(sound)]
    heard = np.abs(np.concatenate(pieces, axis=1)).max(0)
    assert len(heard) == pytest.approx(44_100 * 1.125, abs=3_000)
    assert heard[4_000:18_000].max() < 0.02 and heard[26_000:44_000].max() > 0.4
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "playable before it is all there"


def test_a_preview_is_no_faster_than_its_rate_and_never_empty(source, tmp_path, clips):
    target = tmp_path / "preview.mp4"
    for start, end, rate, expected in ((0.0, 2.0, 4.0, [0, 2, 4, 6, 8, 10, 12, 14]), (0.3, 0.3, 24.0, [2])):
        media.write_clip(source, start, end, None, rate, str(target))
        with av.open(str(target)) as container:
            frames = list(container.decode(video=0))
            assert (frames[0].width, frames[0].height) == (64, 48)
        assert greys(frame.to_ndarray(format="rgb24") for frame in frames) == expected
        assert [frame.time for frame in frames] == pytest.approx([n / 4 for n in range(len(expected))], abs=1e-4)
    media.write_clip(str(clips / "clip00.mp4"), 0.0, 1.0, None, 24.0, str(target))
    with av.open(str(target)) as container:
        assert not container.streams.audio, "a silent video has no sound"
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: there is no such file; check the path"):
        media.write_clip(str(tmp_path / "none.mp4"), 0.0, 1.0, None, 24.0, str(tmp_path / "nothing.mp4"))
    assert not (tmp_path / "nothing.mp4").exists()


def test_an_upload_s_times_and_frames(source):
    times = media.frame_times(source)
    np.testing.assert_allclose(times, np.arange(16) / 8, atol=2e-3)
    frames = media.frames_at(source, times[[0, 3, 9]])
    assert greys(frames) == [0, 3, 9] and [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert greys(media.frames_at(source, np.array([0.05, 0.06, 99.0]))) == [1, 15]


def test_an_upload_of_one_frame_has_one_time(tmp_path):
    with av.open(str(tmp_path / "one.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=8)
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(video.encode())
    assert media.frame_times(str(tmp_path / "one.mkv")).tolist() == [0.0]


def test_sound_is_counted_from_its_first_sample(source):
    pieces = list(media._sound_frames(source, 0.5, 1.5))
    begins = np.cumsum([0, *(piece.samples for piece in pieces)])
    assert [piece.pts for piece in pieces] == begins[:-1].tolist() and begins[-1] > 40_000
    assert {piece.time_base for piece in pieces} == {Fraction(1, 44_100)}


def test_which_frame_is_on_the_screen():
    times = np.array([0.0, 0.5, 1.0, 1.5])
    assert [media._shown_at(times, at) for at in (-1, 0, 0.498, 0.4995, 0.5, 0.99, 9)] == [0, 0, 0, 1, 1, 1, 3]
    eighths = np.arange(9) / 8
    for start, end, rate, places in (
        (0.25, 0.75, 24, [2, 3, 4, 5, 6]), (0.25, 0.75, 4, [2, 4, 6]), (0.3, 0.3, 24, [2]), (0.9, 0.1, 24, [7]),
        (0.0, 9.0, 1, [0, 8]), (0.25, 0.75, 8, [2, 3, 4, 5, 6]), (0.125, 1.0, 3, [1, 4, 7]), (9.0, 9.5, 24, [8]),
    ):  # fmt: skip
        assert media._evenly(eighths, start, end, rate).tolist() == places
    tenths = np.arange(11) / 10
    assert media._evenly(tenths, 0.0, 1.0, 10).tolist() == list(range(11)), "0.3 * 10 is a little less than 3"


def frame_of(width: int, height: int, **about):
    """A frame that says what it is asked to become."""
    return SimpleNamespace(width=width, height=height, reformat=lambda **wish: (*wish.values(),), **about)


@pytest.mark.parametrize(
    ("size", "aspect", "width", "expected"),
    [
        ((64, 48), None, 32, (32, 24)), ((64, 48), None, 480, (64, 48)), ((64, 48), None, None, (64, 48)),
        ((720, 576), Fraction(16, 15), 384, (384, 288)), ((720, 576), Fraction(16, 15), None, (768, 576)),
        ((64, 48), Fraction(1, 2), None, (32, 48)), ((64, 48), Fraction(11, 2), None, (64, 48)),
        ((64, 48), Fraction(9, 2), None, (288, 48)), ((64, 48), Fraction(1, 10), None, (64, 48)),
        ((1, 1), None, None, (2, 2)), ((1000, 2), None, 100, (100, 2)), ((33, 7), None, None, (32, 8)),
        ((64, 48), Fraction(0), 32, (32, 24)), ((2, 1000), None, 1, (2, 500)),
    ],
)  # fmt: skip
def test_a_scaled_frame_keeps_its_shape_with_even_sides(size, aspect, width, expected):
    assert media._scaled(frame_of(*size, sample_aspect_ratio=aspect), width) == (*expected, "rgb24")
    assert media._scaled(frame_of(*size, sample_aspect_ratio=aspect), width, "yuv420p") == (*expected, "yuv420p")


def test_an_upload_is_turned_upright_and_never_too_wide(monkeypatch):
    pixels = np.arange(24).reshape(2, 4, 3)
    turned = lambda degrees: media._upright(  # noqa: E731
        SimpleNamespace(width=4, rotation=degrees, to_ndarray=lambda format: pixels if format == "rgb24" else None)
    )
    for degrees, turns in ((0, 0), (90, 1), (-90, 3), (180, 2), (-180, 2), (270, 3), (89, 1), (360, 0)):
        found = turned(degrees)
        assert found.flags["C_CONTIGUOUS"] and np.array_equal(found, np.rot90(pixels, turns))
    monkeypatch.setattr(media, "MOST_WIDE", 32)
    wide = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    assert media._upright(wide).shape == (24, 32, 3)
    odd = av.VideoFrame.from_ndarray(np.zeros((5, 31, 3), np.uint8), format="rgb24")
    assert media._upright(odd).shape == (5, 31, 3), "what is narrow enough stays as it is"
    odd = av.VideoFrame.from_ndarray(np.zeros((5, 32, 3), np.uint8), format="rgb24")
    assert media._upright(odd).shape == (5, 32, 3)


def test_a_frame_without_a_time_of_its_own():
    stream = SimpleNamespace(time_base=Fraction(1, 10))
    for pts, base, seconds in ((3, Fraction(1, 4), 0.75), (3, None, 0.3), (None, Fraction(1, 4), 0.0), (0, None, 0.0)):
        assert media._seconds(SimpleNamespace(pts=pts, time_base=base), stream) == seconds
    assert media._seconds(SimpleNamespace(pts=3, time_base=None), SimpleNamespace(time_base=None)) == 0.0


def test_frames_that_come_again_are_not_encoded_again():
    """The reader may begin again from the start; times count from the first frame."""
    muxed, encoded = [], []
    stream = SimpleNamespace(codec_context=SimpleNamespace(), encode=lambda frame=None: encoded.append(frame) or [])
    container = SimpleNamespace(add_stream=lambda *about, **more: stream, mux=muxed.append)
    writer = media._ClipWriter(container, 32, 24.0, with_sound=False)
    picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    picture.pict_type = PictureType.I  # of its own file: the encoder chooses its own
    for seconds in (1.0, 1.5, 1.0, 1.5, 2.0):
        writer.picture(picture, seconds)
    assert [(frame.pts, frame.time_base) for frame in encoded] == [
        (ticks, Fraction(1, 90_000)) for ticks in (0, 45_000, 90_000)
    ]
    assert {(frame.width, frame.height, frame.format.name) for frame in encoded} == {(32, 24, "yuv420p")}
    assert {frame.pict_type for frame in encoded} == {PictureType.NONE}
    assert stream.options == {"preset": "veryfast", "crf": "26"} and stream.pix_fmt == "yuv420p"
    writer.close(iter(()))
    assert encoded[-1] is None and len(muxed) == 4 and stream.codec_context.time_base == Fraction(1, 90_000)

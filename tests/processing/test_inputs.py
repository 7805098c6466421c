"""Every form of a video, against the plainest one; every argument of the processor acts or is refused by name."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata, load_video

from dmae.processing import inputs_dmae as inputs
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.processing_dmae import DMAEProcessor
from dmae.processing.sources_dmae import VideoDecodeError
from dmae.processing.words_dmae import WordWeigher
from dmae.training.tokenizer import train_bpe_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SAMPLER = FrameSampler(num_frames=4, size=16)


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    """Two videos of 3 frames: (2,3,20,24,3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, 3, 20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_bpe_tokenizer(["a red square moves", "a dog runs over the green grass"] * 3, 300, max_length=32)
    return DMAEProcessor(tokenizer, SAMPLER, WordWeigher(), max_words=16)


def pictures(video):
    return [Image.fromarray(frame) for frame in video]


ONE = {
    "array": lambda v: v,
    "tensor, channels first": lambda v: torch.from_numpy(v).permute(0, 3, 1, 2),
    "pictures": pictures,
    "a tuple of arrays": tuple,
    "channels-first frames": lambda v: [torch.from_numpy(frame).permute(2, 0, 1) for frame in v],
    "floats to 1": lambda v: v.astype(np.float32) / 255,
    "half floats, frame by frame": lambda v: [frame.astype(np.float64) / 255 for frame in v],
    "whole numbers": lambda v: v.astype(np.int64),
    "nested lists": lambda v: v.tolist(),
    "nested lists of floats": lambda v: (v / 255).tolist(),
    "with metadata": lambda v: (v, {"fps": 1.0}),
    "as a mapping": lambda v: {"frames": pictures(v), "fps": 1.0},
}


@pytest.mark.parametrize("form", ONE)
def test_one_video_in_every_form(form, videos):
    expected = SAMPLER(videos[0])
    alone = SAMPLER(ONE[form](videos[0]))
    assert all(torch.equal(alone[name], expected[name]) for name in expected)
    several = SAMPLER([ONE[form](video) for video in videos])
    assert several.pixel_values.shape == (2, 4, 3, 16, 16)
    assert torch.equal(several.pixel_values[0], expected.pixel_values)
    assert not torch.equal(several.pixel_values[1], expected.pixel_values)


BATCHES = {
    "5 axes": lambda v: v,
    "5 axes, tensor": torch.from_numpy,
    "nested lists": lambda v: v.tolist(),
    "lists of pictures": lambda v: [pictures(video) for video in v],
    "lists of lists of videos": lambda v: [[v[0]], [v[1]]],
}


@pytest.mark.parametrize("form", BATCHES)
def test_batches_in_every_form(form, videos, processor):
    batch = processor(videos=BATCHES[form](videos), return_tensors="pt")
    assert torch.equal(batch.pixel_values, SAMPLER(list(videos)).pixel_values)


def test_grey_palette_and_transparent_pictures_of_any_size(videos):
    frame = Image.fromarray(videos[0][0])
    mixed = [frame.convert("L"), frame.convert("P"), frame.convert("RGBA").resize((40, 30))]
    assert SAMPLER(mixed).video_mask.tolist() == [True] * 3 + [False]
    grey = SAMPLER([frame.convert("L").convert("RGB")]).pixel_values[0]
    assert torch.equal(SAMPLER(mixed).pixel_values[0], grey)


def test_what_load_video_gives_keeps_its_true_times(clip):
    """A clip of 40 frames at 10 a second, thinned to 8: the frames and times are those of the file."""
    frames, metadata = load_video(str(clip), num_frames=8)
    assert isinstance(metadata, VideoMetadata) and len(frames) == 8
    sampler = SAMPLER.replaced(num_frames=8)
    for given in ((frames, metadata), [(frames, metadata)]):
        out = sampler(given, do_sample_frames=False)
        np.testing.assert_allclose(out.timestamps.flatten(), np.array(metadata.frames_indices) / 10)
    apart = sampler([frames], video_metadata=metadata, do_sample_frames=False)
    assert torch.equal(apart.timestamps, out.timestamps)
    from_file = sampler.replaced(num_frames=40)(clip, do_sample_frames=False)
    rows = [round(time * 10) for time in out.timestamps[0].tolist()]
    assert (from_file.pixel_values[rows] - out.pixel_values[0]).abs().max() < 0.05  # two YUV conversions


def test_frames_with_their_own_rate_are_sampled_by_it(videos):
    long = np.repeat(videos[0][:1], 50, axis=0)
    out = SAMPLER(long, video_metadata={"fps": 25.0})  # two seconds
    assert out.timestamps.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert SAMPLER(long, start=1.5, video_metadata={"fps": 25.0}).timestamps[0] == pytest.approx(1.52)
    assert SAMPLER(long).timestamps.tolist() == [0.0, 16.0, 32.0, 49.0]  # without it a frame is a second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(do_sample_frames=False), "has 50 frames where num_frames=4 is the most"),
        (dict(video_metadata={"fps": 5, "frames_indices": [0, 1]}), "2 frames_indices and fps=5 for 50 frames"),
        (dict(video_metadata={"fps": 5, "frames_indices": [1] * 50}), "one ascending index"),
    ],
)
def test_frames_that_cannot_be_taken_as_told(videos, arguments, message):
    with pytest.raises(ValueError, match=message):
        SAMPLER(np.repeat(videos[0][:1], 50, axis=0), **arguments)


class PlayedAt:
    """What torchcodec's `VideoDecoder` does, over a clip decoded here: its frames, played at the moments asked for."""

    def __init__(self, frames, times, end):
        self.frames, self.times = frames, np.asarray(times)
        self.metadata = SimpleNamespace(
            begin_stream_seconds=times[0],
            end_stream_seconds=end,
            num_frames=len(times),
            average_fps=len(times) / (end - times[0]),
        )

    def get_frames_played_at(self, seconds):
        shown = np.searchsorted(self.times, np.asarray(seconds), side="right") - 1
        return SimpleNamespace(data=self.frames[shown], pts_seconds=torch.from_numpy(self.times[shown]))


@pytest.mark.parametrize("end", [6.0, 6.5])  # 6.5: the last frame is said to last long, as Matroska may
@pytest.mark.parametrize("sampling", ["fps", "uniform", "segment_center"])
def test_a_decoder_gives_what_the_file_gives(clip, sampling, end):
    whole = SAMPLER.replaced(num_frames=40)
    file = whole.decode(clip, do_sample_frames=False)
    decoder = PlayedAt(file.frames, file.timestamps.numpy() + 2.0, end)
    sampler = SAMPLER.replaced(sampling=sampling)
    ours, expected = sampler(decoder), sampler(clip)
    np.testing.assert_allclose(ours.timestamps[ours.video_mask], expected.timestamps[expected.video_mask] + 2.0)
    assert torch.equal(ours.pixel_values, expected.pixel_values)
    assert sampler(decoder, start=3.0, end=4.0).timestamps[0] == pytest.approx(
        3.0 if sampling != "segment_center" else 3.1
    )
    with pytest.raises(ValueError, match="no frame in the chosen window"):
        sampler(decoder, start=90.0)


class Rounded(PlayedAt):
    """Tells little of itself, and its frames begin a little after the even time."""

    def __init__(self, **about):
        times = np.array([0.0, 0.252, 0.5, 0.751])
        super().__init__(torch.arange(4)[:, None, None, None].expand(4, 3, 2, 2), times, 1.0)
        self.metadata = SimpleNamespace(**(vars(self.metadata) | about))


def test_a_decoder_that_tells_no_count_or_beginning_is_asked_in_the_middle_of_each_frame():
    for about in ({}, {"num_frames": None, "begin_stream_seconds": None}):
        reader = inputs.DecoderReader(Rounded(**about))
        np.testing.assert_allclose(reader.times, np.linspace(0, 0.751, 4))
        assert reader.last_moment == 1.0 - 1e-3
        taken = reader.read(lambda times: np.array([1, 3]))
        assert taken.times.tolist() == [0.252, 0.751] and [int(frame.max()) for frame in taken.frames] == [1, 3]
    twice = inputs.DecoderReader(Rounded(num_frames=8))
    assert len(twice.times) == 8 and twice.read(lambda times: np.arange(8)).times.tolist() == [0.0, 0.252, 0.5, 0.751]
    short = inputs.DecoderReader(Rounded(end_stream_seconds=5e-4, num_frames=1))
    assert short.last_moment == 0.0 and short.times.tolist() == [0.0]
    assert short.read(lambda times: np.array([0])).times.tolist() == [0.0]
    late = PlayedAt(torch.zeros(4, 3, 2, 2), [2.0, 2.25, 2.5, 2.75], 3.0)
    late.metadata.num_frames = None
    assert inputs.DecoderReader(late).times.tolist() == [2.0, 2.25, 2.5, 2.75]
    for times, place, shown in (
        ([0.0, 0.37, 0.5, 0.75], 1, 0.37), ([0.0, 0.25, 0.38, 0.75], 1, 0.25), ([0.4, 1.0], 0, 0.4)
    ):  # fmt: skip
        uneven = PlayedAt(torch.zeros(len(times), 3, 2, 2), times, 1.0 if len(times) == 4 else 2.0)
        uneven.metadata.begin_stream_seconds = 0.0
        taken = inputs.DecoderReader(uneven).read(lambda _, place=place: np.array([place]))
        assert taken.times.tolist() == [shown], "asked for in the middle of its time"
    for about, said in (
        ({"end_stream_seconds": None}, "from 0.0 s to None s at 4.0 fps"), ({"average_fps": 0}, "to 1.0 s at 0 fps"),
        ({"begin_stream_seconds": 1.0}, "from 1.0 s to 1.0 s"),
    ):  # fmt: skip
        with pytest.raises(VideoDecodeError, match=f"a decoder says it plays {said}|{said}") as raised:
            inputs.DecoderReader(Rounded(**about))
        assert str(raised.value).endswith("; give its file")
    with pytest.raises(VideoDecodeError, match=r"its frames lie between 0\.00 s and 0\.75 s; move the window"):
        reader.read(lambda times: np.array([], dtype=int))


# ---------------------------------------------------------------------- one video or several, its frames and times


def test_what_is_one_video_and_what_several_is_told_by_its_axes(videos):
    frame, video = videos[0][0], videos[0]
    about = {"fps": 2.0}
    several, alone = inputs.listed(videos)
    assert len(several) == 2 and not alone and (several[1] == videos[1]).all()
    for one in ("a.mp4", video, (video, about), {"frames": video}, [frame, frame], (frame,), pictures(video)):
        found, alone = inputs.listed(one)
        assert alone and len(found) == 1 and found[0] is one
    (numbers,), alone = inputs.listed(video.tolist())
    assert alone and (numbers == video).all()
    found, alone = inputs.listed(videos.tolist())
    assert not alone and len(found) == 2 and (found[1] == videos[1]).all()
    for many, count in (
        (["a.mp4"], 1), ([video, "a.mp4"], 2), ([[frame, frame], [frame]], 2), ([[video], [video, "a.mp4"]], 3),
        ([(video, about), (video, about)], 2), ([["a.mp4", "b.mp4"], "c.mp4"], 3), ((video, video), 2),
        ([(video, {"rate": 2.0})], 2), ([video.tolist(), video.tolist()], 2),
    ):  # fmt: skip
        found, alone = inputs.listed(many)
        assert not alone and len(found) == count
    assert inputs.listed(("a.mp4", about)) == ([("a.mp4", about)], True), "a name with its metadata is one"
    for value, numbers in (
        ([[[[1]]]], True), ([[[[0.5, 2]]]], True), ([[[[[1]]]]], True), ([[[1]]], False), ([[[["a"]]]], False),
        ([1], False), (1, False), ([[[[]]]], False),
    ):  # fmt: skip
        assert inputs._is_numbers(value) == numbers
    with pytest.raises(ValueError, match="videos is an empty list; give at least one video"):
        inputs.listed([])


def test_frames_in_memory_have_the_times_they_were_given(videos):
    video = videos[0]
    for given, metadata, times in (
        (video, None, [0, 0.25, 0.5]), (video, {"fps": 2.0}, [0, 0.5, 1]),
        ((video, {"fps": 10.0}), {"fps": 2.0}, [0, 0.1, 0.2]),
        ({"frames": video, "fps": 5.0}, {"fps": 2.0}, [0, 0.2, 0.4]), ({"frames": video}, {"fps": 2.0}, [0, 0.5, 1]),
        (video.tolist(), {"fps": 2.0, "frames_indices": [1, 4, 6]}, [0.5, 2, 3]), (pictures(video), {}, [0, 0.25, 0.5]),
        (video, {"fps": 2.0, "frames_indices": [0, 1, 2]}, [0, 0.5, 1]),
    ):  # fmt: skip
        held = inputs.held_frames(given, metadata, 4.0)
        np.testing.assert_allclose(held.times, times)
        assert all(
            (inputs.frame_tensor(one).numpy() == video[n].transpose(2, 0, 1)).all() for n, one in enumerate(held.frames)
        )
    for other in ("a.mp4", b"x", {"path": "a.mp4"}, {"frames": None}, 5):
        assert inputs.held_frames(other, None, 4.0) is None
    for empty in ([], video[:0], {"frames": ()}, video[:, :0]):
        with pytest.raises(VideoDecodeError, match="holds no frames; give at least one"):
            inputs.held_frames(empty, None, 4.0)
    for wrong in (
        {"frames_indices": [0, 1, 2]},
        {"fps": 2.0, "frames_indices": [0, 1]},
        {"fps": 2.0, "frames_indices": [0, 2, 2]},
    ):
        count, rate = len(wrong["frames_indices"]), wrong.get("fps")
        said = f"video_metadata has {count} frames_indices and fps={rate} for 3 frames; "
        with pytest.raises(ValueError, match=said):
            inputs.held_frames(video, wrong, 4.0)


def test_values_of_frames_are_bytes_or_shares_of_one():
    shape = (3, 2, 4)
    for low, high, kind, shown in (
        (-0.25, 1.0, torch.float32, "float32 reach from -0.25 to 1, and floats must lie in"),
        (0.0, 1.5, torch.float64, "float64 reach from 0 to 1.5, and floats"),
        (-1, 255, torch.int64, "int64 reach from -1 to 255, and whole numbers must lie in"),
        (0, 256, torch.int32, "int32 reach from 0 to 256, and whole"), (0, 1, torch.bool, "bool reach from 0 to 1"),
    ):  # fmt: skip
        values = torch.zeros(shape, dtype=kind)
        values[0, 0, 0], values[0, 0, 1] = low, high
        with pytest.raises(ValueError, match=f"frames of torch.{shown}"):
            inputs.frame_tensor(values)
    values = torch.zeros(shape, dtype=torch.float32)
    values[0, 0] = torch.tensor([0.0, 1.0, 0.4999, 100.6 / 255])
    assert inputs.frame_tensor(values)[0, 0].tolist() == [0, 255, 127, 101]
    whole = torch.tensor([0, 1, 254, 255]).expand(3, 2, 4)
    assert inputs.frame_tensor(whole)[0, 0].tolist() == [0, 1, 254, 255]
    both = torch.arange(18).reshape(3, 2, 3)  # a picture of three rows and three colours: the last axis is colour
    assert inputs.frame_tensor(both).tolist() == both.permute(2, 0, 1).tolist()
    assert inputs.frame_tensor(both.tolist()).tolist() == both.permute(2, 0, 1).tolist()
    four = torch.arange(36).reshape(2, 3, 2, 3).byte()
    assert inputs.held_frames(four, None, 1.0).frames.tolist() == four.permute(0, 3, 1, 2).tolist()
    for wrong in ((2, 3, 4), (3, 4), (2, 2, 2, 3)):
        with pytest.raises(ValueError, match=r"a frame of shape .*: expected \(H,W,3\) or \(3,H,W\)"):
            inputs.frame_tensor(torch.zeros(wrong))
    for wrong in ((2, 4, 3, 4), (3, 2), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"frames of shape .* and dtype torch\.float32: expected"):
            inputs.held_frames(torch.zeros(wrong), None, 1.0)


def test_one_picture_is_no_video_and_a_list_of_one_is(processor, videos):
    picture = pictures(videos[0])[0]
    for one, message in [(picture, "a video of type Image is not understood"), (videos[0, 0], "frames of shape")]:
        for ask in (SAMPLER, lambda video: processor(videos=video)):
            with pytest.raises(ValueError, match=message):
                ask(one)
    assert processor(videos=[picture], return_tensors="pt").video_mask.tolist() == [[True, False, False, False]]


# ---------------------------------------------------------------------- arguments


def test_arguments_act_at_the_call(processor, videos):
    batch = processor(text="a dog runs", videos=videos, max_length=8, num_frames=2, size=32, return_tensors="pt")
    assert batch.input_ids.shape == (1, 8) and batch.pixel_values.shape == (2, 2, 3, 32, 32)
    in_mappings = processor(
        text="a dog runs",
        videos=videos,
        text_kwargs={"max_length": 8},
        videos_kwargs={"num_frames": 2, "size": {"height": 32, "width": 32}},
        common_kwargs={"return_tensors": "pt"},
    )
    assert all(torch.equal(in_mappings[name], batch[name]) for name in batch)
    assert processor(text="a dog runs", return_tensors="pt").input_ids.shape == (1, 16)  # nothing stays changed
    assert processor(videos=videos, return_tensors="pt").pixel_values.shape == (2, 4, 3, 16, 16)
    longest = processor(text=["a dog", "a red square moves"], padding="longest", return_tensors="pt")
    assert longest.input_ids.shape[1] == longest.attention_mask.sum(1).max() < 16
    slow = processor(videos=videos[0], video_metadata={"fps": 2.0}, fps=2.0, return_timestamps=True)
    assert slow["timestamps"][0].tolist() == [0.0, 0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"text 0 has \d+ pieces and max_length=5"):
        processor(text="a dog runs over the green grass", max_length=5, truncation=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_frame=2), TypeError, "unexpected argument 'num_frame'; did you mean 'num_frames'"),
        (dict(images=[1]), TypeError, "unexpected argument 'images'"),
        (dict(videos_kwargs={"max_length": 8}), TypeError, "videos_kwargs: unexpected argument 'max_length'"),
        (dict(text_kwargs=8), TypeError, "text_kwargs=8: give a mapping"),
        (dict(do_resize=False), ValueError, "do_resize=False: this processor always has do_resize=True"),
        (dict(size=(16, 32)), ValueError, "frames are square"),
        (dict(max_length=2), ValueError, "max_length=2: must be 3"),
        (dict(num_frames=0), ValueError, "num_frames=0 must be above 0"),
    ],
)
def test_arguments_that_cannot_act_are_refused(processor, videos, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(text="a dog", videos=videos[0], **arguments)


def test_arguments_act_when_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for load in (
        DMAEProcessor.from_pretrained,
        lambda *a, **k: AutoProcessor.from_pretrained(*a, **k, trust_remote_code=True),
    ):
        loaded = load(tmp_path, num_frames=7, size=24, max_words=9, sampling="uniform")
        sampler = loaded.feature_extractor
        assert (sampler.num_frames, sampler.size, sampler.sampling, loaded.max_words) == (7, 24, "uniform", 9)
    with pytest.raises(TypeError, match="unexpected argument 'frames'; did you mean"):
        DMAEProcessor.from_pretrained(tmp_path, frames=7)
    with pytest.raises(TypeError, match="did you mean 'num_frames'"):
        FrameSampler(num_frame=3)


# ---------------------------------------------------------------------- torchcodec, in an environment of its own


@pytest.mark.second_env
def test_torchcodec_decoders_give_the_frames_and_times_of_the_file(tmp_path, clip, clip_writer):
    """torchcodec 0.7.0 wants torch 2.8: this package's sampler runs there, over real decoders and over their files."""
    environment, libraries = torchcodec_environment(tmp_path)
    (tmp_path / "dmae").mkdir()
    (tmp_path / "dmae" / "__init__.py").touch()
    (tmp_path / "dmae" / "processing").symlink_to(ROOT / "processing")
    late = clip_writer(tmp_path / "late.mkv", times=[1500 + 40 * number for number in range(60)])
    script = """
        import sys, torch
        from torchcodec.decoders import VideoDecoder
        from dmae.processing.frames_dmae import FrameSampler
        for path in sys.argv[1:]:
            for sampling in ("fps", "uniform", "segment_center"):
                sampler = FrameSampler(num_frames=4, size=16, sampling=sampling)
                played, expected = sampler(VideoDecoder(path)), sampler(path)
                torch.testing.assert_close(played.timestamps, expected.timestamps, rtol=0, atol=1e-5)
                assert (played.pixel_values - expected.pixel_values).abs().max() < 0.1  # two YUV conversions
        print("equal")
    """
    command = [environment / "bin" / "python", "-c", textwrap.dedent(script), clip, late]
    done = subprocess.run(command, cwd=tmp_path, env=libraries, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stdout + done.stderr


def torchcodec_environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """(a virtual environment, the variables its processes need); $DMAE_TORCHCODEC names one that stands already.

    torchcodec asks for FFmpeg 7 by the plain names of its libraries; the wheel of PyAV 15 has them under names of its
    own, and lends them without being installed: this package needs a later PyAV.
    """
    environment = Path(os.environ.get("DMAE_TORCHCODEC") or folder / "environment")
    pip = [environment / "bin" / "python", "-m", "pip", "-q"]
    if not environment.is_dir():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        wanted = ["torch==2.8.0", "torchcodec==0.7.0", "numpy", "av>=18", "transformers>=5.17", "scikit-learn", "spacy"]
        subprocess.run([*pip, "install", *wanted], check=True)
    subprocess.run([*pip, "download", "--no-deps", "-d", folder, "av==15.1.0"], check=True)
    (wheel,) = folder.glob("av-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if name.startswith("av.libs/")])
    bundled, plain = folder / "av.libs", folder / "ffmpeg"
    plain.mkdir()
    for name in ("avcodec", "avdevice", "avfilter", "avformat", "avutil", "swresample", "swscale"):
        (library,) = bundled.glob(f"lib{name}-*.so.*")
        major = library.name.split(".so.")[1].split(".")[0]
        (plain / f"lib{name}.so.{major}").symlink_to(library)
    return environment, {**os.environ, "LD_LIBRARY_PATH": f"{plain}:{bundled}"}

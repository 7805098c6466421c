"""FrameSampler: inputs, shapes, pixels, bounds, saving, loader workers."""

import io
import itertools
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dmae.processing import container_dmae
from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.frames_dmae import (
    CLIP_MEAN,
    CLIP_STD,
    SAMPLINGS,
    FrameSampler,
    VideoDecodeError,
    choose_frames,
    resize_and_crop,
)
from dmae.processing.sources_dmae import DecodeLimits


@pytest.fixture
def sampler() -> FrameSampler:
    return FrameSampler(num_frames=6, size=32)


def denormalized(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]) * 255


def pil_reference(image: np.ndarray, size: int) -> np.ndarray:
    """CLIP's transform by PIL: shorter side bicubic to `size`, centre crop. -> (size,size,3)"""
    height, width = image.shape[:2]
    short = min(height, width)
    resized = Image.fromarray(image).resize((int(size * width / short), int(size * height / short)), Image.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def test_shapes_padding_and_times(sampler, clip):
    out = sampler(clip)
    assert {key: (tuple(value.shape), value.dtype) for key, value in out.items()} == {
        "pixel_values": ((6, 3, 32, 32), torch.float32),
        "video_mask": ((6,), torch.bool),
        "timestamps": ((6,), torch.float64),
    }
    assert out.video_mask.tolist() == [True] * 4 + [False] * 2
    assert out.timestamps.tolist() == [0, 1, 2, 3, 0, 0]
    assert (out.pixel_values[4:] == 0).all()
    batch = sampler([clip, clip, clip], end=[None, 1.5, 0.5])
    assert batch.pixel_values.shape == (3, 6, 3, 32, 32) and batch.video_mask.sum(1).tolist() == [4, 2, 1]
    torch.testing.assert_close(batch.pixel_values[0], out.pixel_values, rtol=0, atol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("window", [(None, None), (0.95, 3.05)])
def test_pixels_are_those_of_pil_on_the_frames_of_a_plain_decode(clip, slow_decode, sampling, window):
    times, images = slow_decode(clip)
    sampler = FrameSampler(num_frames=5, size=24, sampling=sampling)
    out = sampler(clip, *window, generator=torch.Generator().manual_seed(0))
    chosen = choose_frames(times, 5, sampling, 1.0, *window, generator=torch.Generator().manual_seed(0))
    assert out.timestamps[out.video_mask].tolist() == times[chosen].tolist()
    for pixels, number in zip(denormalized(out.pixel_values), chosen):
        expected = torch.from_numpy(pil_reference(images[number], 24)).permute(2, 0, 1)
        assert (pixels - expected).abs().max() <= 1.01


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (37, 91), (224, 224), (1, 1), (5, 300), (16, 16)])
def test_resize_and_crop_is_within_one_level_of_pil(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = torch.from_numpy(noise).permute(2, 0, 1)
    ours = resize_and_crop(image, 16)
    assert ours.shape == (3, 16, 16) and ours.dtype == torch.uint8
    if max(shape) <= 8 * min(shape):
        expected = torch.from_numpy(pil_reference(noise, 16).copy()).permute(2, 0, 1)
        assert (ours.int() - expected.int()).abs().max() <= 1


def test_a_strip_of_pixels_stays_small():
    strip = torch.zeros(3, 2, 500_000, dtype=torch.uint8)
    before = psutil.Process().memory_info().rss
    assert resize_and_crop(strip, 224).shape == (3, 224, 224)
    # resized whole it would be 224 x 56,000,000 pixels; the process around the test comes and goes by far less
    assert psutil.Process().memory_info().rss - before < 1e9


def test_every_kind_of_input_gives_the_same(sampler, clip):
    data = clip.read_bytes()
    expected = sampler(str(clip)).pixel_values
    for video in [
        clip,
        data,
        bytearray(data),
        io.BytesIO(data),
        {"path": str(clip), "bytes": None},
        {"path": "gone.mp4", "bytes": data},
    ]:
        torch.testing.assert_close(sampler(video).pixel_values, expected, rtol=0, atol=0)
    with open(clip, "rb") as file:
        file.seek(100)
        torch.testing.assert_close(sampler(file).pixel_values, expected, rtol=0, atol=0)
        assert not file.closed
    mixed = sampler([clip, data, np.zeros((3, 8, 8, 3), np.uint8)])
    assert mixed.video_mask.sum(1).tolist() == [4, 4, 3]


def test_a_pipe_is_read_to_its_end(sampler, clip):
    with subprocess.Popen(["cat", str(clip)], stdout=subprocess.PIPE) as cat:
        piped = sampler(cat.stdout)
    torch.testing.assert_close(piped.pixel_values, sampler(clip).pixel_values, rtol=0, atol=0)


def test_arrays_of_frames(sampler):
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), np.uint8)
    out = sampler(frames)
    assert out.video_mask.sum() == 4 and out.timestamps[:4].tolist() == [0, 1, 2, 3]
    for other in [torch.from_numpy(frames), frames.transpose(0, 3, 1, 2), torch.from_numpy(frames).permute(0, 3, 1, 2)]:
        torch.testing.assert_close(sampler(other).pixel_values, out.pixel_values, rtol=0, atol=0)
    assert sampler(np.repeat(frames, 5, axis=0)).timestamps.tolist() == [0, 3, 7, 11, 15, 19]
    with pytest.raises(VideoDecodeError, match="window"):
        sampler(frames, start=10)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.full((4, 8, 8, 3), 3.5, np.float32), r"reach from 3\.5 to 3\.5, and floats must lie in \[0, 1\]"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"\(F,H,W,3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no frames"),
        (7, "type int"),
        ({"path": None, "bytes": None}, "path"),
        ([], "empty list"),
    ],
)
def test_wrong_inputs_are_refused_with_what_is_right(sampler, video, message):
    with pytest.raises(ValueError, match=message):
        sampler(video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "fsp"}, "fps, uniform"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"size": -1}, "size=-1"),
        ({"fps": 0}, "fps=0"),
        ({"dtype": "uint8"}, "dtype='uint8'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FrameSampler(**options)


def test_wrong_windows_are_refused(sampler, clip):
    with pytest.raises(ValueError, match=r"start=2.* before end=1"):
        sampler(clip, 2.0, 1.0)
    with pytest.raises(ValueError, match="2 values of start for 1 videos"):
        sampler([clip], start=[0, 1])
    with pytest.raises(VideoDecodeError, match=r"clip.mp4: has no frame in the chosen window.*3.90 s"):
        sampler(clip, 10, 20)


def test_missing_files(sampler, tmp_path):
    with pytest.raises(VideoDecodeError, match=r"gone.mp4: there is no such file"):
        sampler(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError):
        sampler(tmp_path / "gone.mp4")
    with pytest.raises(VideoDecodeError, match="is not a file"):
        sampler(tmp_path)


def test_bounds(clip):
    with pytest.raises(VideoDecodeError, match=r"64x48 pixels exceeds max_pixels=1000; raise max_pixels"):
        FrameSampler(max_pixels=1000)(clip)
    with pytest.raises(VideoDecodeError, match=r"max_seconds_to_scan=2 s at 2.\d\d s; give a start/end window"):
        FrameSampler(max_seconds_to_scan=2)(clip)
    assert FrameSampler(max_seconds_to_scan=3, size=8)(clip, 0, 1).video_mask.sum() == 2
    with pytest.raises(VideoDecodeError, match=r"clip.mp4: .* more CPU time than max_cpu_seconds=1e-09 s; raise"):
        FrameSampler(max_cpu_seconds=1e-9)(clip)
    with pytest.raises(VideoDecodeError, match="more than max_decoded_pixels=30000 to decode"):
        FrameSampler(max_decoded_pixels=30_000)(clip)  # ten frames of 64x48, and 40 are there
    with (
        pytest.raises(VideoDecodeError, match="more packets than max_packets=20"),
        VideoReader(clip, DecodeLimits(max_packets=20)) as reader,
    ):
        reader.read(lambda times: np.arange(len(times)), lambda frame: None)


def test_what_a_video_gives_does_not_depend_on_the_clock(sampler, clip, monkeypatch):
    expected = sampler(clip).pixel_values
    hours = itertools.count(0, 3600)  # a machine so busy that each look at the clock is an hour later
    clock = SimpleNamespace(monotonic=lambda: next(hours), time=lambda: next(hours), thread_time=time.thread_time)
    monkeypatch.setattr(container_dmae, "time", clock)
    torch.testing.assert_close(sampler(clip).pixel_values, expected, rtol=0, atol=0)


def test_a_stream_that_grows_beyond_max_pixels_in_its_middle(tmp_path, clip_writer):
    small = clip_writer(tmp_path / "a.h264", form="h264").read_bytes()
    large = clip_writer(tmp_path / "b.h264", form="h264", width=320, height=240).read_bytes()
    (tmp_path / "both.h264").write_bytes(small + large)
    both = FrameSampler(num_frames=99, size=32, fps=25)  # a raw stream has no times: it runs at 25 frames per second
    assert both(tmp_path / "both.h264").video_mask.sum() == 80
    bounded = FrameSampler(num_frames=99, size=32, fps=25, max_pixels=64 * 64)
    assert bounded(tmp_path / "both.h264").video_mask.sum() == 40, "only the small half decodes"


def test_odd_names_and_titles(sampler, tmp_path, clip):
    for name in ["concat:a|b.mp4", "a b\nc.mp4", "ünï%03d.mp4", "-i.mp4"]:
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert sampler(tmp_path / name).video_mask.sum() == 4


def test_metadata_in_another_encoding(sampler, tmp_path, clip_writer):
    path = clip_writer(tmp_path / "title.mkv", title="TITLETITLE")
    path.write_bytes(path.read_bytes().replace(b"TITLETITLE", "Motörhead!".encode("latin-1")))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert sampler(path).video_mask.sum() == 4


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_is_applied(tmp_path, clip_writer, set_rotation, slow_decode, quarter_turns):
    path = set_rotation(clip_writer(tmp_path / "turned.mp4"), quarter_turns)
    out = FrameSampler(num_frames=1, size=24)(path)
    upright = np.rot90(slow_decode(path)[1][0], quarter_turns)
    expected = torch.from_numpy(pil_reference(np.ascontiguousarray(upright), 24).copy()).permute(2, 0, 1)
    assert (denormalized(out.pixel_values[0]) - expected).abs().max() <= 1.01


def test_rotation_of_real_phone_videos(shared_videos):
    """The same three frames, stored upright and turned by 90 and 270 degrees."""
    paths = {path.stem: path for path in shared_videos}
    upright, *turned = (
        FrameSampler(num_frames=3, size=64, fps=30)(paths[name]).pixel_values
        for name in ["video_0", "video_90", "video_270"]
    )
    for other in turned:
        assert torch.isfinite(other).all() and other.shape == upright.shape


def test_real_videos(shared_videos):
    sampler = FrameSampler(num_frames=12, size=64)
    batch = sampler(shared_videos)
    counts = dict(zip((path.name for path in shared_videos), batch.video_mask.sum(1).tolist()))
    assert min(counts.values()) >= 1 and counts["nasa_13013.mp4"] == 12 and counts["water_bottle_drumming.mp4"] == 9


def test_normalize_and_dtype(clip):
    sampler = FrameSampler(num_frames=4, size=16, dtype="bfloat16")
    decoded = sampler.decode(clip)
    assert decoded.frames.dtype == torch.uint8 and decoded.frames.shape == (4, 3, 16, 16)
    out = sampler(clip).pixel_values
    assert out.dtype == torch.bfloat16
    exact = FrameSampler(num_frames=4, size=16)(clip).pixel_values
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    torch.testing.assert_close(exact, (decoded.frames / 255 - mean) / std, rtol=0, atol=1e-6)
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.03)


def test_saving_and_loading(tmp_path, clip):
    sampler = FrameSampler(num_frames=5, size=40, sampling="uniform", fps=2.0, image_mean=(0.1, 0.2, 0.3))
    sampler.save_pretrained(tmp_path)
    loaded = FrameSampler.from_pretrained(tmp_path)
    assert loaded.to_dict() == sampler.to_dict()
    torch.testing.assert_close(loaded(clip).pixel_values, sampler(clip).pixel_values, rtol=0, atol=0)
    assert FrameSampler.from_pretrained(tmp_path, num_frames=2)(clip).video_mask.shape == (2,)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["sampling"] == "uniform"


def test_loads_from_its_folder_without_the_package(tmp_path, clip):
    FrameSampler(num_frames=3, size=16).save_pretrained(tmp_path / "saved")
    code = (
        "import importlib.util, sys; assert importlib.util.find_spec('dmae') is None\n"
        "from transformers import AutoFeatureExtractor\n"
        "sampler = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(tuple(sampler(sys.argv[2]).pixel_values.shape))"
    )
    # -S leaves out the .pth files, hence the editable install; the libraries are found by their own folder.
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({libraries!r})\n" + code
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "saved"), str(clip)],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(3, 3, 16, 16)", done.stderr


class Clips(torch.utils.data.Dataset):
    def __init__(self, sampler, paths):
        self.sampler, self.paths = sampler, paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        return dict(self.sampler(self.paths[number]))


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)  # the processor's test has it
def test_loader_workers(method, clip, sampler):
    sampler(clip)  # the parent has decoded before it forks
    loader = DataLoader(Clips(sampler, [str(clip)] * 4), batch_size=2, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        torch.testing.assert_close(batch["pixel_values"], sampler([clip, clip]).pixel_values, rtol=0, atol=0)


def test_an_error_crosses_from_a_worker_with_its_message(sampler, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for name, message in [("bad.mp4", "cannot be opened"), ("gone.mp4", "no such file")]:
        with pytest.raises(VideoDecodeError, match=message) as caught:
            list(DataLoader(Clips(sampler, [tmp_path / name]), num_workers=1))
        assert name in str(caught.value)
        assert pickle.loads(pickle.dumps(VideoDecodeError("a"))).args == ("a",)


def test_no_handle_stays_open(sampler, clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(clip.read_bytes()[:700])
    for _ in range(5):
        sampler(clip)
        with pytest.raises(VideoDecodeError):
            sampler(tmp_path / "bad.mp4")
    held = {Path(file.path).name for file in psutil.Process().open_files()}  # by name: other tests' handles come and go
    assert not held & {clip.name, "bad.mp4"}

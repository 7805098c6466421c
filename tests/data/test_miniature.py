"""A miniature is its dataset in small: the golden files say how it is written, these that it shows what it says."""

import itertools

import av
import numpy as np
import pytest

from dmae.data.miniature import DIRECTIONS, Scene, make_miniature, scene_frames, write_clip
from dmae.data.registry import available_splits, load_dataset


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames.astype(int), stream.codec_context.name, stream.average_rate


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_square_goes_its_way_by_six_tenths_of_what_is_free(direction):
    frames = list(scene_frames(Scene("red", direction), 1.0, 0, (64, 48)))
    assert len(frames) == 8 and all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)
    corners = [np.argwhere(frame[..., 0] == 220) for frame in frames]
    assert {len(places) for places in corners} == {16 * 16}
    assert {*np.unique(frames[0][frames[0][..., 0] != 220])} == {*range(10, 50)}, "darker than every square"
    first, last = corners[0][0], corners[-1][0]
    way = {"left": (0, -29), "right": (0, 29), "up": (-19, 0), "down": (19, 0)}[direction]
    assert tuple(last - first) == way and {tuple(np.abs(a[0] - b[0]) > 0) for a, b in itertools.pairwise(corners)} == {
        (way[0] != 0, way[1] != 0)
    }


def test_clips_are_two_seconds_of_their_codec_and_a_background_of_their_own(tmp_path):
    scene, drawn = Scene("green", "up"), {}
    for name, codec in (("new/a.mp4", "h264"), ("a.avi", "mpeg4"), ("a.mkv", "h264")):
        write_clip(tmp_path / name, scene, seed=3)
        frames, found, rate = read(tmp_path / name)
        drawn[name] = np.stack(list(scene_frames(scene, 2.0, 3, (64, 48)))).astype(int)
        assert (found, rate, frames.shape) == (codec, 8, (16, 48, 64, 3))
        assert np.abs(frames - drawn[name]).mean() < 12
    other = np.stack(list(scene_frames(scene, 2.0, 0, (64, 48))))
    assert (other[:, 0] != drawn["a.avi"][:, 0]).mean() > 0.9
    write_clip(tmp_path / "b.mp4", scene)
    assert np.abs(read(tmp_path / "b.mp4")[0] - other).mean() < 12


def test_a_miniature_has_the_sizes_asked_for_in_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    made = make_miniature("MSR-VTT_full", tmp_path / "empty", {"train": 2}, seconds=0.125)
    assert made == ("msrvtt-full", tmp_path / "empty" / "annotations", tmp_path / "empty" / "videos")
    sizes = {
        split: len(load_dataset(*made, split=split, check_videos=True).dataset) for split in available_splits(*made)
    }
    assert sizes == {"train": 2, "validation": 4, "test": 6}
    with pytest.raises(FileExistsError) as raised:
        make_miniature("msvd", tmp_path / "empty")
    assert str(raised.value) == f"{tmp_path / 'empty'}: is not empty; name a new folder for the miniature"


def test_a_miniature_in_tars_has_the_clips_of_the_one_in_folders(tmp_path):
    sizes = {"train": 3, "validation": 1, "test": 2}
    tars = make_miniature("webdataset", tmp_path / "tars", sizes, 0.25)
    files = make_miniature("videofolder", tmp_path / "files", sizes, 0.25)
    assert tars == ("webdataset", tmp_path / "tars", tmp_path / "tars") and files[1:] == (tmp_path / "files",) * 2
    for split, size in sizes.items():
        packed, plain = (load_dataset(*made, split=split).dataset for made in (tars, files))
        assert packed["video_id"][:] == plain["video_id"][:] and packed["captions"][:] == plain["captions"][:]
        assert len(packed) == size
    frames = read(tmp_path / "files" / "train" / "clip_001.mp4")[0]
    assert len(frames) == 2
    scene = Scene("green", "left")
    assert load_dataset(*files).dataset["captions"][1] == scene.captions()
    assert np.abs(frames - np.stack(list(scene_frames(scene, 0.25, 1, (64, 48))))).mean() < 12

"""Each argument goes to its side or is refused with the nearest name; sources are opened as what they are."""

import io
import json

import pytest

from dmae.processing.arguments_dmae import ALWAYS, refuse_unknown, sorted_arguments, square_side
from dmae.processing.pictures_dmae import picture_settings
from dmae.processing.sources_dmae import VideoDecodeError, VideoNotFoundError, file_holding, open_source


def said(error, call, *given) -> str:
    with pytest.raises(error) as raised:
        call(*given)
    return str(raised.value)


def test_arguments_are_sorted_by_what_they_concern_and_the_nearest_word_wins():
    given = {
        "max_length": 8, "fps": None, "num_frames": 3, "return_tensors": "pt", "start": 0.0, "_from_pipeline": "x",
        "text_kwargs": {"max_length": 9, "padding": "longest", "return_timestamps": False},
        "videos_kwargs": {"fps": 2.0, "num_frames": 4, "return_metadata": True, "do_resize": True},
        "common_kwargs": {"fps": 5.0, "size": 32, "padding": False, "truncation": None},
        "do_pad": None,
    }  # fmt: skip
    text, videos, output = sorted_arguments(given)
    assert text == {"max_length": 8, "padding": "longest"}
    assert videos == {"num_frames": 3, "size": 32, "fps": 2.0, "start": 0.0}
    assert output == {"return_tensors": "pt", "return_timestamps": False, "return_metadata": True}
    assert sorted_arguments({"text_kwargs": None, "paragraphs": None}) == ({}, {}, {})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_frame": 1}, TypeError, "unexpected argument 'num_frame'; did you mean 'num_frames'?"),
        ({"video_kwargs": {}}, TypeError, "unexpected argument 'video_kwargs'; did you mean 'videos_kwargs'?"),
        ({"text_kwargs": {"fps": 1}}, TypeError, "text_kwargs: unexpected argument 'fps'; valid: max_length, padding, "
         "truncation, paragraphs, return_tensors, return_timestamps, return_metadata"),
        ({"common_kwargs": {"texts": 1}}, TypeError, "common_kwargs: unexpected argument 'texts'; did you mean "
         "'start'?"),
        ({"videos_kwargs": ["fps"]}, TypeError, "videos_kwargs=['fps']: give a mapping of arguments"),
        ({"do_pad": False}, ValueError, "do_pad=False: this processor always has do_pad=True; leave it out"),
        ({"text_kwargs": {"padding_side": "left"}}, ValueError, "text_kwargs: padding_side='left': this processor "
         "always has padding_side='right'; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_nearest_name(given, error, message):
    if "texts" in str(given):  # nearest of all there are, if any is near
        assert said(error, sorted_arguments, given).startswith("common_kwargs: unexpected argument 'texts'; ")
    else:
        assert said(error, sorted_arguments, given) == message
    assert sorted_arguments(dict(ALWAYS)) == ({}, {}, {})


def test_names_alone_are_looked_at_where_there_are_no_values():
    refuse_unknown(["do_pad", "_anything", "size"], ["size"], ["size"])
    assert said(TypeError, refuse_unknown, ["sise"], ["size"], ["size", "fps"], "here: ") == (
        "here: unexpected argument 'sise'; did you mean 'size'?"
    )


def test_a_square_side_in_every_spelling():
    for size in (32, [32, 32], (32,), {"height": 32, "width": 32}, {"shortest_edge": 32}):
        assert square_side(size) == 32
    for size in (True, [32, 16], 32.0, "32", {}, [], {"height": 32, "width": 16}, None):
        message = f"size={size!r}: frames are square; give one whole number of pixels"
        assert said(ValueError, square_side, size) == message


# ---------------------------------------------------------------------- where a video comes from


class Pipe(io.BytesIO):
    def seekable(self):
        return False


def test_sources_are_opened_as_what_they_are(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"12345")
    assert open_source(path) == open_source(str(path)) == open_source({"path": str(path), "bytes": None}) == (
        str(path), f"file:{path}",
    )  # fmt: skip
    for held in (b"123", bytearray(b"123"), {"bytes": b"123", "path": "nowhere.mp4"}):
        name, stream = open_source(held)
        assert (name, stream.read()) == ("<3 bytes>", b"123")
    with open(path, "rb") as file:
        assert open_source(file) == (str(path), file)
    memory, pipe = io.BytesIO(b"123"), Pipe(b"1234")
    assert open_source(memory) == ("<BytesIO>", memory)
    name, stream = open_source(pipe)
    assert (name, stream.read(), stream.seekable()) == ("<Pipe>", b"1234", True)
    part = f"subfile,,start,1,end,3,,:{path}"
    assert open_source(part) == (f"{path} from byte 1", f"subfile,,start,1,end,3,,:file:{path}")
    assert file_holding(part) == str(path) == file_holding(path)


def test_what_is_no_source_is_told_apart(tmp_path):
    gone = tmp_path / "gone.mp4"
    for video in (gone, f"subfile,,start,1,end,3,,:{gone}"):
        assert said(VideoNotFoundError, open_source, video) == f"{gone}: there is no such file; check the path"
    message = said(VideoDecodeError, open_source, tmp_path)
    assert message == f"{tmp_path}: is not a file; give the path of one video"
    assert said(ValueError, open_source, 5).startswith("a video of type int is not understood; give a path, bytes, ")


# ---------------------------------------------------------------------- how a checkpoint prepares its pictures


def settings_from(folder, **files) -> dict:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return picture_settings(str(folder), {})


def test_the_file_that_says_most_of_videos_is_read_first(tmp_path):
    mean, std = {"image_mean": [0.1, 0.2, 0.3]}, {"image_std": [0.4, 0.5, 0.6]}
    files = {
        "video_preprocessor_config": {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 50}} | mean,
        "preprocessor_config": {"size": 40, "resample": 3} | std,
        "processor_config": {"video_processor": {"size": [1]}, "image_processor": {"size": 24, "resample": 2}},
        "config": {"vision_config": {"image_size": 64}, "video_config": {"image_size": 72}},
    }
    expected = [{"size": 48} | mean, {"size": 40, "resample": "bicubic"} | std, {"size": [1]}]
    for number, wanted in enumerate(expected):
        assert settings_from(tmp_path / str(number), **files) == wanted
        files.pop(next(iter(files))) if number < 2 else files["processor_config"].pop("video_processor")
    assert settings_from(tmp_path / "3", **files) == {"size": 24, "resample": "bilinear"}
    files.pop("processor_config")
    assert settings_from(tmp_path / "4", **files) == {"size": 64}
    files["config"].pop("vision_config")
    assert settings_from(tmp_path / "5", **files) == {"size": 72} and settings_from(tmp_path / "6") == {}


def test_both_sides_named_and_nothing_cut_off_is_squeezed(tmp_path):
    both = {"height": 32, "width": 32}
    for number, (images, fit) in enumerate([
        ({"size": both}, "stretch"), ({"size": both, "do_center_crop": True}, None), ({"size": {"height": 32}}, None),
        ({"size": both, "do_center_crop": False, "resample": 0}, "stretch"), ({"size": 32}, None),
    ]):  # fmt: skip
        settings = settings_from(tmp_path / str(number), preprocessor_config=images)
        assert settings == {"size": 32} | ({"fit": fit} if fit else {})


def test_models_of_videos_have_their_own_way_and_count_of_frames(tmp_path):
    config = {"model_type": "videoprism", "vision_config": {"image_size": 288, "num_frames": 8}}
    images = {"image_mean": [0.5, 0.5, 0.5], "num_frames": 4}
    zero = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    expected = {"size": 288, "sampling": "segment_start", "fit": "stretch", "num_frames": 8} | zero
    assert settings_from(tmp_path / "a", config=config, preprocessor_config=images) == expected
    config["vision_config"].pop("num_frames")
    assert settings_from(tmp_path / "b", config=config, preprocessor_config=images) == expected | {"num_frames": 4}
    pe = {"model_type": "pe_video", "video_config": {"image_size": 336}}
    assert settings_from(tmp_path / "c", config=pe) == {
        "size": 336, "sampling": "uniform", "fit": "stretch", "resample": "bilinear", "num_frames": 16,
    }  # fmt: skip

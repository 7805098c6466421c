"""Every setting reaches what it is for, at its bounds; what a sampler and a processor write says all that they are."""

import json

import numpy as np
import pytest
import torch

from dmae.processing.frames_dmae import (
    FITS,
    SAMPLINGS,
    DecodedFrames,
    FrameSampler,
    _Converter,
    resize,
    resize_and_crop,
)
from dmae.processing.processing_dmae import DMAEProcessor, model_words
from dmae.processing.sources_dmae import DecodeLimits, VideoDecodeError
from dmae.processing.words_dmae import WordWeigher


def said(error, call, *given, **named) -> str:
    with pytest.raises(error) as raised:
        call(*given, **named)
    return str(raised.value)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------- the sampler


def test_a_strip_is_cut_to_eight_to_one_around_its_middle_before_it_is_resized():
    wide = picture(10, 101)
    assert torch.equal(resize_and_crop(wide, 8), resize_and_crop(wide[..., 10:90], 8))
    assert not torch.equal(resize_and_crop(wide, 8), resize_and_crop(wide[..., 11:91], 8))
    tall = picture(101, 10)
    assert torch.equal(resize_and_crop(tall, 8), resize_and_crop(tall[:, 10:90], 8))
    assert torch.equal(resize_and_crop(picture(7, 10), 7), picture(7, 10)[..., 1:8])
    assert torch.equal(resize_and_crop(picture(10, 7), 7), picture(10, 7)[:, 1:8])
    same = picture(6, 6)
    assert resize(same, 6, 6, "bicubic") is same
    stretched = FrameSampler(size=8, fit="stretch", resample="bilinear").fitted(wide)
    assert stretched.shape == (3, 8, 8) and torch.equal(stretched, resize(wide, 8, 8, "bilinear"))
    assert not torch.equal(stretched, resize(wide, 8, 8, "bicubic"))


def test_frames_are_chosen_and_joined_with_their_times():
    frames = DecodedFrames(torch.arange(4)[:, None], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    some = frames.chosen(np.array([3, 1]))
    assert some.frames.flatten().tolist() == [3, 1] and some.timestamps.tolist() == [3, 1]
    both = DecodedFrames.joined([some, frames.chosen(np.array([0]))])
    assert both.frames.flatten().tolist() == [3, 1, 0] and both.timestamps.tolist() == [3, 1, 0]


SETTINGS = {
    "num_frames": 3, "size": 24, "sampling": "uniform", "fps": 2.5, "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6], "dtype": "float64", "fit": "stretch", "resample": "bilinear", "key_frames": True,
    "max_pixels": 11, "max_seconds_to_scan": 12, "max_decoded_pixels": 13, "max_cpu_seconds": 14,
}  # fmt: skip


def test_settings_are_kept_written_and_changed_one_at_a_time():
    sampler = FrameSampler(**SETTINGS)
    assert {name: getattr(sampler, name) for name in SETTINGS} == SETTINGS and sampler.field_names() == list(SETTINGS)
    assert {name: sampler.to_dict()[name] for name in SETTINGS} == SETTINGS
    assert sampler.limits == DecodeLimits(
        max_pixels=11, max_seconds_to_scan=12, max_decoded_pixels=13, max_cpu_seconds=14
    )
    assert not {"fit", "resample", "key_frames"} & FrameSampler().to_dict().keys(), "as versions without them wrote it"
    assert FrameSampler(key_frames=1).to_dict()["key_frames"] is True
    other = sampler.replaced(size=[16, 16], fps=1.0)
    assert {name: getattr(other, name) for name in SETTINGS} == SETTINGS | {"size": 16, "fps": 1.0}
    assert sampler.size == 24
    assert said(TypeError, sampler.replaced, sise=3) == (
        "FrameSampler: unexpected argument 'sise'; did you mean 'size'?"
    )
    assert said(TypeError, FrameSampler, sise=3) == "FrameSampler: unexpected argument 'sise'; did you mean 'size'?"
    FrameSampler(deadline=3.0, processor_class="X", feature_extractor_type="Y")  # what earlier versions wrote


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "often"}, f"sampling='often' is unknown; choose one of {', '.join(SAMPLINGS)}"),
        ({"fit": "pad"}, f"fit='pad' is unknown; choose one of {', '.join(FITS)}"),
        ({"resample": "nearest"}, "resample='nearest' is unknown; choose one of bicubic, bilinear"),
        ({"num_frames": 0}, "num_frames=0 must be above 0"),
        ({"size": 0}, "size=0 must be above 0"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"fps": float("nan")}, "fps=nan must be above 0"),
        ({"fps": float("inf")}, "fps=inf must be above 0 and finite"),
        ({"num_frames": 2.5}, "num_frames=2.5 must be a whole number"),
        ({"num_frames": "12"}, "num_frames='12' must be a whole number"),
        ({"num_frames": True}, "num_frames=True must be a whole number"),
        ({"dtype": "int64"}, "dtype='int64' must name a floating-point torch dtype, e.g. 'float32' or 'bfloat16'"),
        ({"dtype": "tensor"}, "dtype='tensor' must name a floating-point torch dtype, e.g. 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    assert said(ValueError, FrameSampler, **settings) == message
    assert FrameSampler(num_frames=1, size=1, fps=0.5).num_frames == 1


def test_windows_of_one_file_give_what_each_gives_alone(clip):
    sampler = FrameSampler(num_frames=3, size=16, fps=2.0)
    windows = [(0.5, 1.6), (0.0, 0.4), (1.0, 3.5)]
    frames, places = sampler.decode_windows(str(clip), windows)
    assert len(frames.timestamps) == len(set(frames.timestamps.tolist())) and (frames.timestamps.diff() > 0).all()
    for window, place in zip(windows, places):
        alone, some = sampler.decode(str(clip), *window), frames.chosen(place)
        assert torch.equal(some.frames, alone.frames) and torch.equal(some.timestamps, alone.timestamps)
    message = said(VideoDecodeError, sampler.decode_windows, str(clip), [(0.0, 1.0), (50.0, 60.0)])
    assert message == f"{clip}: no frame in some window between 0 s and 60 s"
    grid = FrameSampler(num_frames=2, size=16, fps=4.0, sampling="uniform").decode_grid(str(clip), 0.5, 3.0)
    np.testing.assert_allclose(grid.timestamps, [0.5, 0.7, 1.0, 1.2, 1.5, 1.7, 2.0, 2.2, 2.5, 2.7, 3.0])


def test_a_call_gives_one_row_or_one_for_each_video_and_window(clip):
    sampler = FrameSampler(num_frames=4, size=16)
    one, several = sampler(str(clip), 1.0, 2.5), sampler([str(clip)] * 2, [None, 1.0], [None, 2.5])
    assert one.timestamps.tolist() == [1.0, 2.0, 0.0, 0.0] and one.video_mask.tolist() == [True, True, False, False]
    assert all(torch.equal(several[name][1], one[name]) for name in one) and several.timestamps[0].tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert several.video_mask[0].all() and not one.pixel_values[2:].any()
    assert said(ValueError, sampler, str(clip), 1.0, 1.0) == "start=1.0 must be before end=1.0 (seconds)"
    assert said(ValueError, sampler, [str(clip)], end=[1.0, 2.0]) == (
        "2 values of end for 1 videos; give one value, or one per video"
    )
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert said(VideoDecodeError, sampler, frames, 9.0) == (
        "a video of 3 frames has none in the chosen window; move the window"
    )
    held = sampler.decode(np.stack([frames[0] + n for n in range(9)]), 2.0, 5.0)
    assert held.frames[:, 0, 0, 0].tolist() == [2, 3, 4, 5] == held.timestamps.tolist()


def test_normalising_is_the_mean_taken_off_and_the_spread_divided_by():
    sampler = FrameSampler(
        num_frames=2, size=2, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 2.0), dtype="float64"
    )
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 2)
    expected = [(0.0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (1.0 - 0.3) / 2.0]
    np.testing.assert_allclose(sampler.normalize(frames)[0, :, 1, 0], expected, atol=1e-12)
    padded = sampler.pad(DecodedFrames(frames, torch.tensor([7.0])))
    assert padded.pixel_values.dtype == torch.float64 and padded.timestamps.tolist() == [7.0, 0.0]
    np.testing.assert_allclose(padded.pixel_values[0, :, 0, 0], expected, atol=1e-12)


class Turned:
    """A decoded frame that is to be shown turned."""

    def __init__(self, frame, rotation):
        self.frame, self.rotation = frame, rotation


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (-90, 3), (180, 2), (-180, 2), (89.9, 1), (270, 3)])
def test_frames_are_turned_as_they_are_to_be_shown(rotation, turns):
    pixels = picture(4, 6).permute(1, 2, 0).numpy()
    convert = _Converter(lambda image: image)
    convert.reformatter = type("Same", (), {"reformat": lambda self, frame, **_: frame.frame})()
    shown = type("Frame", (), {"to_ndarray": lambda self: pixels})()
    found = convert(Turned(shown, rotation))
    assert torch.equal(found, torch.from_numpy(np.rot90(pixels, turns).copy()).permute(2, 0, 1))


# ---------------------------------------------------------------------- the processor


@pytest.fixture(scope="module")
def plain(tokenizer):
    return DMAEProcessor(tokenizer, FrameSampler(num_frames=2, size=16), word_weighting="uniform", max_words=32)


def test_a_processor_has_its_settings_at_their_bounds(tokenizer, plain):
    assert plain.word_weigher is None and plain.max_words == 32
    sampler = FrameSampler(num_frames=5, size=16)
    other = DMAEProcessor(tokenizer, frame_sampler=sampler, word_weighting="uniform", max_words=3)
    assert other.feature_extractor is sampler and other.max_words == 3
    assert plain(text="a red square", max_length=3)["word_mask"] == [[False, True, False]]
    assert len(plain(text="a red square", max_length=32)["input_ids"][0]) == 32
    for length in (2, 33):
        message = f"={length}: must be 3 (BOS, a word, EOS) to 32"
        assert said(ValueError, plain, text="a", max_length=length) == "max_length" + message
        assert said(ValueError, DMAEProcessor, tokenizer, max_words=length) == "max_words" + message
    assert said(ValueError, DMAEProcessor, tokenizer, word_weighting="hard") == (
        "word_weighting='hard': choose from softmax, linear, uniform"
    )
    assert said(ValueError, plain) == "nothing to process: give text=…, videos=… or both"
    assert said(ValueError, plain, text=[]) == "text is an empty list: give at least one caption"
    assert said(ValueError, plain, text=["a", ""]) == (
        "text 1 has no words: ''; leave it out or give it at least one word"
    )
    assert plain.model_input_names == [
        "input_ids", "attention_mask", "word_mask", "word_weights", "pixel_values", "video_mask"
    ]  # fmt: skip


def test_what_is_written_says_all_of_a_processor_and_brings_it_back(tokenizer, plain, tmp_path):
    assert plain.to_dict() == {
        "processor_class": "DMAEProcessor", "max_words": 32, "word_weighting": "uniform",
        "feature_extractor": plain.feature_extractor.to_dict(),
        "auto_map": {"AutoProcessor": "processing_dmae.DMAEProcessor"},
    }  # fmt: skip
    written = plain.save_pretrained(tmp_path / "uniform")
    assert written and not list((tmp_path / "uniform").glob("word_*"))
    again = DMAEProcessor.from_pretrained(tmp_path / "uniform", dtype="auto")
    assert again.to_dict() == plain.to_dict() and again.feature_extractor.dtype == "float32"
    bf16 = DMAEProcessor.from_pretrained(tmp_path / "uniform", dtype="bfloat16", bos_token="</s>", revision=None)
    assert bf16.feature_extractor.dtype == "bfloat16" and bf16.tokenizer.bos_token == "</s>"
    weigher = WordWeigher(3.0, 1)
    DMAEProcessor(tokenizer, plain.feature_extractor, weigher, max_words=9).save_pretrained(tmp_path / "weighed")
    weighed = DMAEProcessor.from_pretrained(tmp_path / "weighed", irrelevant_words=4)
    assert weighed.word_weigher.to_dict() == {"content_weight": 3.0, "irrelevant_words": 4} and weighed.max_words == 9
    assert weighed.to_dict()["word_weigher"] == weighed.word_weigher.to_dict()
    assert said(TypeError, DMAEProcessor.from_pretrained, tmp_path / "weighed", max_word=4) == (
        "from_pretrained: unexpected argument 'max_word'; did you mean 'max_words'?"
    )
    (tmp_path / "weighed" / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert said(OSError, DMAEProcessor.from_pretrained, tmp_path / "weighed") == (
        f"{tmp_path / 'weighed'}: no DMAE processor here; for a plain CLIP checkpoint use DMAEProcessor.from_clip"
    )


def test_a_tokenizer_without_offsets_is_refused(tokenizer):
    class Slow(type(tokenizer)):
        is_fast = property(lambda self: False)

    slow = Slow(tokenizer_object=tokenizer.backend_tokenizer)
    assert said(ValueError, DMAEProcessor, slow, word_weighting="uniform") == (
        "Slow gives no character offsets: load the fast tokenizer"
    )


def test_it_is_pushed_once_everything_is_written(tokenizer, tmp_path, monkeypatch):
    pushed = []

    def push(self, name, **options):
        pushed.append((name, options, (tmp_path / "mine" / "word_tagger.bin").is_file()))

    monkeypatch.setattr(DMAEProcessor, "push_to_hub", push)
    processor = DMAEProcessor(tokenizer, FrameSampler(num_frames=2, size=16), max_words=9)
    processor.save_pretrained(tmp_path / "mine")
    assert pushed == []
    processor.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    processor.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="user/other")
    assert pushed == [("mine", {"private": True}, True), ("user/other", {}, True)]


def test_from_clip_makes_the_weigher_it_is_told_or_none(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 40}')
    made = DMAEProcessor.from_clip(tmp_path, content_weight=4.0, irrelevant_words=2, size=24, fps=3.0)
    assert made.word_weigher.to_dict() == {"content_weight": 4.0, "irrelevant_words": 2}
    assert (made.feature_extractor.size, made.feature_extractor.fps, made.max_words) == (24, 3.0, 32)
    assert made.word_weighting == "softmax"
    uniform = DMAEProcessor.from_clip(tmp_path, word_weighting="uniform", max_words=7)
    assert uniform.word_weigher is None and (uniform.feature_extractor.size, uniform.max_words) == (40, 7)
    given = DMAEProcessor.from_clip(tmp_path, word_weigher=made.word_weigher, word_weighting="linear")
    assert given.word_weigher is made.word_weigher and given.word_weighting == "linear"


def test_words_of_a_model_are_those_of_a_dmae_model_alone(tmp_path):
    path = tmp_path / "config.json"
    for config, words in (
        ({"model_type": "dmae", "content_weight": 3, "hidden": 1}, {"content_weight": 3}),
        ({"model_type": "clip", "content_weight": 3}, {}), ({}, {}),
    ):  # fmt: skip
        path.write_text(json.dumps(config))
        assert model_words(lambda name: path if name == "config.json" else None) == words
    assert model_words(lambda name: None) == {}


def test_one_paragraph_is_that_of_the_one_text_and_weights_end_with_the_words(tokenizer):
    weigher = WordWeigher(2.0, 1).fit(["a square moves", "a dog", "the sky"])
    processor = DMAEProcessor(tokenizer, FrameSampler(num_frames=2, size=16), weigher, max_words=12)
    alone, listed = (processor(text="a square moves", paragraphs=one) for one in ("a square moves", ["a square moves"]))
    assert alone["word_weights"] == listed["word_weights"]
    for name in ("word_weights", "word_mask", "input_ids", "attention_mask"):
        assert [len(row) for row in alone[name]] == [12]
    (weights,), (mask,) = alone["word_weights"], alone["word_mask"]
    assert {weight for weight, word in zip(weights, mask) if word} == {0.0, 2.0}
    assert [weight for weight, word in zip(weights, mask) if not word] == [0.0] * (12 - sum(mask))
    uniform = DMAEProcessor(tokenizer, FrameSampler(num_frames=2, size=16), word_weighting="uniform", max_words=12)
    assert uniform(text="a square moves")["word_weights"] == [[float(word) for word in mask]]
    frames = np.zeros((2, 2, 8, 8, 3), np.uint8)
    both = uniform(text=["a"], videos=frames, return_timestamps=True, size=24, return_tensors="pt")
    assert list(both) == [
        "input_ids", "attention_mask", "word_mask", "word_weights", "pixel_values", "video_mask", "timestamps"
    ]  # fmt: skip
    assert both["pixel_values"].shape == (2, 2, 3, 24, 24) and both["timestamps"].tolist() == [[0, 1]] * 2

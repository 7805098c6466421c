"""What an item says is read, and where of it the progress, the keys of its frames and the results come from."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmae.inference import embedding
from dmae.inference.embedding import (
    EncodedVideos,
    encode_frames,
    encode_texts,
    encode_videos,
    item_file,
    item_path,
    item_video,
    iter_videos,
)
from dmae.inference.presets import DEFAULT
from dmae.inference.stretches import as_samples, decode_stretch
from dmae.processing.frames_dmae import DecodedFrames

FRAMES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("item", "video", "file", "shown"),
    [
        ({"path": "a.mp4"}, "a.mp4", "a.mp4", "a.mp4"),
        ({"video": "b.mp4", "path": "a.mp4"}, "b.mp4", "b.mp4", "b.mp4"),
        ({"video": Path("b.mp4")}, Path("b.mp4"), "b.mp4", "b.mp4"),
        ({"video": {"path": "c.mp4", "bytes": b"x"}}, ..., "c.mp4", "c.mp4"),
        ({"video": {"path": None, "bytes": b"x"}}, ..., None, "<dict in memory>"),
        ({"video": {"bytes": b"x"}, "path": "a.mp4"}, ..., "a.mp4", "a.mp4"),
        ({"video": b"x", "path": "a.mp4"}, b"x", "a.mp4", "a.mp4"),
        ({"video": b"x"}, b"x", None, "<bytes in memory>"),
        ({"video": FRAMES}, ..., None, "<Tensor in memory>"),
    ],
)
def test_what_an_item_is_read_from_and_called(item, video, file, shown):
    assert item_video(item) is item["video"] if video is ... else item_video(item) == video
    assert (item_file(item), item_path(item)) == (file, shown)


@pytest.mark.parametrize("item", [{"video_id": "v"}, {"video_id": "v", "path": ""}, {"video_id": "v", "video": None}])
def test_an_item_without_a_video_is_named(item):
    for read in (item_video, item_file, item_path):
        with pytest.raises(ValueError, match="item 'v' has no video: give it a 'video' or a 'path'"):
            read(item)


def test_a_frame_is_known_by_its_file_as_it_was_and_its_time():
    clip = SimpleNamespace(timestamps=torch.tensor([0.5, 1.5]))
    assert embedding._keys(7, {"path": "a"}, clip) == [(("a",), 0.5), (("a",), 1.5)]
    assert embedding._keys(7, {"path": "a", "signature": [3, 4]}, clip)[0] == (("a", 3, 4), 0.5)
    assert embedding._keys(7, {"video": b"x"}, clip) == [(7, 0.5), (7, 1.5)]


@pytest.fixture
def told(monkeypatch):
    """(total, description) and every advance of the progress that was shown."""
    seen = SimpleNamespace(started=None, advanced=[])

    @contextmanager
    def progress(*words):
        seen.started = words
        yield lambda *words: seen.advanced.append(words)

    monkeypatch.setattr(embedding, "progress", progress)
    return seen


def clip_of(model, seed=0):
    frames = torch.randint(0, 256, (2, 3, *[model.config.frame_size] * 2), generator=torch.manual_seed(seed))
    return DecodedFrames(frames.to(torch.uint8), torch.tensor([0.5, 1.5], dtype=torch.float64))


@pytest.fixture
def worker(monkeypatch, model):
    """What workers would decode of batches of items, and how they were asked."""
    seen = []

    def in_worker(work, items, batch_size, workers):
        seen.append((batch_size, workers))
        for item in items:
            yield [(item, None, item["error"]) if "error" in item else (item, clip_of(model), None)]

    monkeypatch.setattr(embedding, "in_worker", in_worker)
    return seen


def test_progress_counts_videos_by_what_is_done_of_them(model, processor, told, worker):
    film = {"path": "film", "video_id": "film", "span": (0.0, 4.0)}
    items = [
        {"path": "a", "video_id": "a"},
        {**film, "end": 1.0, "last": False},
        {**film, "end": 3.0, "last": False},
        {**film, "end": 4.0, "last": True},
        {"path": "b", "video_id": "b", "error": "bad"},
    ]
    parts = list(iter_videos(model, processor, items, 3, 0, "looking", 9))
    assert told.started == (9, "looking") and worker == [(3, 0)]
    assert told.advanced == [(1, 1), (0.25, 1), (0.5, 1), (0.25, 1), (1, 1)]
    assert [len(part.items) for part in parts] == [1, 1, 1, 1, 0] and parts[-1].skipped == [
        {"video_id": "b", "path": "b", "error": "bad"}
    ]
    assert parts[-1].embeddings is None and parts[-1].timestamps.shape == (0, 0)
    list(iter_videos(model, processor, items))
    assert told.started == (5, "embedding")
    list(iter_videos(model, processor, iter(items), description="x"))
    assert told.started == (None, "x")


def test_workers_are_as_many_as_the_videos_are_worth(model, processor, told, worker, monkeypatch):
    asked = []
    monkeypatch.setattr(embedding, "default_workers", lambda count: asked.append(count) or 5)
    items = [{"path": "a", "video_id": "a"}] * 2
    for given, options in ((items, {}), (iter(items), {}), (iter(items), {"total": 40}), (items, {"num_workers": 0})):
        list(iter_videos(model, processor, given, **options))
    assert asked == [2, 1, 40] and worker == [(16, 5), (16, 5), (16, 5), (16, 0)]


def test_nothing_learns_while_it_embeds_and_all_comes_back_as_float32(make_model, processor, told, worker):
    model = make_model(interaction="wti").bfloat16()
    texts = model.train() and encode_texts(model, processor, ["a dog"])
    assert not model.training and {tensor.dtype for tensor in texts} <= {torch.float32, torch.bool}
    videos = model.train() and encode_videos(model, processor, [{"path": "a", "video_id": "a"}]).embeddings
    assert not model.training and {tensor.dtype for tensor in videos} <= {torch.float32, torch.bool}
    clip = clip_of(model)
    alone = model.train() and encode_frames(model, processor, *clip[:2])
    assert not model.training and torch.equal(alone.video_embeds, videos.video_embeds)
    assert not any(tensor.requires_grad for tensor in (*texts, *videos, *alone))


def test_what_is_left_out_and_why_is_in_the_result_or_the_error(model, processor, told, worker):
    bad = [{"path": name, "video_id": f"v{name}", "error": f"{name} is bad"} for name in ("x", "y")]
    with pytest.raises(ValueError, match="none of 2 videos could be embedded; the first: x is bad"):
        encode_videos(model, processor, bad)
    with pytest.raises(ValueError, match="none of 0 videos could be embedded; the first: there are no items"):
        encode_videos(model, processor, iter([]))
    found = encode_videos(model, processor, [*bad, {"path": "a", "video_id": "a"}], description="d")
    assert told.started == (3, "d") and found.video_ids == ["a"]
    assert [entry["error"] for entry in found.skipped] == ["x is bad", "y is bad"]
    nobody, everybody = found.split(lambda video_id: False)
    assert nobody.embeddings is None and nobody.items == [] and nobody.skipped == [] and len(nobody.timestamps) == 0
    assert everybody.video_ids == ["a"] and len(everybody.skipped) == 2
    whole = embedding.concatenate_encoded([EncodedVideos(None, [], torch.empty(0, 0), bad)])
    assert whole.embeddings is None and whole.items == [] and whole.timestamps.shape == (0, 0) and whole.skipped == bad


@pytest.mark.parametrize("texts", [[7], ["a", ""], [None], [" \n"]])
def test_a_text_that_is_none_is_named_by_its_place(model, processor, texts):
    with pytest.raises(ValueError, match=f"text {len(texts) - 1} is empty: "):
        encode_texts(model, processor, texts)


def test_words_in_a_script_the_model_does_not_know_are_warned_of(make_model, processor, caplog):
    model = make_model(interaction="mean")
    encode_texts(model, processor, ["собака"])
    assert not caplog.records
    model.config.name_or_path = DEFAULT
    encode_texts(model, processor, ["a dog", "собака"])
    assert len(caplog.records) == 1 and "'собака' is mostly in the cyrillic script" in caplog.text


def test_an_item_is_read_as_it_says(monkeypatch):
    sampler = SimpleNamespace(decode=lambda *words: ("decoded", *words), fps=2.0, num_frames=4, max_cpu_seconds=9.0)
    monkeypatch.setattr(embedding, "decode_stretch", lambda *words: ("stretch", *words))
    clips = embedding._Clips(sampler)
    assert clips({"path": "a", "start": 1.0, "end": 2.0}) == ("decoded", "a", 1.0, 2.0)
    assert clips({"video": b"x"}) == ("decoded", b"x", None, None)
    windows = {"path": "a", "windows": [(0, 1)], "start": 10.0, "end": 20.0}
    assert clips(windows) == ("stretch", sampler, windows, "a")
    with pytest.raises(ValueError, match=r"^known to be bad$"):
        clips({"path": "a", "error": "known to be bad"})
    assert clips.cpu_seconds == 9.0
    assert [clips.weight(item) for item in ({"path": "a"}, windows, {**windows, "end": 11.0})] == [1, 5, 1]


def test_frames_are_remembered_as_long_as_the_next_batch_may_have_them(model, processor):
    seen, tower = [], model.get_frame_tokens
    encoder = embedding._Encoder(model, processor.feature_extractor)
    encoder.model = SimpleNamespace(
        config=model.config, parameters=model.parameters, get_video_features=model.get_video_features,
        get_frame_tokens=lambda pixels: seen.append(len(pixels)) or tower(pixels),
    )  # fmt: skip
    clip = clip_of(model)
    for names in (["a", "b"], ["b"], ["a"], ["b", "a"], ["a"]):
        encoder([({"path": name, "video_id": name}, clip, None) for name in names])
    assert seen == [4, 2, 2] and {source for source, _ in encoder.known} == {("a",)}
    most = processor.feature_extractor.num_frames
    frames = torch.cat([clip.frames] * most)
    long = DecodedFrames(frames, torch.arange(len(frames)).double())
    seen.clear()
    encoder._tokens([({"path": "c", "video_id": "c"}, long)])
    assert seen == [most] * (len(frames) // most), "no more at once than a clip has"


@pytest.mark.parametrize(
    ("item", "share"),
    [
        ({"end": 1.0, "span": (0.0, 4.0), "last": False}, 0.25),
        ({"end": 1.0, "span": (0.0, 4.0)}, 0.0),  # whole where nothing else is said
        ({"end": 9.0, "span": (0.0, 4.0), "last": False}, 1.0),
        ({"end": 1.0, "span": (2.0, 4.0), "last": False}, 0.0),
        ({"end": 0.25, "span": (0.0, 0.5), "last": False}, 0.5),
    ],
)
def test_a_window_s_end_tells_how_much_of_its_video_is_done(item, share):
    assert embedding._share_done(item) == share


def test_a_tower_of_windows_sees_each_clip_whole_and_padded(processor):
    """One vector a clip, at the middle of its frames; what it spans is said unless it is known."""
    seen = []

    def features(pixels, mask):
        seen.append((pixels[:, :, 0, 0, 0].tolist(), mask.tolist()))
        return SimpleNamespace(to=lambda *words: ("on", *words))

    model = SimpleNamespace(
        config=SimpleNamespace(sees_windows=True), parameters=lambda: iter([torch.zeros(1)]),
        get_video_features=features,
    )  # fmt: skip
    sampler = SimpleNamespace(num_frames=3, normalize=lambda frames: frames + 0.5)

    def clip(*values, times):
        frames = torch.tensor(values).float()[:, None, None, None].expand(-1, 3, 2, 2)
        return DecodedFrames(frames, torch.tensor(times, dtype=torch.float64))

    known, new = {"video_id": "a", "path": "a", "span": (0.0, 9.0)}, {"video_id": "b", "path": "b"}
    bad = {"video_id": "c", "path": "c"}
    samples = [
        (known, clip(1, 2, times=[0.5, 1.5]), None),
        (bad, None, "bad"),
        (new, clip(3, 4, 5, times=[2, 3, 7]), None),
    ]
    found = embedding._Encoder(model, sampler)(samples)
    assert seen == [([[1.5, 2.5, 0.0], [3.5, 4.5, 5.5]], [[True, True, False], [True, True, True]])]
    assert found.embeddings == ("on", "cpu", torch.float32) and found.timestamps.tolist() == [[1.0], [4.5]]
    assert found.items == [known, {**new, "span": (2.0, 7.0)}]
    assert found.skipped == [{"video_id": "c", "path": "c", "error": "bad"}]


def test_windows_decoded_together_are_what_each_alone_would_be(processor, clips):
    sampler, path, windows = processor.feature_extractor, str(clips / "clip03.mp4"), [(0.0, 1.0), (0.5, 1.5)]
    item = {"path": path, "windows": windows}
    samples = as_samples({**item, "last": True}, decode_stretch(sampler, item, path), None)
    assert [sample[0] for sample in samples] == [
        {"path": path, "start": 0.0, "end": 1.0, "last": False}, {"path": path, "start": 0.5, "end": 1.5, "last": True},
    ]  # fmt: skip
    for (start, end), (_, clip, error) in zip(windows, samples, strict=True):
        alone = sampler.decode(path, start, end)
        assert error is None and torch.equal(clip.frames, alone.frames)
        assert torch.equal(clip.timestamps, alone.timestamps)


def test_windows_of_a_sound_file_are_decoded_together(processor, clips):
    """One by one, as those of a damaged file are, a frame would be decoded as often as it lies in one."""
    sampler, path, windows, asked = processor.feature_extractor, str(clips / "clip00.mp4"), [(0.0, 1.0), (0.5, 2.0)], []

    def decode_windows(*given):
        asked.append(given)
        return sampler.decode_windows(*given)

    found = decode_stretch(SimpleNamespace(decode_windows=decode_windows), {"windows": windows}, path)
    assert asked == [(path, windows)] and [window.error for window in found.windows] == [None, None]
    for window, (start, end) in zip(found.windows, windows, strict=True):
        assert window.fields == {"start": start, "end": end}
        assert torch.equal(found.decoded.chosen(window.frames).frames, sampler.decode(path, start, end).frames)

"""Every text and video is embedded or named; batches and workers change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmae import VideoIndex
from dmae.inference.embedding import encode_texts, encode_videos, item_path

TEXTS = ["a red square", "two dogs run on the grass", "blue"]


def test_batching_changes_no_text(model, processor):
    together = encode_texts(model, processor, TEXTS)
    one_by_one = encode_texts(model, processor, TEXTS, batch_size=1)
    for a, b in zip(together, one_by_one):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_batches_change_no_video(model, processor, encoded, workers):
    again = encode_videos(model, processor, encoded.items, batch_size=5, num_workers=workers)
    assert again.video_ids == encoded.video_ids
    for a, b in zip(again.embeddings, encoded.embeddings):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert torch.equal(again.timestamps, encoded.timestamps)


def test_clips_of_one_frame_are_embedded_as_any(model, processor, clips):
    item = {"video_id": "a", "path": str(clips / "clip00.mp4"), "start": 0.0, "end": 0.25}
    decoded = processor.feature_extractor.decode(item["path"], 0.0, 0.25)
    found = encode_videos(model, processor, [item, {**item, "video_id": "b"}], num_workers=0)
    assert len(decoded.frames) == 1 and found.embeddings.video_mask.sum(1).tolist() == [1, 1]
    assert found.timestamps[:, 0].tolist() == decoded.timestamps.tolist() * 2
    pixels = processor.feature_extractor.normalize(decoded.frames)[None]
    with torch.no_grad():
        expected = model.get_video_features(pixels, torch.ones(1, 1, dtype=torch.bool))
    for row in (0, 1):
        torch.testing.assert_close(found.embeddings.video_embeds[row, 0], expected.video_embeds[0, 0])


def test_a_damaged_file_is_named_and_costs_nothing_else(model, processor, encoded, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video")
    items = [{"video_id": "bad", "video": str(bad)}, *encoded.items, {"video_id": "gone", "path": "nowhere.mp4"}]
    result = encode_videos(model, processor, items, batch_size=4, num_workers=0)
    assert result.video_ids == encoded.video_ids
    torch.testing.assert_close(result.embeddings[0], encoded.embeddings[0], atol=1e-5, rtol=0)
    assert [entry["video_id"] for entry in result.skipped] == ["bad", "gone"]
    assert all(entry["error"] for entry in result.skipped)


def test_nothing_decodable_is_an_error_that_says_why(model, processor, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video")
    with pytest.raises(ValueError, match=r"none of 1 videos.*bad\.mp4"):
        encode_videos(model, processor, [{"video_id": "bad", "path": str(bad)}])


def test_a_window_is_embedded_from_its_own_frames(model, processor, encoded):
    item = encoded.items[0]
    late = encode_videos(model, processor, [{**item, "start": 1.0, "end": 2.0}], num_workers=0)
    assert late.timestamps[late.embeddings.video_mask].min() >= 1.0


@pytest.mark.parametrize("texts, message", [([], "no texts"), (["a", "  "], "text 1 is empty")])
def test_empty_texts_are_refused(model, processor, texts, message):
    with pytest.raises(ValueError, match=message):
        encode_texts(model, processor, texts)


def test_what_a_processor_takes_is_embedded_and_indexed(model, processor, encoded):
    """Rows of `datasets.Video(decode=False)`, bytes and frames in memory, beside the file they are of."""
    file = Path(item_path(encoded.items[0]))
    frames = [Image.fromarray(np.full((40, 40, 3), shade, np.uint8)) for shade in (0, 200)]
    items = [
        {"video_id": "row", "video": {"path": str(file), "bytes": None}},
        {"video_id": "bytes in a row", "video": {"path": file.name, "bytes": file.read_bytes()}},
        {"video_id": "bytes", "video": file.read_bytes()},
        {"video_id": "pictures", "video": frames},
        {"video_id": "with their rate", "video": {"frames": np.stack([*frames]), "fps": 0.5}},
    ]
    result = encode_videos(model, processor, items, num_workers=0)
    assert result.skipped == [] and result.video_ids == [item["video_id"] for item in items]
    for row in range(3):
        torch.testing.assert_close(result.embeddings.video_embeds[row], encoded.embeddings.video_embeds[0])
    assert result.timestamps[3, :2].tolist() == [0.0, 1 / processor.feature_extractor.fps] and result.timestamps[
        4, :2
    ].tolist() == [0.0, 2.0]
    index = VideoIndex.build(encoded, model, processor)
    assert index.add([{"video": {"path": str(file), "bytes": file.read_bytes()}, "video_id": "again"}, items[3]]) == []
    assert index.add([{"video": {"path": str(file), "bytes": None}}]) == []  # takes the place of the file's own row
    assert sorted(index.video_ids) == sorted([*encoded.video_ids, "again", "pictures"])
    with pytest.raises(ValueError, match="give it a 'video_id'"):
        index.add([{"video": frames}])


@pytest.mark.parametrize("options", [{}, {"temporal_input": "patch", "patches_per_frame": 3}])
def test_every_frame_of_overlapping_windows_is_embedded_once(make_model, processor, make_clip, tmp_path, options):
    model = make_model(interaction="wti", **options)
    path = make_clip(tmp_path / "film.mp4", seed=3, seconds=8)
    windows = [(start, start + 2.0) for start in range(7)]
    items = [{"video_id": f"w{start}", "path": str(path), "start": start, "end": end} for start, end in windows]
    seen = []
    tower = model.get_frame_tokens
    model.get_frame_tokens = lambda pixels: seen.append(len(pixels)) or tower(pixels)
    shared = encode_videos(model, processor, items, batch_size=3, num_workers=0)
    times = shared.timestamps[shared.embeddings.video_mask]
    assert sum(seen) == len(set(times.tolist())) < len(times)
    sampler = processor.feature_extractor
    for row, (start, end) in enumerate(windows):
        clip = sampler(str(path), start, end)
        alone = model.get_video_features(clip["pixel_values"][None], clip["video_mask"][None])
        for name in ("video_embeds", "attended_embeds", "frame_weights"):
            torch.testing.assert_close(shared.embeddings[name][row], alone[name][0], rtol=0, atol=1e-5)


def test_frames_of_another_file_or_of_none_are_never_shared(model, processor, clips):
    items = [{"video_id": path.stem, "path": str(path)} for path in sorted(clips.iterdir())[:3]]
    frames = [processor.feature_extractor.decode(item["path"]).frames.numpy() for item in items]
    arrays = [{"video_id": str(number), "video": array} for number, array in enumerate(frames)]
    whole = encode_videos(model, processor, [*items, *arrays], num_workers=0).embeddings.video_embeds
    torch.testing.assert_close(whole[:3], whole[3:], rtol=0, atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-4

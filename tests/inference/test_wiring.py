"""What embedding and loading hand on: paragraphs to their own texts, rows to their own parts, settings into hashes."""

import copy
import shutil

import pytest
import torch

from dmae.inference.embedding import EncodedVideos, concatenate_encoded, default_workers, encode_texts
from dmae.inference.identity import check_model, describe_model, processor_hash
from dmae.inference.loading import load_model_and_processor
from dmae.inference.stretches import as_samples, decode_stretch
from dmae.processing.frames_dmae import DecodedFrames, FrameSampler
from dmae.processing.processing_dmae import DMAEProcessor
from dmae.processing.words_dmae import WordWeigher

TEXTS = ["a red square moves left", "a green circle moves up", "the sky is blue", "two dogs run on the grass"]


def test_each_text_is_weighed_by_its_own_paragraph_in_batches_of_any_size(make_model, processor):
    model = make_model(interaction="wti", word_weighting="linear")
    weigher = WordWeigher(irrelevant_words=1, tagger=processor.word_weigher.tagger).fit(TEXTS)
    processor = copy.copy(processor)
    processor.word_weigher, processor.word_weighting = weigher, "linear"
    paragraphs = list(TEXTS)
    together = encode_texts(model, processor, TEXTS, paragraphs=paragraphs).word_weights
    alone = encode_texts(model, processor, TEXTS, batch_size=1, paragraphs=paragraphs).word_weights
    turned = encode_texts(model, processor, TEXTS, paragraphs=paragraphs[1:] + paragraphs[:1]).word_weights
    torch.testing.assert_close(alone, together)
    assert not torch.allclose(turned, together), "else nothing is shown"


def test_parts_of_encoded_videos_keep_their_rows(encoded):
    skipped = [{"video_id": name, "path": name, "error": "x"} for name in ("clip01", "gone")]
    times = encoded.timestamps + torch.arange(12)[:, None]  # all clips of the fixture have the same ones
    whole = EncodedVideos(encoded.embeddings, encoded.items, times, skipped)
    chosen, others = whole.split({"clip01", "clip07"}.__contains__)
    assert chosen.video_ids == ["clip01", "clip07"] and len(others.video_ids) == 10
    assert torch.equal(chosen.embeddings.video_embeds, encoded.embeddings.video_embeds[[1, 7]])
    assert torch.equal(chosen.timestamps, times[[1, 7]])
    assert [entry["video_id"] for entry in chosen.skipped] == ["clip01"]
    assert [entry["video_id"] for entry in others.skipped] == ["gone"]
    again = concatenate_encoded([chosen, EncodedVideos(None, [], torch.empty(0, 0), skipped), others])
    assert again.video_ids == chosen.video_ids + others.video_ids
    assert [entry["video_id"] for entry in again.skipped] == ["clip01", "clip01", "gone", "gone"]
    assert torch.equal(again.timestamps[2], times[0])


def test_few_videos_start_no_worker_and_many_leave_a_core(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [default_workers(count) for count in (1, 7, 8, 1000)] == [0, 0, 5, 5]
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert default_workers(1000) == 8
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert default_workers(1000) == 1


def test_every_setting_of_the_frames_is_in_their_hash(processor):
    before = processor_hash(processor)
    for name, value in {"num_frames": 3, "size": 24, "fps": 0.5, "sampling": "segment_center"}.items():
        changed = copy.deepcopy(processor)
        setattr(changed.feature_extractor, name, value)
        assert processor_hash(changed) != before, name
    assert processor_hash(copy.deepcopy(processor)) == before


def test_saving_and_loading_leave_the_hash_of_the_frames(tokenizer, tmp_path):
    made = DMAEProcessor(tokenizer, FrameSampler(num_frames=3, size=32, fps=2), max_words=16)
    before = processor_hash(made)
    made.save_pretrained(tmp_path)
    loaded = DMAEProcessor.from_pretrained(tmp_path)
    assert processor_hash(made) == processor_hash(loaded) == before
    loaded.feature_extractor.auto_map = {"AutoProcessor": "user/model--processing_dmae.DMAEProcessor"}  # of the Hub
    assert processor_hash(loaded) == before


def test_an_index_is_refused_to_another_model_and_to_other_frames(model, make_model, processor):
    manifest = {"model": describe_model(model, processor)}
    check_model(manifest, model, processor, "index")
    other = copy.deepcopy(processor)
    other.feature_extractor.num_frames -= 1
    with pytest.raises(ValueError, match=rf"processor settings {processor_hash(processor)}.*{processor_hash(other)}"):
        check_model(manifest, model, other, "index")
    with pytest.raises(ValueError, match=r"index was built with .*\(model "):
        check_model(manifest, make_model(seed=3, interaction="wti"), processor, "index")


def test_a_loaded_model_says_where_it_is_from_and_does_not_train(model, model_folder):
    loaded, processor = load_model_and_processor(model_folder, device="cpu", dtype="bfloat16")
    described = describe_model(loaded, processor)
    assert described["name"] == str(model_folder.resolve()) and described["revision"] is None and not loaded.training
    assert next(loaded.parameters()).dtype is torch.bfloat16
    assert described["weights"] == describe_model(model, processor)["weights"]


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_damaged_weights_are_named(model_folder, tmp_path, kept):
    folder = shutil.copytree(model_folder, tmp_path / "cut off")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:kept])
    with pytest.raises(ValueError, match=r"cut off: its weights are damaged \(.+\); fetch or save the model again"):
        load_model_and_processor(folder, device="cpu")


class Damaged:
    """A sampler of a file whose windows are read alone: from second 2 on without a word, from 4 with one."""

    def decode_windows(self, video, windows):
        raise ValueError("damaged")

    def decode(self, video, start, end):
        if start >= 2:
            raise OSError("no frames" if start >= 4 else "")
        return DecodedFrames(torch.full((2, 3, 1, 1), start, dtype=torch.uint8), torch.tensor([start, end]).double())


def test_what_can_be_read_of_a_damaged_stretch_is_and_the_rest_says_why():
    item = {"video_id": "a", "windows": [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0), (1.0, 2.0)]}
    samples = as_samples(item, decode_stretch(Damaged(), item, "a.mp4"), None)
    assert [error for _, _, error in samples] == [None, "OSError", "no frames", None]
    assert [clip and clip.timestamps.tolist() for _, clip, _ in samples] == [[0, 1], None, None, [1, 2]]
    assert [(mine["start"], mine["last"]) for mine, _, _ in samples] == [(0, False), (2, False), (4, False), (1, True)]

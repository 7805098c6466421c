"""What a batch is made of: whose caption, whose paragraph, whose frames, whose id."""

import copy

import pytest
import torch

from dmae import DMAEProcessor, FrameSampler
from dmae.data.clips import stable_id
from dmae.data.registry import load_dataset
from dmae.processing.words_dmae import WordWeigher
from dmae.training.examples import TrainingExamples, to_model_inputs
from dmae.training.sampler import Pair

PAIRS = [Pair(3, 1, 7), Pair(0, 0, 1), Pair(5, 2, 3)]


@pytest.fixture(scope="module")
def rows(miniature):
    """Each clip with captions that share a word with each other, so that the paragraph decides their weights."""
    rows = load_dataset("videofolder", videos=miniature("videofolder").videos).dataset.to_list()
    for number, row in enumerate(rows):
        row["captions"] = ["a dog runs", f"the dog number{number} sleeps", "a dog eats while the dog waits for a dog"]
    return rows


@pytest.fixture(scope="module")
def weighing(tokenizer, rows):
    sampler = FrameSampler(num_frames=4, size=16, sampling="uniform")
    weigher = WordWeigher().fit([" ".join(row["captions"]) for row in rows])
    return DMAEProcessor(tokenizer, sampler, weigher, max_words=24)


def test_a_batch_holds_what_its_pairs_name(rows, weighing):
    examples = TrainingExamples(rows, weighing)
    batch = examples.collate(examples.__getitems__(PAIRS))
    captions = [rows[pair.row]["captions"][pair.caption] for pair in PAIRS]
    expected = weighing(text=captions, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert batch["names"] == [rows[pair.row]["video_id"] for pair in PAIRS]
    assert batch["video_ids"].tolist() == [stable_id(name) for name in batch["names"]]
    assert batch["caption_ids"].tolist() == [stable_id(caption) for caption in captions]
    for number, pair in enumerate(PAIRS):
        frames = weighing.feature_extractor.decode(rows[pair.row]["video"]).frames
        assert torch.equal(batch["frames"][number, : len(frames)], frames)
    inputs = to_model_inputs(batch, weighing.feature_extractor)
    assert not inputs["pixel_values"][~inputs["video_mask"]].any()


def test_words_are_weighed_in_the_paragraph_of_their_own_video(rows, weighing):
    """Not in the caption alone, nor in another video's paragraph."""
    rows = copy.deepcopy(rows)
    rows[0]["captions"] += ["sleeps"] * 4  # only this video's paragraph is full of sleep
    examples = TrainingExamples(rows, weighing)
    batch = examples.collate(examples.__getitems__(PAIRS))
    for number, pair in enumerate(PAIRS):
        captions = rows[pair.row]["captions"]
        own = weighing(text=[captions[pair.caption]], paragraphs=[" ".join(captions)], return_tensors="pt")
        length = own["word_weights"].shape[1]
        assert torch.equal(batch["word_weights"][number, :length], own["word_weights"][0])
    alone = weighing(text=[rows[3]["captions"][1]], return_tensors="pt")["word_weights"]
    assert not torch.equal(batch["word_weights"][0, : alone.shape[1]], alone[0]), "else nothing is shown"


def test_a_stand_in_brings_its_own_caption_and_id(rows, weighing, tmp_path):
    rows = copy.deepcopy(rows)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows[3]["video"] = str(broken)
    examples = TrainingExamples(rows, weighing)
    batch = examples.collate(examples.__getitems__(PAIRS))
    stand_in = next(row for row in rows if row["video_id"] == batch["names"][0])
    assert stand_in["video_id"] not in {rows[pair.row]["video_id"] for pair in PAIRS}, "nobody is in the batch twice"
    assert [item["video_id"] for item in batch["skipped"]] == [rows[3]["video_id"]]
    expected = weighing(text=[stand_in["captions"][1]], return_tensors="pt")["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(expected)], expected)
    assert batch["caption_ids"][0] == stable_id(stand_in["captions"][1])
    again = examples.collate(examples.__getitems__(PAIRS))
    assert again["names"] == batch["names"], "a rerun sees the same batch"

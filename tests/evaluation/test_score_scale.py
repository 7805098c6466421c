"""Fixed temperatures mean the same whatever the length of attended frames: DSL and QB-Norm rank alike."""

import numpy as np
import pytest
import torch

from dmae.evaluation.scoring import EncodedSplit, score_split
from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import uniform_weights, unit


def split_of(seed: int, scale: str, count: int = 40) -> EncodedSplit:
    torch.manual_seed(seed)
    words, frames = torch.ones(count, 3).bool(), torch.ones(count, 4).bool()
    text = TextEmbeddings(unit(torch.randn(count, 8)), unit(torch.randn(count, 3, 8)), uniform_weights(words), words)
    embeds = unit(torch.randn(count, 4, 8))
    video = VideoEmbeddings(embeds, attended_frames(embeds, frames, 2, scale), uniform_weights(frames), frames)
    return EncodedSplit(text, video, np.arange(count), [str(i) for i in range(count)], [])


@pytest.mark.parametrize("post", ["dsl", "qbnorm"])
def test_halved_frames_rank_as_printed_ones_do(post):
    ranks = {}
    for scale in ("printed", "halved"):
        config = DMAEConfig.tiny(visual_scale=scale)
        found = score_split(split_of(0, scale), config, post=post, bank=split_of(1, scale))
        ranks[scale] = np.concatenate([found.text_ranks, found.video_ranks])
    np.testing.assert_array_equal(ranks["printed"], ranks["halved"])


@pytest.mark.parametrize(
    "words, expected",
    [
        ({}, 2.0),
        ({"visual_top_k": 3}, 3.0),
        ({"visual_scale": "halved"}, 1.0),
        ({"visual_scale": "unit"}, 1.0),
        ({"visual_attention": False}, 1.0),
        ({"interaction": "mean"}, 1.0),
    ],
)
def test_the_scale_is_the_greatest_length_of_a_scored_frame(words, expected):
    assert DMAEConfig.tiny(**words).score_scale == expected

"""A split whose embeddings are given."""

import numpy as np
import pytest
import torch

from dmae.evaluation.scoring import EncodedSplit
from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import uniform_weights


@pytest.fixture(scope="session")
def split_of():
    """split_of(seed, counts): embeddings of few bits (sums are exact in any order), `counts` captions a video."""

    def make(seed: int, counts, names=None, skipped=()) -> EncodedSplit:
        random = torch.Generator().manual_seed(seed)
        coarse = lambda *shape: torch.randint(-4, 5, shape, generator=random) / 8  # noqa: E731
        texts, videos = sum(counts), len(counts)
        words, frames = torch.ones(texts, 4).bool(), torch.ones(videos, 4).bool()
        text = TextEmbeddings(coarse(texts, 8), coarse(texts, 4, 8), uniform_weights(words), words)
        embeds = coarse(videos, 4, 8)
        video = VideoEmbeddings(embeds, attended_frames(embeds, frames, 2), uniform_weights(frames), frames)
        names = names or [f"v{number}" for number in range(videos)]
        return EncodedSplit(text, video, np.repeat(np.arange(videos), counts), names, list(skipped))

    return make

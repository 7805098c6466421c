"""A tiny batch that every test of the whole model shares."""

import pytest
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model(seed=0, interaction="wti", …) -> a tiny random model."""

    def make(seed: int = 0, **overrides):
        torch.manual_seed(seed)
        return DMAEForTextVideoRetrieval(DMAEConfig.tiny(**overrides)).eval()

    return make


@pytest.fixture
def tiny_batch():
    """3 texts of 9, 5 and 1 words in 16 positions; 3 videos of 4, 2 and 1 frames. BOS 0, EOS and padding 1."""
    torch.manual_seed(0)
    input_ids = torch.ones(3, 16, dtype=torch.long)
    word_mask, attention_mask = torch.zeros(2, 3, 16).bool()
    for row, words in enumerate([9, 5, 1]):
        input_ids[row, 0] = 0
        input_ids[row, 1 : words + 1] = torch.randint(2, 100, (words,))
        word_mask[row, 1 : words + 1] = True
        attention_mask[row, : words + 2] = True
    video_mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask.long(),
        "word_mask": word_mask,
        "word_weights": torch.randint(0, 3, (3, 16)).float(),
        "pixel_values": torch.randn(3, 4, 3, 32, 32),
        "video_mask": video_mask,
    }

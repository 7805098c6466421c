"""What small wrong edits left unnoticed: signs, positions, which pairs are remembered, what a share is a share of."""

import torch

from dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.objective_dmae import contrastive_terms
from dmae.modeling_dmae.partial_order_dmae import weighted_direction
from dmae.modeling_dmae.temporal_dmae import TemporalEncoder


def test_a_weighted_direction_keeps_its_signs():
    tokens = torch.tensor([[[1.0, -2.0], [3.0, -4.0]], [[-1.0, 0.5], [2.0, 2.0]]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    for row in range(2):
        total = sum(weights[row, n] * tokens[row, n] for n in range(2))
        torch.testing.assert_close(weighted_direction(tokens, weights)[row], total / total.norm())


def test_frames_are_told_apart_by_their_positions():
    """Frames in another order are another video; each with its own position, only the rows change place."""
    torch.manual_seed(0)
    encoder = TemporalEncoder(DMAEConfig.tiny(temporal_init="random"))
    torch.nn.init.normal_(encoder.positions.weight)
    tokens, mask = torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)
    places, order = torch.arange(4)[None], torch.tensor([2, 0, 3, 1])
    as_they_are = encoder(tokens, mask, places)
    torch.testing.assert_close(encoder(tokens[:, order], mask, places[:, order]), as_they_are[:, order])
    assert not torch.allclose(encoder(tokens[:, order], mask, places), as_they_are[:, order], atol=1e-3)


def pairs(count: int, seed: int) -> tuple[TextEmbeddings, VideoEmbeddings]:
    generator = torch.Generator().manual_seed(seed)
    words, frames = torch.randn(count, 3, 8, generator=generator), torch.randn(count, 2, 8, generator=generator)
    text = TextEmbeddings(words[:, 0], words, torch.full((count, 3), 1 / 3), torch.ones(count, 3, dtype=torch.bool))
    return text, VideoEmbeddings(frames, frames, torch.full((count, 2), 0.5), torch.ones(count, 2, dtype=torch.bool))


def test_the_share_of_hard_negatives_is_of_all_negatives():
    text, video = pairs(4, 1)
    terms = contrastive_terms(text, video, torch.tensor(1.0), DMAEConfig.tiny(), torch.arange(4))
    scores, hard = terms["scores"], 0
    for i in range(4):
        for j in range(4):
            hard += i != j and bool(scores[i, j] > min(scores[i, i], scores[j, j]))
    assert 0 < hard < 12 and abs(float(terms["hard_negative_share"]) - hard / 12) < 1e-6

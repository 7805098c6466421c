"""The length of attended frames is one word of the configuration; at its default nothing changes."""

import pytest
import torch

from dmae.modeling_dmae.attention_dmae import attended_frames, visual_attention
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.modeling_dmae.vectors_dmae import unit


@pytest.fixture
def frames():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    return unit(torch.randn(3, 4, 8, dtype=torch.float64)), mask


def test_forms_are_the_same_directions_at_their_lengths(frames):
    embeds, mask = frames
    printed = visual_attention(embeds, mask).mT @ torch.where(mask[..., None], embeds, 0.0)
    assert torch.equal(attended_frames(embeds, mask), printed)
    assert torch.equal(attended_frames(embeds, mask, scale="halved"), printed / 2)
    one = attended_frames(embeds, mask, scale="unit")
    torch.testing.assert_close(one.norm(dim=-1)[mask], torch.ones(int(mask.sum()), dtype=torch.float64))
    torch.testing.assert_close(one * printed.norm(dim=-1, keepdim=True), printed)


def test_the_model_scores_by_what_its_configuration_says(tiny_batch):
    scores = {}
    for form in ("printed", "halved", "unit"):
        torch.manual_seed(0)
        model = DMAEForTextVideoRetrieval(DMAEConfig.tiny(visual_scale=form)).eval()
        with torch.no_grad():
            scores[form] = model(**tiny_batch).logits_per_text
    torch.testing.assert_close(scores["printed"], 2 * scores["halved"])
    assert not torch.allclose(scores["unit"], scores["halved"], atol=1e-3)


def test_an_unknown_form_is_refused_by_name(frames):
    with pytest.raises(ValueError, match=r"visual_scale='half'.*did you mean 'halved'"):
        DMAEConfig.tiny(visual_scale="half")
    with pytest.raises(ValueError, match="scale='half' is not a choice"):
        attended_frames(*frames, scale="half")

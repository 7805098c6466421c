"""TPM-CL: which tokens are masked, what trains the predictors, and which pairs have a triplet."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.modeling_dmae.partial_order_dmae import (
    TokenWeightPredictor,
    mask_multiplier,
    select_tokens,
    token_weights,
    weighted_direction,
)


@pytest.mark.parametrize("gradient", ["straight_through", "none"])
def test_visual_predictor_learns_only_through_the_straight_mask(gradient, tiny_batch, tiny_model):
    model = tiny_model(temporal_init="random", mask_gradient=gradient)
    model(**tiny_batch).partial_order_loss.backward()
    gradients = [p.grad for p in model.visual_predictor.parameters()]
    if gradient == "none":
        assert gradients == []  # they are buffers
    else:
        assert all(g is not None and g.abs().max() > 0 for g in gradients)


def test_mask_gradient_none_survives_loading_and_trains_under_ddp(tmp_path, tiny_batch, tiny_model):
    """Every parameter that asks for a gradient gets one, after `from_pretrained` too: DDP needs it at step two."""
    model = tiny_model(mask_gradient="none", temporal_init="random")
    model.save_pretrained(tmp_path / "model")
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "model").requires_grad_(True)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(again)
        for _ in range(2):
            wrapped(**tiny_batch).loss.backward()
    finally:
        dist.destroy_process_group()
    assert not [name for name, p in again.named_parameters() if p.grad is None]
    trained = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "model", mask_gradient="straight_through")
    assert all(p.requires_grad for p in trained.visual_predictor.parameters())
    assert len(list(trained.visual_predictor.parameters())) == len(list(model.visual_predictor.buffers())) > 0


def test_a_pair_with_one_token_has_no_triplet(tiny_batch, tiny_model):
    model = tiny_model()
    text, video, tokens = model.encode_pairs(**tiny_batch)
    losses, valid = model.partial_order_terms(text, video, tokens)
    assert losses.shape == valid.shape == (3, 3)
    assert valid.tolist() == [[True, True, False], [True, True, False], [True, True, False]]
    wider, _ = model.partial_order_terms(text, video, tokens, margin=1.6)
    torch.testing.assert_close(wider[valid], (losses + 1.0)[valid])  # no hinge is closed at δ = 0.6 here


def test_select_tokens_by_hand():
    weights = torch.tensor([[0.5, 0.05, 0.3, 0.15, 0.0], [0.7, 0.2, 0.1, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, True, True, False, False], [True] * 4 + [False]])
    keep = select_tokens(weights, mask, 0.6)
    # cumulative .5 | .8: one masked. The top token alone passes τ: masked all the same (R9). Ties: lowest index.
    assert keep.tolist() == [
        [False, True, True, True, True],
        [False, True, True, True, True],
        [False, True, True, True, True],
    ]
    assert select_tokens(weights, mask, 0.9).tolist()[0] == [False, True, False, True, True]


def test_masking_never_profits_from_norm():
    """Both directions are unit vectors, so a masked text scores lower only for what it says (R10)."""
    torch.manual_seed(0)
    tokens, mask = torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool)
    weights = token_weights(torch.randn(4, 6), mask)
    factor = mask_multiplier(weights, select_tokens(weights, mask, 0.6), "none")
    for direction in (weighted_direction(tokens, weights), weighted_direction(tokens, weights * factor)):
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(4))


def test_straight_through_has_slope_minus_one():
    weights = torch.tensor([[0.7, 0.3]], requires_grad=True)
    factor = mask_multiplier(weights, torch.tensor([[False, True]]), "straight_through")
    assert factor.tolist() == [[0.0, 1.0]]
    factor.sum().backward()
    assert weights.grad.tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize("rows", [None, torch.tensor([[0, 4, 4], [2, 1, 3]])])
def test_predictor_is_the_perceptron_over_pairs_of_a_token_and_what_it_sees(rows):
    """Eq. 10-11 written out: [token; mixed context] through LayerNorm, Linear, GELU, Linear and a softmax."""
    torch.manual_seed(0)
    number = 5 if rows is None else 3
    predictor = TokenWeightPredictor(5, 4, 6).double()
    for parameter in predictor.layer_norm.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    inputs = [torch.randn(2, count, 6, dtype=torch.float64, requires_grad=True) for count in (number, 4)]
    mask = torch.arange(number) < torch.tensor([[number], [2]])

    def written_out(tokens, context):
        mixed = (predictor.mix.weight if rows is None else predictor.mix.weight[rows]) @ context
        pairs = predictor.layer_norm(torch.cat([tokens, mixed], -1))
        logits = predictor.fc2(torch.nn.functional.gelu(predictor.fc1(pairs)))[..., 0]
        return logits.masked_fill(~mask, -torch.inf).softmax(-1)

    leaves, aim = [*inputs, *predictor.parameters()], torch.rand(2, number, dtype=torch.float64)
    found = []
    for weights in (predictor(*inputs, mask, rows), written_out(*inputs)):
        found.append([weights, *torch.autograd.grad((weights * aim).sum(), leaves)])
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)

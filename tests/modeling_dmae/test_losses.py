"""Losses against plain loops, the fixed figure, and the cases where other implementations die or explode."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.modeling_dmae.losses_dmae import (
    contrastive_loss,
    duplicate_mask,
    hard_negatives,
    info_nce,
    neg_nce,
    partial_margin,
    scheduled_margin,
)

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


def random_scores(seed, size=5):
    torch.manual_seed(seed)
    return torch.randn(size, size, dtype=torch.float64) * 0.2 + 0.1 * torch.eye(size, dtype=torch.float64)


def loop_neg_nce(scores, scale, positive, negative, margin, duplicates=None):
    """Eq. 4-9 with R5, entry by entry; γ2 = 0 gives InfoNCE."""
    size, s = len(scores), scores.tolist()
    out = [[duplicates is not None and bool(duplicates[i][j]) for j in range(size)] for i in range(size)]
    total = 0.0
    for by_text in (True, False):
        matched, pushed = [], []
        for i in range(size):
            line = {j: s[i][j] if by_text else s[j][i] for j in range(size) if not out[i][j]}
            below = sum(math.exp(scale * x) for x in line.values())
            matched.append(-math.log(math.exp(scale * line[i]) / below))
            for j, x in line.items():
                excess = max(0, x - s[i][i] + margin) + max(0, x - s[j][j] + margin)
                if j != i and excess > 0:
                    rest = sum(math.exp(scale * other) for k, other in line.items() if k != j)
                    pushed.append(-math.log(rest / below))
        total += positive * sum(matched) / size + negative * (sum(pushed) / len(pushed) if pushed else 0)
    return total / 2


def some_duplicates(size=5):
    return duplicate_mask(torch.tensor([1, 2, 1, 3, 4][:size]))


@few
@given(seeds, st.sampled_from([1.0, 5.0, 20.0]), st.sampled_from([0.0, 0.1]), st.booleans())
def test_neg_nce_is_its_equation(seed, scale, margin, with_duplicates):
    scores, duplicates = random_scores(seed), some_duplicates() if with_duplicates else None
    expected = loop_neg_nce(scores, scale, 1.0, 0.5, margin, duplicates)
    assert neg_nce(scores, scale, margin=margin, duplicates=duplicates).item() == pytest.approx(expected, abs=1e-11)


@few
@given(seeds)
def test_without_gamma2_it_is_info_nce(seed):
    scores, duplicates = random_scores(seed), some_duplicates()
    plain = info_nce(scores, 10.0, duplicates)
    torch.testing.assert_close(neg_nce(scores, 10.0, negative_weight=0.0, duplicates=duplicates), plain)
    assert plain.item() == pytest.approx(loop_neg_nce(scores, 10.0, 1.0, 0.0, 0.0, duplicates), abs=1e-11)


def test_equal_similarities_give_log_of_the_batch():
    assert info_nce(torch.zeros(7, 7), 100.0).item() == pytest.approx(math.log(7), abs=1e-6)


def test_the_fixed_figure():
    torch.manual_seed(1)
    s = 0.3 * torch.eye(6, dtype=torch.float64) + 0.02 * torch.randn(6, 6, dtype=torch.float64)
    s[0, 3], s[2, 1], s[5, 4] = s[0, 0] + 0.01, s[2, 2] + 0.03, s[4, 4] + 0.002
    assert neg_nce(s, 100.0).item() == pytest.approx(1.5784641488664378, abs=1e-9)
    assert loop_neg_nce(s, 100.0, 1.0, 0.5, 0.0) == pytest.approx(1.5784641488664378, abs=1e-9)
    hard = hard_negatives(s)
    for scores, mask, figure in [(s, hard, 1.8383810455750926), (s.T, hard.T, 1.3185472521577829)]:
        logits = 100 * scores
        push = -torch.log(1 - logits.softmax(1))[mask].mean()
        assert (torch.nn.functional.cross_entropy(logits, torch.arange(6)) + 0.5 * push).item() == pytest.approx(
            figure, abs=1e-9
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_push_lives_where_a_clamped_one_is_dead(dtype):
    """At scale 100 p rounds to 1 in fp32; log(clamp(1 − p)) has exactly no gradient there."""
    s = torch.tensor([[0.1, 0.4], [0.1, 0.4]], dtype=dtype, requires_grad=True)
    neg_nce(s, 100.0, positive_weight=0.0, negative_weight=1.0).backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad[0, 1] > 1  # the hard negative is pushed down
    assert s.grad[0, 0] < -1  # and its own match pulled up


@few
@given(seeds, st.sampled_from([1.0, 100.0]))
def test_gradient_of_float32_is_that_of_float64(seed, scale):
    exact = random_scores(seed).requires_grad_()
    narrow = exact.detach().float().requires_grad_()
    neg_nce(exact, scale).backward()
    neg_nce(narrow, scale).backward()
    torch.testing.assert_close(narrow.grad.double(), exact.grad, rtol=2e-3, atol=1e-3 * scale / 100)


def test_gradcheck():
    scores = random_scores(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: neg_nce(s, 5.0, duplicates=some_duplicates()), [scores])
    assert torch.autograd.gradcheck(lambda s: info_nce(s, 5.0, some_duplicates()), [scores])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scores", [torch.full((4, 4), 0.9), torch.eye(4), 1 - torch.eye(4), torch.ones(1, 1)])
def test_no_nan_at_scale_100(dtype, scores):
    s = scores.to(dtype).requires_grad_()
    for duplicates in (None, ~torch.eye(len(s), dtype=torch.bool)):  # and with every negative a duplicate
        loss = neg_nce(s, 100.0, duplicates=duplicates)
        (gradient,) = torch.autograd.grad(loss, s)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert loss.dtype == torch.float32


def test_one_hard_set_serves_both_directions():
    s = torch.tensor([[0.5, 0.6, 0.0], [0.0, 0.5, 0.0], [0.0, 0.55, 0.7]])
    expected = torch.tensor([[False, True, False], [False, False, False], [False, True, False]])
    assert torch.equal(hard_negatives(s), expected)  # (0,1) is not (1,0): the printed s_ji would flag both (R5)
    assert torch.equal(hard_negatives(s, duplicates=expected), torch.zeros(3, 3, dtype=torch.bool))


def test_a_margin_makes_more_negatives_hard_and_never_a_match():
    """What is within the margin of the match of its row or of its column."""
    scores = torch.tensor([[0.5, 0.45, 0.1], [0.2, 0.6, 0.65], [0.42, 0.25, 0.4]])
    T, N = True, False
    assert hard_negatives(scores).tolist() == [[N, N, N], [N, N, T], [T, N, N]]
    assert hard_negatives(scores, 0.1).tolist() == [[N, T, N], [N, N, T], [T, N, N]]
    apart = torch.tensor([[N, N, N], [N, N, N], [T, N, N]])
    assert hard_negatives(scores, 0.1, apart).tolist() == [[N, T, N], [N, N, T], [N, N, N]]


def test_a_pair_without_negatives_has_a_loss_of_0_and_a_gradient_of_numbers():
    for duplicates, count in ((None, 1), (~torch.eye(3, dtype=torch.bool), 3)):
        scores = torch.full((count, count), 0.3, requires_grad=True)
        loss = neg_nce(scores, 10.0, margin=0.5, duplicates=duplicates)
        loss.backward()
        assert loss == 0 and torch.equal(scores.grad, torch.zeros(count, count))


@few
@given(seeds)
def test_duplicates_are_as_if_absent(seed):
    scores = random_scores(seed)
    duplicates = some_duplicates()
    other = torch.where(duplicates, scores + 5, scores)
    torch.testing.assert_close(
        neg_nce(other, 10.0, duplicates=duplicates), neg_nce(scores, 10.0, duplicates=duplicates)
    )


def test_duplicate_mask_joins_videos_and_captions():
    mask = duplicate_mask(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 9, 9]))
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(mask, expected)
    assert duplicate_mask(None) is None


def test_partial_margin_by_hand():
    full, masked = torch.tensor([0.8, 0.5]), torch.tensor([0.1, 0.4])
    assert partial_margin(full, masked, 0.6).item() == pytest.approx((0.0 + 0.5) / 2)


def test_scheduled_margin():
    config = SimpleNamespace(margin_schedule="linear", partial_margin=0.6, partial_margin_start=0.2)
    assert [scheduled_margin(config, p) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])
    config.margin_schedule = "constant"
    assert scheduled_margin(config, 0.0) == 0.6


def test_contrastive_loss_follows_the_config():
    config = SimpleNamespace(
        loss="neg_nce", positive_weight=0.7, negative_weight=0.3, negative_margin=0.1, mask_duplicates=True
    )
    scores, duplicates = random_scores(5), some_duplicates()
    torch.testing.assert_close(
        contrastive_loss(scores, 9.0, config, duplicates), neg_nce(scores, 9.0, 0.7, 0.3, 0.1, duplicates)
    )
    config.loss, config.mask_duplicates = "info_nce", False
    torch.testing.assert_close(contrastive_loss(scores, 9.0, config, duplicates), info_nce(scores, 9.0))

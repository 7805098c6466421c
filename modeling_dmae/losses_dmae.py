"""Contrastive losses and margins: pure functions of similarity matrices (Eq. 4-9, 17-18)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .vectors_dmae import wide


def info_nce(similarities: Tensor, scale: Tensor | float, duplicates: Tensor | None = None) -> Tensor:
    """L = −½·mean_i(log softmax_j z_ij + log softmax_j z_ji)_ii, z = scale·s  (Eq. 4, symmetric). (B,B) -> scalar.

    Args:
        similarities: (B,B), row = text, column = video, matches on the diagonal, unscaled.
        scale: the multiplier, `logit_scale.exp()`.
        duplicates: (B,B) bool, symmetric, False on the diagonal: pairs that are no negatives; their logits are −inf.
    """
    logits = _logits(similarities, scale, duplicates)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def neg_nce(
    similarities: Tensor,
    scale: Tensor | float,
    positive_weight: float = 1.0,
    negative_weight: float = 0.5,
    margin: float = 0.0,
    duplicates: Tensor | None = None,
) -> Tensor:
    """L = γ1·L_p + γ2·L_n, both directions averaged; L_n = mean over N of −log(1 − p_ij)  (Eq. 5-9). (B,B) -> scalar.

    N, the hard negatives, comes from `hard_negatives` and carries no gradient; where it is empty L_n is 0.
    Arguments as in `info_nce`; margin is ξ, positive_weight γ1, negative_weight γ2.
    """
    hard = hard_negatives(similarities, margin, duplicates)
    logits = _logits(similarities, scale, duplicates)
    target = torch.arange(len(logits), device=logits.device)
    loss = positive_weight * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if negative_weight:
        loss = loss + negative_weight * (push_away(logits, hard) + push_away(logits.T, hard.T)) / 2
    return loss


def hard_negatives(similarities: Tensor, margin: float = 0.0, duplicates: Tensor | None = None) -> Tensor:
    """N_ij = m_ij > 0, m_ij = relu(s_ij − s_ii + ξ) + relu(s_ij − s_jj + ξ), no diagonal, no duplicates  (Eq. 5-6, R5).

    One set for both directions: j beats i's own match, or i beats j's. (B,B) -> (B,B) bool.
    """
    scores = wide(similarities.detach())
    matched = scores.diagonal()
    hard = (scores + margin > matched[:, None]) | (scores + margin > matched[None, :])
    hard.fill_diagonal_(False)
    return hard if duplicates is None else hard & ~duplicates


def partial_margin(full: Tensor, masked: Tensor, margin: float) -> Tensor:
    """mean relu(S(masked) − S(full) + δ): a pair loses δ with its important tokens  (Eq. 17, R12). (B,) -> scalar."""
    return F.relu(masked - full + margin).mean()


def scheduled_margin(config, progress: float) -> float:
    """δ at a fraction `progress` of training: constant, or from partial_margin_start to partial_margin in a line."""
    if config.margin_schedule == "constant":
        return config.partial_margin
    progress = min(max(progress, 0.0), 1.0)
    return config.partial_margin_start + (config.partial_margin - config.partial_margin_start) * progress


def duplicate_mask(video_ids: Tensor | None, caption_ids: Tensor | None = None) -> Tensor | None:
    """Pairs that are no negatives: same video or same caption. (B,) ints -> (B,B) bool, False on the diagonal."""
    known = [ids for ids in (video_ids, caption_ids) if ids is not None]
    if not known:
        return None
    same = torch.stack([ids[:, None] == ids[None, :] for ids in known]).any(0)
    return same.fill_diagonal_(False)


def contrastive_loss(similarities: Tensor, scale: Tensor | float, config, duplicates: Tensor | None = None) -> Tensor:
    """The loss that `config` names, with its weights; duplicates are ignored if `mask_duplicates` is off."""
    duplicates = duplicates if config.mask_duplicates else None
    if config.loss == "info_nce":
        return info_nce(similarities, scale, duplicates)
    return neg_nce(
        similarities,
        scale,
        positive_weight=config.positive_weight,
        negative_weight=config.negative_weight,
        margin=config.negative_margin,
        duplicates=duplicates,
    )


def _logits(similarities: Tensor, scale: Tensor | float, duplicates: Tensor | None) -> Tensor:
    logits = wide(similarities) * scale  # fp32: a softmax at scale 100 in bf16 would round gaps of 0.002 away
    return logits if duplicates is None else logits.masked_fill(duplicates, float("-inf"))


def push_away(logits: Tensor, hard: Tensor) -> Tensor:
    """Mean over `hard` of −log(1 − p), p = softmax over each row. (B,N), (B,N) bool -> scalar, 0 where `hard` is empty.

    log(1 − p) cancels as p → 1, so the row's argmax (the only entry that can exceed ½) is left out of the sum
    explicitly, log(1 − p) = logsumexp of the others − logsumexp of all; elsewhere log1p(−p) is exact (R6).
    """
    top = torch.zeros_like(hard).scatter_(1, logits.argmax(1, keepdim=True), True)
    total = logits.logsumexp(1, keepdim=True)
    # where the argmax is not hard nothing may be left to sum, and −inf would give NaN gradients
    beaten = (hard & top).any(1, keepdim=True)
    rest = logits.masked_fill(top & beaten, float("-inf")).logsumexp(1, keepdim=True)
    probability = torch.where(hard & ~top, (logits - total).exp(), 0.0)
    log_rest = torch.where(top, rest - total, torch.log1p(-probability))
    count = hard.sum().clamp_min(1)
    return -torch.where(hard, log_rest, 0.0).sum() / count

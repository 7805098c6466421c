"""Dual-modal attention: which words count (Eq. 1) and which frames support one another (Eq. 2)."""

import torch
from torch import Tensor

from .vectors_dmae import masked_softmax, uniform_weights, unit, wide


def textual_attention(weights: Tensor, word_mask: Tensor, mode: str = "softmax") -> Tensor:
    """W_TA over the word pieces of each text; rows sum to 1, exactly 0 outside the mask (Algorithm 1, Eq. 1).

    softmax: exp(p·q)/Σ exp(p·q), as printed; an irrelevant word keeps e^0. linear: p·q/Σ p·q, which removes it from
    the sum (R2). uniform: 1/n. A text whose weights are all 0 falls back to uniform.

    Args:
        weights: (B,T) p·q per piece, ≥ 0. word_mask: (B,T) bool. mode: "softmax", "linear" or "uniform".
    Returns:
        (B,T), float32 or wider.
    """
    weights = wide(weights)
    if mode == "uniform":
        return uniform_weights(word_mask, weights.dtype)
    if mode == "softmax":
        return masked_softmax(weights, word_mask)
    if mode != "linear":
        raise ValueError(f"mode={mode!r} is not a choice; valid: 'softmax', 'linear', 'uniform'")
    weights = torch.where(word_mask, weights, 0.0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp_min(1e-30), uniform_weights(word_mask, weights.dtype))


def visual_attention(video_embeds: Tensor, video_mask: Tensor, top_k: int = 2) -> Tensor:
    """W_VA (B,F,F): S = v vᵀ with each *column*'s diagonal and its top_k − 1 largest other valid frames kept (Eq. 2).

    All else is 0, and so are the rows and columns of padding. Ties keep the lowest index; fewer frames than top_k keep
    what there is. Gradient flows through the kept values; nothing is renormalised, so ‖attended‖ ≤ top_k.

    Args:
        video_embeds: (B,F,D). video_mask: (B,F) bool. top_k: kept per column, the diagonal counted, ≥ 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1 (the diagonal is always kept)")
    frames = wide(video_embeds)
    frames = torch.where(video_mask[..., None], frames, 0.0)
    similarity = frames @ frames.mT
    number = video_mask.shape[1]
    diagonal = torch.eye(number, dtype=torch.bool, device=similarity.device)
    pairs = video_mask[:, :, None] & video_mask[:, None, :]
    others = pairs & ~diagonal
    # One argmax after the other: it takes the first of equals, where topk leaves their order open.
    left, kept = similarity.detach().masked_fill(~others, float("-inf")), torch.zeros_like(others)
    for _ in range(min(top_k, number) - 1):
        best = left.argmax(dim=1, keepdim=True)
        kept, left = kept.scatter(1, best, True), left.scatter(1, best, float("-inf"))
    kept = kept & others  # a column with fewer others than asked for has run out of them
    return torch.where(kept | (diagonal & pairs), similarity, 0.0)


def attended_frames(video_embeds: Tensor, video_mask: Tensor, top_k: int = 2, scale: str = "printed") -> Tensor:
    """W_VAᵀ v, (B,F,D): since t·(W_VAᵀ v)ᵀ = (t vᵀ) W_VA, it is free at query time (docs/method.md §3).

    scale (docs/method.md §10): "printed"; "halved", about a frame's length at top_k = 2; "unit", of length 1.
    """
    frames = torch.where(video_mask[..., None], wide(video_embeds), 0.0)
    attended = visual_attention(video_embeds, video_mask, top_k).mT @ frames
    if scale == "printed":
        return attended
    if scale not in ("halved", "unit"):
        raise ValueError(f"scale={scale!r} is not a choice; valid: 'printed', 'halved', 'unit'")
    return attended / 2 if scale == "halved" else unit(attended)

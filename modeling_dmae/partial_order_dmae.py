"""TPM-CL: which tokens matter, and what a pair must lose without them (Eq. 10-16, 20-21)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vectors_dmae import masked_softmax, unit, wide


class TokenWeightPredictor(nn.Module):
    """Weights of one modality's tokens, seen with the other modality (Eq. 10-11, 20-21). Rows sum to 1 over the mask.

    A dense map without bias brings the other modality's `context_rows` to `token_rows` rows; each token and its row go
    through LayerNorm, Linear 2D→D/2, GELU, Linear→1, masked softmax (R7). The last layer has no bias, because a
    softmax does not see it.
    """

    def __init__(self, token_rows: int, context_rows: int, width: int):
        super().__init__()
        self.mix = nn.Linear(context_rows, token_rows, bias=False)
        self.layer_norm = nn.LayerNorm(2 * width)
        self.fc1 = nn.Linear(2 * width, width // 2)
        self.fc2 = nn.Linear(width // 2, 1, bias=False)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B,N,D) tokens, (B,C,D) context, (B,N) bool -> (B,N). `rows` (B,N): each token's dense row."""
        mixed = torch.einsum("nc,bcd->bnd", self.mix.weight, context) if rows is None else self._gathered(context, rows)
        return token_weights(self.score(torch.cat([tokens, mixed], -1)), mask)

    def score(self, pairs: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layer_norm(pairs))))[..., 0]

    def _gathered(self, context: Tensor, rows: Tensor) -> Tensor:
        return self.mix.weight[rows] @ context


def token_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """w = softmax over the valid tokens (Eq. 10-11, R7), 0 outside. (B,N), (B,N) bool -> (B,N), fp32 or wider."""
    return masked_softmax(logits, mask)


def select_tokens(weights: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """keep (B,N) bool: False for the heaviest tokens, whose inclusive cumulative weight is below τ (Eq. 14, R8).

    Always at least the top token is masked (R9). Ties go to the lowest index; padding sorts last and is never masked.
    """
    weights = wide(weights.detach())
    order = weights.masked_fill(~mask, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
    in_order = torch.where(mask, weights, 0.0).gather(-1, order)
    masked = in_order.cumsum(-1) < threshold
    masked[..., 0] = True
    masked &= mask.gather(-1, order)
    return torch.ones_like(mask).scatter_(-1, order, ~masked)


def mask_multiplier(weights: Tensor, keep: Tensor, gradient: str) -> Tensor:
    """b, what each token is multiplied with: 1 kept, 0 masked. (B,N) -> (B,N).

    "straight_through": b = b_hard + (sg(w) − w), so ∂b/∂w = −1 and the predictor learns from its own mask (R11).
    "none", as printed: no gradient, and the visual predictor is never trained.
    """
    hard = keep.to(weights.dtype)
    return hard if gradient == "none" else hard + (weights.detach() - weights)


def weighted_direction(tokens: Tensor, weights: Tensor) -> Tensor:
    """unit(Σ w t), for t_g and, with w·b, for t_g^p (Eq. 15-16, R10: both are normalised). (B,N,D), (B,N) -> (B,D)."""
    return unit(torch.einsum("bn,bnd->bd", weights.to(tokens.dtype), tokens))

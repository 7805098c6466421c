"""Small vector operations with their edge cases decided: zero vectors, empty masks, narrow floats, bad input."""

import torch
from torch import Tensor

SMALLEST_NORM = 1e-6


def wide(x: Tensor) -> Tensor:
    """fp32 or wider. bf16 spaces cosines near 0.25 by 0.002: close scores would merge and ranks change."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Tensor) -> Tensor:
    """x/‖x‖ along the last axis where ‖x‖ ≥ 1e-6, else 0 with zero gradient. (..., D) -> (..., D), same dtype.

    The double `where` keeps the division away from short vectors in backward too: TPM makes exact zeros, and a plain
    normalise would send gradients of 1e10 into them (docs/method.md, "Letters").
    """
    values = wide(x)
    squared = values.square().sum(-1, keepdim=True)
    long_enough = ~(squared < SMALLEST_NORM**2)  # so that NaN stays NaN, and is refused, instead of turning into 0
    inverse = torch.where(long_enough, squared, torch.ones_like(squared)).rsqrt()
    return torch.where(long_enough, values * inverse, torch.zeros_like(values)).to(x.dtype)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis within `mask` (bool, same shape); exactly 0 outside, computed in fp32 or wider."""
    return torch.where(mask, wide(logits).masked_fill(~mask, float("-inf")).softmax(-1), 0.0)


def uniform_weights(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """1/n over the n valid positions of each row, 0 elsewhere. (B,N) bool -> (B,N)."""
    return mask.to(dtype) / mask.sum(1, keepdim=True)


def masked_mean_direction(frames: Tensor, mask: Tensor) -> Tensor:
    """unit(mean over valid frames). (B,F,D), (B,F) -> (B,D). CLIP4Clip's mean pooling."""
    total = torch.where(mask[..., None], frames, 0.0).sum(1)
    return unit(total / mask.sum(1, keepdim=True))


def require_valid_rows(mask: Tensor, name: str, remedy: str) -> None:
    """Raises `ValueError` naming the rows of `mask` (B,N) that have nothing valid."""
    if torch.compiler.is_compiling():  # a check reads values, and would cut the graph in two
        return
    empty = (~mask.any(1)).nonzero().flatten()
    if len(empty):
        raise ValueError(f"{name}: row {empty[0].item()} of {len(mask)} has nothing valid; {remedy}")


def require_finite(x: Tensor, name: str, mask: Tensor | None = None) -> None:
    """Raises `ValueError` naming the first row of `x` that holds NaN or infinity (within `mask`, if given)."""
    if torch.compiler.is_compiling():
        return
    if mask is not None and not bool(mask.all()):
        x = torch.where(mask[..., None], x.detach(), 0.0)
    if not torch.isfinite(x.detach().sum()):  # one number: cheap, and any NaN or inf reaches it
        rows = (~torch.isfinite(x.detach()).flatten(1).all(1)).nonzero().flatten()
        if len(rows):
            raise ValueError(
                f"{name}: row {rows[0].item()} of {len(x)} holds NaN or infinity; "
                f"look for a damaged input there, or lower the learning rate"
            )

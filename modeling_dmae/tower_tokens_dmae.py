"""What a tower gives, whatever its family."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class TowerTokens(NamedTuple):
    """A tower's tokens in the joint space, not normalised, and what else it was asked for."""

    tokens: Tensor  # (B,T,D) words; (N,1 or 1+K,D) a frame's pooled token, then its patches
    pooled: Tensor  # (B,D)
    states: tuple  # (hidden_states, attentions), each None where not asked for


def states_of(output: Any) -> tuple:
    return output.hidden_states, output.attentions


def first_position(found: Tensor, attended: Tensor) -> Tensor:
    """The first True of each row, or one past the row's last attended position. (B,T) bool, (B,T) bool -> (B,)."""
    places = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    beyond = torch.where(attended, places, 0).amax(1)
    return torch.where(found.any(1), found.int().argmax(1), beyond)


def last_real(input_ids: Tensor, attended: Tensor, padding: int) -> Tensor:
    """Where the last piece that is no padding stands. (B,T) ids, (B,T) bool -> (B,)."""
    real = attended & (input_ids != padding)
    return first_position(torch.zeros_like(real), real) - 1


def inner_pieces(attended: Tensor, ends: Tensor) -> Tensor:
    """The pieces between the first one, which begins the text, and the end token. (B,T), (B,) -> (B,T) bool."""
    places = torch.arange(attended.shape[1], device=attended.device)
    return attended & (places > 0) & (places < ends[:, None])

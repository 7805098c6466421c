"""Token merging: between two blocks of a vision tower, the patches most alike become one (Bolya et al., ICLR 2023).

Tokens other than the first (CLS) fall alternately into two sets; each of the first set may join the one of the second
that its state is closest to, and those with the closest partners do. A token of n patches is their mean and counts n
times in attention, so that merging tokens that are equal changes nothing.
"""

import torch
from torch import Tensor, nn

from .vectors_dmae import unit


def merged_blocks(blocks: nn.ModuleList, states: Tensor, merge: int) -> tuple[Tensor, Tensor]:
    """Run `blocks`, merging `merge` tokens before each but the first. (N,P,D) -> states (N,P',D), owners (N,P).

    owners: for each of the P tokens at the start, which of the P' holds it now.
    """
    sizes = states.new_ones(states.shape[:2], dtype=torch.float32)
    owners = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    for number, block in enumerate(blocks):
        if number:
            joins = assignment(states.detach(), merge)
            states, sizes = merge_tokens(states, sizes, joins)
            owners = joins.argmax(1).gather(1, owners)
        # softmax(q·k + log n): a token that stands for n counts n times
        bias = sizes.log().to(states.dtype)[:, None, None, :]
        states = block(states, bias.expand(-1, 1, states.shape[1], -1))
    return states, owners


def assignment(states: Tensor, merge: int) -> Tensor:
    """Which tokens become which, as 0 and 1: (N,P,D) -> (N,P-m,P), m = min(merge, half of the tokens but CLS).

    The first token stays itself and stays first; the others keep their order, one that was joined at its own place.
    """
    count = states.shape[1]
    first, second = torch.arange(1, count, 2, device=states.device), torch.arange(2, count, 2, device=states.device)
    merge = min(merge, len(second))
    directions = unit(states.float())
    closeness, partner = (directions[:, first] @ directions[:, second].mT).max(-1)
    leaving = closeness.sort(dim=-1, descending=True, stable=True).indices[:, :merge]
    goes = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
    goes[:, 1:] = goes[:, 1:].scatter(1, 2 * leaving, True)
    target = torch.arange(count, device=states.device).repeat(len(states), 1)
    target.scatter_(1, first[leaving], second[partner.gather(1, leaving)])
    place = (~goes).cumsum(1) - 1  # of those that stay
    target = place.gather(1, target)
    return (torch.arange(count - merge, device=states.device)[:, None] == target[:, None]).to(states.dtype)


def merge_tokens(states: Tensor, sizes: Tensor, joins: Tensor) -> tuple[Tensor, Tensor]:
    """The means of what joins, by sizes, and the sums of their sizes. As products: one order of summing."""
    total = (joins.float() @ sizes[..., None])[..., 0]
    shares = (joins * sizes[:, None] / total[..., None]).to(states.dtype)
    return shares @ states, total

"""Gather with gradients, so that every process scores its pairs against the whole global batch.

Every rank computes the same *global* loss L. The gather's backward sums the incoming gradients over ranks (world ·
∂L/∂e), DDP averages parameter gradients (1/world): together exactly the one-process gradient, with no further factor. A
term that only its own rank computes is therefore written as sum · world / global count.
"""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _GatherRows(torch.autograd.Function):
    """(n, …) per rank, equal n -> (world·n, …) in rank order. Backward: sum over ranks, then this rank's slice."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows.shape[0]
        gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather(list(gathered.chunk(world_size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def global_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of a tensor without gradient; the tensor itself in one process."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def value_of_all(own: torch.Tensor) -> torch.Tensor:
    """A term that only its own rank computes (sum · world / global count): the value of all ranks, this one's gradient.

    DDP's average of these gradients is that of the value, so every rank can log and add what one process would have.
    """
    return own + (global_sum(own.detach()) / world_size() - own.detach())


def gather_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Concatenate the ranks' batches along axis 0; ranks may differ in rows and in length (axis 1). Differentiable.

    {name: (n, L, …)} -> {name: (Σ n, max L, …)}; padded positions hold 0 / False, so masks stay right. One exchange
    of shapes, then one gather per tensor; in one process the tensors come back untouched.
    """
    if world_size() == 1:
        return tensors
    shapes = _gather_shapes(tensors)
    rows = [shape[0][0] for shape in shapes]
    gathered = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        length = max(shape[index][1] for shape in shapes)
        whole = _GatherRows.apply(_as_sent(_pad(tensor, max(rows), length)))
        pieces = [whole[r * max(rows) : r * max(rows) + n] for r, n in enumerate(rows)]
        gathered[name] = torch.cat(pieces).to(tensor.dtype)
    return gathered


def _gather_shapes(tensors: dict[str, torch.Tensor]) -> list[list[list[int]]]:
    """[rank][tensor] -> (rows, length) of every rank."""
    first = next(iter(tensors.values()))
    own = torch.tensor([(t.shape[0], t.shape[1] if t.dim() > 1 else 0) for t in tensors.values()], device=first.device)
    shapes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(shapes, own)
    return [shape.tolist() for shape in shapes]


def _pad(tensor: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    short = length - tensor.shape[1] if tensor.dim() > 1 else 0
    if short:
        tensor = torch.cat([tensor, tensor.new_zeros((tensor.shape[0], short, *tensor.shape[2:]))], dim=1)
    missing = rows - tensor.shape[0]
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor


def _as_sent(tensor: torch.Tensor) -> torch.Tensor:
    # NCCL has no bool
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor

"""A batch beyond memory with all its negatives (GradCache: Gao et al. 2021, "Scaling Deep Contrastive Learning …").

The loss needs all embeddings at once, but their graphs only one chunk at a time: (1) embed every chunk without a graph,
(2) take the loss's gradient with respect to the embeddings, (3) embed every chunk again, now with a graph, and
backpropagate <embedding, gradient>. Equal to the whole batch up to rounding; costs one more forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import get_device_states, set_device_states

from dmae.modeling_dmae.vectors_dmae import wide
from dmae.training.distributed import global_sum
from dmae.training.objective import ChunkGradients


def cached_backward(accelerator: Accelerator, objective, inputs: dict[str, torch.Tensor], chunk: int) -> dict:
    """As `objective(**inputs)` and backward, holding the graph of at most `chunk` pairs at a time. Same terms."""
    module = accelerator.unwrap_model(objective)
    rows = len(inputs["input_ids"])
    chunks = [{name: value[i : i + chunk] for name, value in inputs.items()} for i in range(0, rows, chunk)]
    randomness, encoded = [], []
    for piece in chunks:
        randomness.append((torch.get_rng_state(), *get_device_states(*piece.values())))
        with torch.no_grad(), accelerator.autocast():
            encoded.append(module.model.encode_pairs(**piece))
    text, video, tokens = zip(*encoded)
    terms, of_texts, of_videos, of_scale = _embedding_gradients(module, text[0].cat(text), video[0].cat(video), inputs)
    counts = None if tokens[0] is None else global_sum(torch.stack([pair.has_triplet.sum(1) for pair in tokens]).sum(0))
    del text, video, tokens, encoded
    partial_order = 0.0
    for index, piece in enumerate(chunks):
        own = slice(index * chunk, index * chunk + chunk)
        share = ChunkGradients(_rows(of_texts, own), _rows(of_videos, own), of_scale / len(chunks), counts)
        last = index == len(chunks) - 1
        # DDP averages once, when the last chunk has added its gradient
        with nullcontext() if last else accelerator.no_sync(objective), _replayed(*randomness[index]):
            surrogate, part = objective(gradients=share, **piece)
            accelerator.backward(surrogate)
        partial_order = partial_order + part
    if counts is not None:
        terms["partial_order"] = partial_order
    return module.total(terms)


def _embedding_gradients(module, text, video, inputs) -> tuple[dict, list, list, torch.Tensor]:
    """The contrastive terms and their gradient for each float tensor of `text` and `video` and for logit_scale."""
    text, video = _leaves(text), _leaves(video)
    scale = module.model.logit_scale.detach().requires_grad_()
    terms = module.contrast(text, video, scale, inputs["video_ids"], inputs["caption_ids"])
    leaves = [tensor for tensor in (*text, *video, scale) if tensor.requires_grad]
    found = iter(torch.autograd.grad(terms["contrastive"], leaves, allow_unused=True))
    gradients: list = [next(found) if tensor.requires_grad else None for tensor in (*text, *video, scale)]
    of_scale, texts = gradients.pop(), len(text.names())
    return terms, gradients[:texts], gradients[texts:], of_scale


def _leaves(embeddings):
    """The floats as leaves of a graph of their own, fp32 or wider."""
    return embeddings.map(lambda tensor: wide(tensor).requires_grad_() if tensor.is_floating_point() else tensor)


def _rows(gradients: list, own: slice) -> list:
    return [None if gradient is None else gradient[own] for gradient in gradients]


@contextmanager
def _replayed(state: torch.Tensor, devices: list[int], states: list[torch.Tensor]) -> Iterator[None]:
    """Dropout falls as it fell when the chunk was embedded first; afterwards all generators are where they were."""
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state)
        set_device_states(devices, states)
        yield

"""What one process of a run will hold at its peak, from steps on two or three pairs, before the limit is met."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.objective_dmae import contrastive_terms
from dmae.training.config import TrainingSection
from dmae.training.examples import to_model_inputs
from dmae.training.gradient_cache import cached_backward
from dmae.training.objective import Objective

SCORED_AT_ONCE = 256  # pairs: above, what the scores of all with all take is measured at this many and grows as n²
NARROW = 4  # the width at which that is measured: who won each maximum takes the same at any width


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. The peak comes in the backward pass, or at the optimiser's step."""

    weights: int  # and their running mean
    moments: int
    gradients: int
    step: int  # activations, gradients and inputs, at their highest together

    @property
    def peak(self) -> int:
        return self.weights + self.moments + self.step


class LiveBytes(TorchDispatchMode):
    """The bytes of the storages that operations made and that still live, noted after each operation.

    What is inside an operation (a kernel's own buffers) is not seen; what existed before is not counted.
    """

    def __init__(self):
        super().__init__()
        self.live, self.curve = 0, []
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if torch.is_tensor(tensor) and id(tensor.untyped_storage()) not in given:
                self._note(tensor.untyped_storage())
        self.curve.append(self.live)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen[storage] = size = storage.nbytes()
        self.live += size
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


def estimate(model, sampler, accelerator: Accelerator, options: TrainingSection, pairs: int, world: int) -> Memory:
    """The memory of a process that holds `pairs` of each global batch; model with its adapters, freezing done.

    Runs true steps (forward, backward, no optimiser) on two and three pairs and continues them in a line. Only what
    grows with all pairs times all pairs is measured at its size.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    objective = accelerator.prepare_model(Objective(model.train()))
    probe, chunk = Probe(objective, sampler, accelerator), options.gradient_cache_chunk
    step = _cached_peak(probe, chunk, pairs) if chunk else _whole_peak(probe, pairs)
    step += _scores_bytes(model.config, pairs * world)
    # the optimiser's own temporaries: of all parameters at once on a GPU, of one after the other elsewhere
    largest = max(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    stepping = trained + (trained if accelerator.device.type == "cuda" else 2 * largest)
    copies = 1 if options.ema is None else 2
    return Memory(copies * total, 2 * trained, trained, max(step, stepping))


class Probe:
    """Steps of a run on a few full-length pairs, and how much was alive in them."""

    def __init__(self, objective, sampler, accelerator: Accelerator):
        self.objective, self.sampler, self.accelerator = objective, sampler, accelerator
        self.model = accelerator.unwrap_model(objective).model

    def batch(self, pairs: int) -> dict:
        config, device = self.model.config, self.accelerator.device
        ids = torch.zeros(pairs, config.max_words, dtype=torch.long, device=device)
        words = torch.ones_like(ids, dtype=torch.bool)
        side = config.frame_size
        frames = torch.zeros(pairs, config.max_frames, 3, side, side, dtype=torch.uint8, device=device)
        video_mask = torch.ones(pairs, config.max_frames, dtype=torch.bool, device=device)
        each = torch.arange(pairs, device=device)
        texts = {"input_ids": ids, "attention_mask": words.long(), "word_mask": words, "word_weights": words.float()}
        return {**texts, "frames": frames, "video_mask": video_mask, "video_ids": each, "caption_ids": each}

    def curves(self, pairs: int, chunk: int | None) -> list[list[int]]:
        """Live bytes over one step, inputs and gradients among them: before the loss of all pairs, and after."""
        borders: list[int] = []
        bare, meter = self.accelerator.unwrap_model(self.objective), LiveBytes()
        announced = _announced(bare, lambda: borders.append(len(meter.curve)))
        with torch.random.fork_rng(devices=[]), announced, meter:
            inputs = to_model_inputs(self.batch(pairs), self.sampler)
            if chunk:
                cached_backward(self.accelerator, self.objective, inputs, chunk)
            else:
                self.accelerator.backward(self.objective(**inputs)["loss"])
        self.objective.zero_grad(set_to_none=True)
        return [meter.curve[: borders[0]], meter.curve[borders[0] :]]


class _announced:
    """While open, `announce()` is called before each `objective.contrast`."""

    def __init__(self, objective: Objective, announce: Callable[[], None]):
        self.objective, self.announce = objective, announce

    def __enter__(self):
        def contrast(*arguments):
            self.announce()
            return type(self.objective).contrast(self.objective, *arguments)

        self.objective.__dict__["contrast"] = contrast

    def __exit__(self, *error):
        del self.objective.__dict__["contrast"]


def _whole_peak(probe: Probe, pairs: int) -> int:
    """The curves of two and three pairs, continued point by point: their peak lies elsewhere when pairs are many."""
    two, three = (list(chain(*probe.curves(count, None))) for count in (2, 3))
    if len(two) != len(three):  # a step whose operations depend on the number of pairs: the peaks themselves
        two, three = [max(two)], [max(three)]
    return max(low + (high - low) * (pairs - 2) for low, high in zip(two, three))


def _cached_peak(probe: Probe, chunk: int, pairs: int) -> int:
    """Peaks before and after the loss of all pairs, each a + b·pairs + c·chunk.

    Gradients are there from the first chunk's backward pass on, so that here the peaks themselves grow in a line.
    """
    chunk, found = min(chunk, pairs), []
    base, more_pairs, longer_chunk = (probe.curves(count, piece) for count, piece in ((2, 1), (3, 1), (4, 2)))
    for low, more, longer in zip(base, more_pairs, longer_chunk):
        per_pair = max(more) - max(low)
        per_chunk = max(longer) - max(low) - 2 * per_pair
        found.append(max(low) + per_pair * (pairs - 2) + per_chunk * (chunk - 1))
    return max(found)


def _scores_bytes(config, pairs: int) -> int:
    """What scoring all pairs against all takes beyond what grows with their number: measured on narrow embeddings."""
    some = min(pairs, SCORED_AT_ONCE)

    def peak(count: int) -> int:
        words = torch.ones(count, config.max_words, dtype=torch.bool)
        frames = torch.ones(count, config.max_frames, dtype=torch.bool)
        tokens = [torch.rand(*mask.shape, NARROW, requires_grad=True) for mask in (words, frames)]
        weights = [mask / mask.sum(1, keepdim=True) for mask in (words, frames)]
        text = TextEmbeddings(tokens[0][:, 0], tokens[0], weights[0], words)
        video = VideoEmbeddings(tokens[1], tokens[1], weights[1], frames)
        with torch.random.fork_rng(devices=[]), LiveBytes() as meter:
            contrastive_terms(text, video, torch.ones(()), config)["contrastive"].backward()
        return max(meter.curve)

    growth = peak(some) - some * peak(2) // 2
    return max(0, round(growth * (pairs / some) ** 2))

"""What the towers give: the embeddings of texts and of videos, and the tokens of matched pairs, with shapes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

Same = TypeVar("Same", bound="Embeddings")
GIVEN: Any = None  # a field that is always given; ModelOutput wants a default of None for all but the first


@dataclass
class Embeddings(ModelOutput):
    """Tensors that share their rows. A `ModelOutput` (names, `to_tuple()`) that also unpacks into its tensors.

    `embeddings[name]` is a tensor and `embeddings[0]` the first one; `embeddings[rows]`, with a slice or with indices
    (list, array, tensor), is these rows of every tensor. States and attentions of the tower, where they were asked
    for, are carried as they are and dropped by every change.
    """

    @classmethod
    def names(cls) -> list[str]:
        """The tensors, in order."""
        return [field.name for field in fields(cls) if field.name not in ("hidden_states", "attentions")]

    @classmethod
    def of(cls: type[Same], tensors: Iterable[Tensor]) -> Same:
        """From its tensors, in the order of `names`; what comes after them is left."""
        return cls(**dict(zip(cls.names(), tensors)))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.names())

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors())

    def __getitem__(self, key) -> Any:  # a tensor, or the same with other rows
        if isinstance(key, (str, int)):
            return super().__getitem__(key)
        return self.map(lambda tensor: tensor[key])

    def map(self: Same, change: Callable[[Tensor], Tensor]) -> Same:
        """The same with every tensor changed."""
        return self.of(map(change, self.tensors()))

    def to(self: Same, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Same:
        """On `device`; floats, and only they, in `dtype`."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def replace(self: Same, **tensors: Tensor) -> Same:
        """The same with some tensors exchanged."""
        return type(self)(**{name: tensors.pop(name, getattr(self, name)) for name in self.names()}, **tensors)

    def flat(self, prefix: str) -> dict[str, Tensor]:
        """{"prefix.name": tensor}, for what takes a flat mapping: a file, a gather over ranks."""
        return {f"{prefix}.{name}": tensor for name, tensor in zip(self.names(), self.tensors())}

    @classmethod
    def from_flat(cls: type[Same], tensors: Mapping[str, Tensor], prefix: str) -> Same:
        return cls(**{name: tensors[f"{prefix}.{name}"] for name in cls.names()})

    @classmethod
    def cat(cls: type[Same], parts: Sequence[Same]) -> Same:
        """All rows of `parts`, one after the other."""
        return cls.of(map(torch.cat, zip(*parts)))


@dataclass
class TextEmbeddings(Embeddings):
    """B texts. word_weights are normalised: rows sum to 1 over word_mask and are exactly 0 outside."""

    sentence_embeds: Tensor = GIVEN  # (B,D) unit
    word_embeds: Tensor = GIVEN  # (B,T,D) unit
    word_weights: Tensor = GIVEN  # (B,T)
    word_mask: Tensor = GIVEN  # (B,T) bool
    hidden_states: tuple[Tensor, ...] | None = None  # of the text tower, each (B,T,H)
    attentions: tuple[Tensor, ...] | None = None  # of the text tower, each (B,heads,T,T)


@dataclass
class VideoEmbeddings(Embeddings):
    """B videos. `similarity` scores attended_embeds; without visual attention it is video_embeds itself."""

    video_embeds: Tensor = GIVEN  # (B,F,D) unit
    attended_embeds: Tensor = GIVEN  # (B,F,D), norm ≤ visual_top_k
    frame_weights: Tensor = GIVEN  # (B,F), normalised over video_mask, exactly 0 outside
    video_mask: Tensor = GIVEN  # (B,F) bool
    hidden_states: tuple[Tensor, ...] | None = None  # of the vision tower, each (N,1+K,H): N real frames, in order
    attentions: tuple[Tensor, ...] | None = None  # of the vision tower, each (N,heads,1+K,1+K)


class PairTokens(NamedTuple):
    """The pre-temporal unit tokens of matched pairs that TPM-CL reads (R14); rows outside a mask are 0."""

    text_tokens: Tensor  # (B,T,D)
    text_mask: Tensor  # (B,T) bool: word_mask, and the end token with tpm_includes_eos
    frame_tokens: Tensor  # (B,F,D) one per frame
    visual_tokens: Tensor  # (B,P,D) P = F, or F(1+k) frame-major
    visual_mask: Tensor  # (B,P) bool
    positions: Tensor  # (B,P) int, rows of the position table and of the visual predictor

    @property
    def has_triplet(self) -> Tensor:
        """Which of the three triplets each pair has: more than one token on the masked side (R9). -> (3,B) bool."""
        text, visual = self.text_mask.sum(1) > 1, self.visual_mask.sum(1) > 1
        return torch.stack([visual, visual, text])


class PairMasks(NamedTuple):
    """How TPM-CL weighs matched pairs' tokens, and which it keeps (Eq. 10-14)."""

    text_weights: Tensor  # (B,T)
    text_keep: Tensor  # (B,T) bool
    visual_weights: Tensor  # (B,P)
    visual_keep: Tensor  # (B,P) bool

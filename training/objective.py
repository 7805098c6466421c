"""encode -> gather -> similarity -> losses: everything that uses parameters, in one forward of one prepared module."""

from typing import NamedTuple

import torch
from torch import nn

from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.objective_dmae import composed, contrastive_terms, triplet_means
from dmae.modeling_dmae.vectors_dmae import wide
from dmae.training.distributed import gather_tensors, global_sum, value_of_all, world_size


class ChunkGradients(NamedTuple):
    """∂L/∂embedding of some pairs, known before their graph is built (see `gradient_cache`)."""

    text: list[torch.Tensor | None]
    video: list[torch.Tensor | None]
    scale: torch.Tensor  # ∂L/∂logit_scale, shared out over the chunks
    valid_counts: torch.Tensor | None  # (3,) valid triplets of all ranks


class Objective(nn.Module):
    """L = L_contrastive(global batch) + λ·L_TPM (docs/method.md §5, §6), equal on every number of processes.

    forward(**batch) -> {"loss", "contrastive", "partial_order", "hard_negative_share", "scale"}; all but "loss" are
    detached. Batches of the ranks may differ in size. After DDP's average the gradient is that of one process holding
    the whole batch. `progress`, set by the loop, is the fraction of training done (a scheduled margin reads it).
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.progress = 0.0

    @property
    def progress(self) -> float:
        return self.model.progress

    @progress.setter
    def progress(self, done: float) -> None:
        self.model.progress = done

    def forward(self, gradients: ChunkGradients | None = None, **batch: torch.Tensor):
        video_ids, caption_ids = batch.pop("video_ids"), batch.pop("caption_ids")
        text, video, tokens = self.model.encode_pairs(**batch)
        if gradients is not None:
            return self._surrogate(text, video, tokens, gradients)
        terms = self.contrast(text, video, self.model.logit_scale, video_ids, caption_ids)
        if tokens is not None:
            terms["partial_order"] = self.partial_order(text, video, tokens)
        return self.total(terms)

    def contrast(self, text, video, logit_scale, video_ids, caption_ids) -> dict[str, torch.Tensor]:
        """The contrastive loss of the gathered batch, and what is worth logging about it."""
        text, video, ids = gather_batch(text, video, video_ids, caption_ids)
        scale = wide(logit_scale).exp()
        terms = contrastive_terms(text, video, scale, self.model.config, **ids)
        terms.pop("scores")
        return {**terms, "scale": scale}

    def partial_order(self, text, video, tokens, counts: torch.Tensor | None = None) -> torch.Tensor:
        """This rank's part of L_TPM: Σ_triplets Σ_pairs hinge · world / (valid pairs of all ranks)."""
        losses, valid = self.model.partial_order_terms(text, video, tokens)
        counts = global_sum(valid.sum(dim=1)) if counts is None else counts
        return triplet_means(losses, valid, counts).sum() * world_size()

    def total(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The terms and their sum, "loss": its value is that of all ranks, its gradient this rank's part."""
        terms = {name: value_of_all(term) if name == "partial_order" else term for name, term in terms.items()}
        loss = composed(terms["contrastive"], terms.get("partial_order"), self.model.config)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _surrogate(self, text, video, tokens, gradients: ChunkGradients) -> tuple[torch.Tensor, torch.Tensor]:
        """A scalar whose gradient is this chunk's share of the whole loss's, and its TPM part for the log."""
        surrogate = self.model.logit_scale * gradients.scale
        for embeds, gradient in zip([*text, *video], [*gradients.text, *gradients.video]):
            if gradient is not None:
                surrogate = surrogate + (embeds.to(gradient.dtype) * gradient).sum()
        if tokens is None:
            return surrogate, surrogate.new_zeros(())
        partial_order = self.partial_order(text, video, tokens, gradients.valid_counts)
        return surrogate + self.model.config.partial_weight * partial_order, partial_order.detach()


def gather_batch(text: TextEmbeddings, video: VideoEmbeddings, video_ids, caption_ids):
    """Every rank's texts, videos and ids, in rank order; floats at least fp32."""
    tensors = {**text.map(wide).flat("text"), **video.map(wide).flat("video")}
    gathered = gather_tensors({**tensors, "video_ids": video_ids, "caption_ids": caption_ids})
    text, video = TextEmbeddings.from_flat(gathered, "text"), VideoEmbeddings.from_flat(gathered, "video")
    return text, video, {name: gathered[name] for name in ("video_ids", "caption_ids")}

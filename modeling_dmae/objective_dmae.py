"""The loss of a batch, composed here and nowhere else: the model's `forward` and the training loop both call it."""

import torch
from torch import Tensor

from .embeddings_dmae import TextEmbeddings, VideoEmbeddings
from .losses_dmae import contrastive_loss, duplicate_mask, hard_negatives
from .similarity_dmae import similarity


def contrastive_terms(
    text: TextEmbeddings,
    video: VideoEmbeddings,
    scale: Tensor,
    config,
    video_ids: Tensor | None = None,
    caption_ids: Tensor | None = None,
) -> dict[str, Tensor]:
    """The contrastive loss of B matched pairs, and what is worth logging about it.

    scale: the multiplier, `logit_scale.exp()`. -> {"scores" (B,B) unscaled, "contrastive", "hard_negative_share"}.
    """
    # fp32: bf16 spacing merges close scores and changes which negatives are hard
    with torch.autocast(text.word_embeds.device.type, enabled=False):
        scores = similarity(text, video, config)
        duplicates = duplicate_mask(video_ids, caption_ids) if config.mask_duplicates else None
        loss = contrastive_loss(scores, scale.to(scores.dtype), config, duplicates)
        hard = hard_negatives(scores.detach(), config.negative_margin, duplicates)
    share = hard.sum() / max(len(hard) * (len(hard) - 1), 1)
    return {"scores": scores, "contrastive": loss, "hard_negative_share": share}


def triplet_means(losses: Tensor, valid: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean hinge of each triplet over the pairs that have it, 0 where none has (Eq. 17, R9). (3,B), (3,B) -> (3,).

    counts (3,): over how many pairs, if this process holds only some of them; by default those of `valid`.
    """
    counts = valid.sum(1) if counts is None else counts
    return losses.masked_fill(~valid, 0.0).sum(1) / counts.clamp(min=1)


def composed(contrastive: Tensor, partial_order: Tensor | None, config) -> Tensor:
    """L = L_contrastive + λ·L_TPM, L_TPM the sum of the three triplets' means (Eq. 18-19)."""
    return contrastive if partial_order is None else contrastive + config.partial_weight * partial_order

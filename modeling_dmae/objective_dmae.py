"""The loss of a batch, composed here and nowhere else: the model's `forward` and the training loop both call it."""

import torch
from torch import Tensor

from .embeddings_dmae import TextEmbeddings, VideoEmbeddings
from .losses_dmae import MemorySimilarities, contrastive_loss, duplicate_mask, hard_negatives
from .similarity_dmae import similarity


def contrastive_terms(
    text: TextEmbeddings,
    video: VideoEmbeddings,
    scale: Tensor,
    config,
    video_ids: Tensor | None = None,
    caption_ids: Tensor | None = None,
    memory: "EmbeddingMemory | None" = None,
) -> dict[str, Tensor]:
    """The contrastive loss of B matched pairs, and what is worth logging about it; `memory`, if given, then has them.

    scale: the multiplier, `logit_scale.exp()`. -> {"scores" (B,B) unscaled, "contrastive", "hard_negative_share"}.
    """
    # fp32: bf16 spacing merges close scores and changes which negatives are hard
    with torch.autocast(text.word_embeds.device.type, enabled=False):
        scores = similarity(text, video, config)
        duplicates = duplicate_mask(video_ids, caption_ids) if config.mask_duplicates else None
        remembered = memory.similarities(text, video, video_ids, caption_ids) if memory else None
        loss = contrastive_loss(scores, scale.to(scores.dtype), config, duplicates, remembered)
        hard = hard_negatives(scores.detach(), config.negative_margin, duplicates)
        if memory:
            memory.add(text, video, video_ids, caption_ids, scores.detach().diagonal())
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


class EmbeddingMemory:
    """The last `config.memory_size` pairs of the *gathered* batches, detached: the same on every rank.

    Recent pairs as further negatives for NegNCE (beyond the paper: do more hard negatives help a small batch?).
    Saved with checkpoints (`state_dict`), so that a resumed run meets the negatives the interrupted one would have met.
    """

    def __init__(self, config):
        self.config = config
        self.kept: dict[str, Tensor] = {}

    def similarities(self, text, video, video_ids, caption_ids) -> MemorySimilarities | None:
        """How the batch scores against what is remembered; None while nothing is."""
        if not self.kept:
            return None
        kept = {name: tensor.to(text.word_embeds.device) for name, tensor in self.kept.items()}
        ids = {"video_ids": video_ids, "caption_ids": caption_ids}
        same = [ids[name][:, None] == kept[name][None, :] for name in ids if ids[name] is not None and name in kept]
        return MemorySimilarities(
            videos=similarity(text, VideoEmbeddings.from_flat(kept, "video"), self.config),
            texts=similarity(TextEmbeddings.from_flat(kept, "text"), video, self.config),
            matched=kept["matched"],
            duplicates=torch.stack(same).any(0) if self.config.mask_duplicates and same else None,
        )

    def add(self, text, video, video_ids, caption_ids, matched: Tensor) -> None:
        """Remember a batch, forget the oldest."""
        ids = {"video_ids": video_ids, "caption_ids": caption_ids}
        ids = {name: tensor for name, tensor in ids.items() if tensor is not None}
        new = {**text.flat("text"), **video.flat("video"), **ids, "matched": matched}
        if new.keys() != self.kept.keys():
            self.kept = {}  # batches with ids and batches without cannot be compared
        for name, tensor in new.items():
            tensor = tensor.detach()
            whole = torch.cat([self.kept[name].to(tensor.device), tensor]) if name in self.kept else tensor
            self.kept[name] = whole[-self.config.memory_size :]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = dict(state)

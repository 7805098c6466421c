"""Objectives of rows that are no form of the model: the released visual attention, and a memory of recent pairs."""

import torch
from evidence_towers import TEXT_INPUTS
from torch.nn import functional as F

from dmae.modeling_dmae.losses_dmae import contrastive_loss, duplicate_mask, hard_negatives, push_away
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.training.objective import Objective


class AuthorsObjective(Objective):
    """The objective with the released code's visual attention (see `authors_similarity`)."""

    def contrast(self, text, video, logit_scale, video_ids, caption_ids):
        scores = authors_similarity(text, video, self.model.config)
        scale = logit_scale.exp()
        return {"contrastive": contrastive_loss(scores, scale, self.model.config), "scale": scale}


def authors_similarity(text: TextEmbeddings, video: VideoEmbeddings, config) -> torch.Tensor:
    """The released code's form: a word's (a sentence's) best frame, and half as much of that frame's neighbour.

    Text to video only: <t,v_j> + ½·s_jn·<t,v_n>, j the best frame of t, n the frame most like it; the other direction,
    Σ_f c_f max_t <t,f>, is as without attention. (Bt,Bv)
    """
    frames = video.video_embeds
    likeness = frames @ frames.mT
    likeness = likeness.masked_fill(torch.eye(likeness.shape[-1]).bool().to(frames.device), float("-inf"))
    close, neighbour = likeness.max(-1)  # (Bv,F)
    scores, one = [], torch.ones_like(text.sentence_embeds[:, :1])
    tokens_and_weights = [
        (text.word_embeds, text.word_weights, text.word_mask),
        (text.sentence_embeds[:, None], one, one.bool()),
    ]
    for tokens, weights, mask in tokens_and_weights:
        products = torch.einsum("atd,bfd->abtf", tokens, frames)
        best, index = products.max(-1)  # (Bt,Bv,T)
        rows = torch.arange(len(frames), device=frames.device)[None, :, None]
        beside = products.gather(-1, neighbour[rows, index][..., None])[..., 0]
        to_video = torch.einsum("abt,at->ab", best + 0.5 * close[rows, index] * beside, weights)
        by_frame = products.masked_fill(~mask[:, None, :, None], float("-inf")).max(2).values
        scores.append((to_video + torch.einsum("abf,bf->ab", by_frame, video.frame_weights)) / 2)
    return (scores[0] + scores[1]) / 2


class MemoryObjective(Objective):
    """NegNCE in which the last `size` pairs are further negatives: old videos of each text, old texts of each video.

    `fresh`: the old pairs are encoded anew at every step, so they are as new as the batch. `anchors`: the softmax of a
    text moves this text alone, that of a video this video alone (MoCo's rule). Without it the batch's matches are
    pulled together from both sides by the whole softmax, and what is remembered can push from one side only.
    """

    size, fresh, anchors = 256, False, False

    def __init__(self, model):
        super().__init__(model)
        self.kept: dict[str, torch.Tensor] = {}  # of the last pairs, oldest first
        self.inputs: dict[str, torch.Tensor] = {}  # of this batch

    def forward(self, gradients=None, **batch):
        self.inputs = {f"input.{name}": tensor for name, tensor in batch.items()}
        return super().forward(gradients, **batch)

    def contrast(self, text, video, logit_scale, video_ids, caption_ids):
        config, scale = self.model.config, logit_scale.exp()
        scores = similarity(text, video, config)
        own, duplicates = scores.detach().diagonal(), duplicate_mask(video_ids)
        sides = [scores, scores.T]
        if self.anchors:
            sides = [similarity(text, detached(video), config), similarity(detached(text), video, config).T]
        hard = hard_negatives(scores, config.negative_margin, duplicates)
        logits, hards = [masked(side * scale, duplicates) for side in sides], [hard, hard.T]
        if self.kept:
            old_text, old_video, matched = self.remembered()
            same = video_ids[:, None] == self.kept["input.video_ids"]
            for place, side in enumerate((similarity(text, old_video, config), similarity(old_text, video, config).T)):
                logits[place] = torch.cat([logits[place], masked(side * scale, same)], 1)
                hards[place] = torch.cat([hards[place], ((side > own[:, None]) | (side > matched)) & ~same], 1)
        if self.size:
            self.remember({**text.flat("text"), **video.flat("video"), "matched": own, **self.inputs})
        target = torch.arange(len(scores), device=scores.device)
        pulled = (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target)) / 2
        pushed = (push_away(logits[0], hards[0]) + push_away(logits[1], hards[1])) / 2
        loss = config.positive_weight * pulled + config.negative_weight * pushed
        others = (scores.sum() - own.sum()) / (scores.numel() - len(own))
        return {"contrastive": loss, "scale": scale, "matches": own.mean(), "others": others}

    def remember(self, new: dict[str, torch.Tensor]) -> None:
        """Add a batch, forget the oldest."""
        for name, tensor in new.items():
            whole = torch.cat([self.kept[name], tensor.detach()]) if name in self.kept else tensor.detach()
            self.kept[name] = whole[-self.size :]

    @torch.no_grad()
    def remembered(self) -> tuple[TextEmbeddings, VideoEmbeddings, torch.Tensor]:
        """Texts, videos and the similarity of each with its own."""
        text, video = TextEmbeddings.from_flat(self.kept, "text"), VideoEmbeddings.from_flat(self.kept, "video")
        if not self.fresh:
            return text, video, self.kept["matched"]
        text = self.model.get_text_features(**{name: self.kept[f"input.{name}"] for name in TEXT_INPUTS})
        video = self.model.get_video_features(self.kept["input.pixel_values"], self.kept["input.video_mask"])
        return text, video, similarity(text, video, self.model.config).diagonal()


class NoMemory(MemoryObjective):
    size = 0


class FreshMemory(MemoryObjective):
    fresh = True


class AnchoredMemory(MemoryObjective):
    anchors = True


class FreshAnchoredMemory(MemoryObjective):
    fresh, anchors = True, True


def detached(embeddings):
    return type(embeddings)(*(part.detach() for part in embeddings))


def masked(logits: torch.Tensor, no_negatives: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(no_negatives, float("-inf"))


OBJECTIVES = {
    "model": Objective,
    "authors": AuthorsObjective,
    "memory of 0": NoMemory,
    "memory of 256": MemoryObjective,
    "memory, encoded anew": FreshMemory,
    "memory, anchors alone": AnchoredMemory,
    "memory, encoded anew, anchors alone": FreshAnchoredMemory,
}

"""The lower bound that makes search cheap: one vector per video, a few per query, and a guarantee (docs/method.md §9).

With frame weights c ≥ 0, Σc = 1, the coarse vector of a video is v̄ = Σ_j c_j attended_j; with word weights w ≥ 0,
Σw = 1, q = Σ_m w_m t_m and the sentence s, each of these is at most the exact similarity (a mean is at most a maximum):

    tokenwise, both granularities   max_m ¼(q + t_m + 2s)·v̄
    tokenwise, words alone          max_m ½(q + t_m)·v̄
    tokenwise, sentence alone       s·v̄
    pooled                          query·v̄        (query = ½(q + s), q, or s by granularity)
    mean                            s·v̄ exactly     (v̄ = unit(mean frame))

Each is a maximum over inner products with one vector per video, so any single-vector engine can serve it.
"""

import torch
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import masked_mean_direction, unit, wide


def bound_queries(text: TextEmbeddings, config) -> tuple[Tensor, Tensor]:
    """x_m of the bound: vectors (B,M,D) and their mask (B,M) bool; bound[i,j] = max_m x[i,m]·v̄[j] over the mask."""
    sentence = text.sentence_embeds.unsqueeze(1)
    only_one = torch.ones(len(sentence), 1, dtype=torch.bool)
    if config.interaction == "mean" or config.text_granularity == "sentence":
        return sentence, only_one
    words = torch.einsum("bt,btd->bd", text.word_weights, text.word_embeds).unsqueeze(1)
    with_sentence = config.text_granularity == "both"
    if config.similarity_form == "pooled":
        return ((words + sentence) / 2 if with_sentence else words), only_one
    each_word = (words + text.word_embeds) / 2
    return ((each_word + sentence) / 2 if with_sentence else each_word), text.word_mask


def coarse_queries(text: TextEmbeddings, config, coarse: str) -> Tensor:
    """The vectors that scan for one text (a batch of 1): "bound": all its x_m (M,D); "pooled": their mean (1,D) by w_m.

    The mean bounds a little lower (a mean is at most a maximum), at a fraction of the work.
    """
    vectors, mask = bound_queries(text, config)
    vectors = vectors[0][mask[0]]
    if coarse == "bound" or len(vectors) == 1:
        return vectors
    return text.word_weights[:, text.word_mask[0]] @ vectors


def coarse_vectors(video: VideoEmbeddings, config) -> Tensor:
    """v̄ (B,D) in float32 or wider; means in bfloat16 lose 2-3 points of recall."""
    frames = wide(video.attended_embeds)
    if config.interaction == "mean":
        return masked_mean_direction(unit(frames), video.video_mask)
    return torch.einsum("bf,bfd->bd", video.frame_weights.to(frames.dtype), frames)


def compress_frames(video: VideoEmbeddings, groups: int) -> VideoEmbeddings:
    """Neighbouring frames averaged by weight into `groups` frames that carry the sum of their weights.

    similarity(compressed) lies between the bound and the exact similarity (Jensen again). (B,F,D) -> (B,groups,D).
    """
    frames = video.video_mask.shape[1]
    group_of = torch.arange(frames) * min(groups, frames) // frames
    member = torch.nn.functional.one_hot(group_of).to(video.frame_weights.dtype)  # (F,G)
    weights = video.frame_weights @ member
    joined = torch.einsum("bf,fg,bfd->bgd", video.frame_weights, member, wide(video.attended_embeds))
    joined = joined / weights.clamp(min=1e-9).unsqueeze(-1)
    mask = (video.video_mask.to(member.dtype) @ member) > 0
    return VideoEmbeddings(joined, joined, weights, mask)

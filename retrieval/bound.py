"""The lower bound that makes search cheap: one vector per video, one per query, a guarantee (docs/method.md §9).

With frame weights c ≥ 0, Σc = 1, the coarse vector of a video is v̄ = Σ_j c_j attended_j. With word weights w ≥ 0,
Σw = 1, and q = Σ_m w_m t_m, a mean is at most a maximum, so that in Eq. 3 both maxima can become means:

    ½(Σ_m w_m max_j <t_m, v_j> + Σ_j c_j max_m <t_m, v_j>)  ≥  q·v̄

and with the sentence s averaged in, ½(q + s)·v̄. The same query bounds both forms of the similarity, `tokenwise` and
`pooled`; for `interaction="mean"` s·v̄ is the score itself (v̄ = unit(mean frame)). Any engine for inner products of
single vectors can therefore rank by a bound of the exact score.
"""

import torch
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, pooled_words
from dmae.modeling_dmae.vectors_dmae import masked_mean_direction, unit, wide


def coarse_queries(text: TextEmbeddings, config) -> Tensor:
    """x (B,D) with x·v̄ ≤ similarity(text, video, config)."""
    sentence = wide(text.sentence_embeds)
    if config.interaction == "mean" or config.text_granularity == "sentence":
        return sentence
    words = pooled_words(text.word_embeds, text.word_weights, text.word_mask)
    return (words + sentence) / 2 if config.text_granularity == "both" else words


def coarse_vectors(video: VideoEmbeddings, config) -> Tensor:
    """v̄ (B,D) in float32 or wider; means in bfloat16 lose 2-3 points of recall."""
    frames = wide(video.attended_embeds)
    if config.interaction == "mean":
        return masked_mean_direction(unit(frames), video.video_mask)
    return torch.einsum("bf,bfd->bd", video.frame_weights.to(frames.dtype), frames)

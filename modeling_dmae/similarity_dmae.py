"""The one similarity that training, evaluation and re-ranking call: embeddings and masks -> (Bt,Bv) (Eq. 3)."""

import torch
from torch import Tensor

from .embeddings_dmae import TextEmbeddings, VideoEmbeddings
from .fused_dmae import FusedInteraction, fused_pays
from .interaction_dmae import DEFAULT_CHUNK_BYTES, MaxInteraction, max_scores
from .vectors_dmae import masked_mean_direction, require_finite, require_valid_rows, unit, wide

NO_WORDS = "give every text at least one word (an empty or punctuation-free caption cannot be matched)"
NO_FRAMES = "give every video at least one decoded frame, or leave it out of the batch"


def similarity(text: TextEmbeddings, video: VideoEmbeddings, config, chunk_bytes: int | None = None) -> Tensor:
    """Eq. 3 in the form that `config` names. -> (Bt,Bv), float32 or wider, unscaled.

    interaction="mean": <unit(mean frame), sentence>. Otherwise, over `attended_embeds`: the words' score, the
    sentence's score (one token of weight 1), or their average (`text_granularity`, R13), each with
    `similarity_form` "tokenwise" (R4) or "pooled". Reads no parameter and nothing of `video` but attended_embeds,
    frame_weights and video_mask. `chunk_bytes` bounds the working memory; the result does not depend on it.

    Raises `ValueError` for rows without a valid word or frame, NaN or infinity, and shapes that do not fit.
    """
    check_embeddings(text, video)
    with torch.autocast(video.attended_embeds.device.type, enabled=False):
        scores = checked_similarity(text, video, config, chunk_bytes)
    # NaN or infinity in any frame reaches its scores, so frames, the largest input, are read only once
    if not torch.isfinite(scores.detach().sum()):
        require_finite(video.attended_embeds, "video_embeds", video.video_mask)
    return scores


def checked_similarity(text: TextEmbeddings, video: VideoEmbeddings, config, chunk_bytes: int | None) -> Tensor:
    """`similarity` of inputs that fit together."""
    sentence, words, word_weights, word_mask = text
    _, frames, frame_weights, video_mask = video
    if config.interaction == "mean":
        return mean_interaction(sentence, frames, video_mask)
    if config.text_granularity == "sentence":
        return pooled_interaction(sentence, frames, frame_weights, video_mask, chunk_bytes)
    with_sentence = config.text_granularity == "both"
    if config.similarity_form == "pooled":
        query = pooled_words(words, word_weights, word_mask)
        query = (query + wide(sentence)) / 2 if with_sentence else query
        return pooled_interaction(query, frames, frame_weights, video_mask, chunk_bytes)
    sentence = sentence if with_sentence else None
    return token_interaction(
        words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes, sentence_embeds=sentence
    )


def token_interaction(
    word_embeds: Tensor,
    video_embeds: Tensor,
    word_weights: Tensor,
    frame_weights: Tensor,
    word_mask: Tensor,
    video_mask: Tensor,
    chunk_bytes: int | None = None,
    sentence_embeds: Tensor | None = None,
) -> Tensor:
    """s[i,j] = ½(Σ_t w_t max_f <t,f> + Σ_f c_f max_t <t,f>)  (Eq. 3, R4). (Bt,T,D),(Bv,F,D) -> (Bt,Bv), unscaled.

    Weights sum to 1 over their mask and are exactly 0 outside. The (Bt,Bv,T,F) intermediate is never whole in memory:
    chunks take about `chunk_bytes`, exact in value and gradient. Ties of a max go to the first index. float64 stays
    float64, narrower floats are computed in float32. Where no gradient is wanted, memory beyond the inputs stays
    bounded for any number of videos. With sentence_embeds (Bt,D), the sentence's own score is averaged in (R13).
    """
    words, frames = wide(word_embeds), video_embeds  # the kernels read no word outside the mask
    word_weights, frame_weights = word_weights.to(words.dtype), frame_weights.to(words.dtype)
    chunk_bytes = chunk_bytes or DEFAULT_CHUNK_BYTES
    learns = any(tensor.requires_grad for tensor in (words, frames, word_weights, frame_weights))
    if not (torch.is_grad_enabled() and (learns or (sentence_embeds is not None and sentence_embeds.requires_grad))):
        sentences = None if sentence_embeds is None else sentence_embeds.to(words.dtype)
        return max_scores(words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes, sentences)
    if sentence_embeds is not None:
        score = token_interaction(words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes)
        return (score + pooled_interaction(sentence_embeds, frames, frame_weights, video_mask, chunk_bytes)) / 2
    frames = wide(frames)
    if not bool(video_mask.all()):
        frames = torch.where(video_mask[..., None], frames, 0.0)
    frames = frames.to(words.dtype)
    if fused_pays(words, frames):
        return FusedInteraction.apply(words, frames, word_weights, frame_weights, word_mask, video_mask)
    return MaxInteraction.apply(words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes)


def pooled_words(word_embeds: Tensor, word_weights: Tensor, word_mask: Tensor) -> Tensor:
    """Σ_t w_t word_t. (B,T,D),(B,T) -> (B,D). W_TA S needs no more than this one query when words pool first."""
    words = torch.where(word_mask[..., None], wide(word_embeds), 0.0)
    return torch.einsum("bt,btd->bd", word_weights.to(words.dtype), words)


def pooled_interaction(
    query: Tensor, video_embeds: Tensor, frame_weights: Tensor, video_mask: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """s[i,j] = ½(max_f <q_i,f> + Σ_f c_f <q_i,f>)  (Eq. 3 as printed, one query per text). (Bt,D),(Bv,F,D) -> (Bt,Bv).

    This is `token_interaction` of texts of one token with weight 1, so a sentence is scored by it too.
    """
    ones = torch.ones(len(query), 1, dtype=wide(query).dtype, device=query.device)
    return token_interaction(query[:, None], video_embeds, ones, frame_weights, ones.bool(), video_mask, chunk_bytes)


def mean_interaction(sentence_embeds: Tensor, video_embeds: Tensor, video_mask: Tensor) -> Tensor:
    """s[i,j] = <sentence_i, unit(mean over valid frames of unit(f))>, CLIP4Clip's meanP. (Bt,D),(Bv,F,D) -> (Bt,Bv)."""
    return wide(sentence_embeds) @ masked_mean_direction(unit(wide(video_embeds)), video_mask).mT


def paired_interaction(query: Tensor, video_embeds: Tensor, frame_weights: Tensor, video_mask: Tensor) -> Tensor:
    """S(q,v) = ½(max_f <q,f> + Σ_f c_f <q,f>) of matched pairs (docs/method.md §6). (…,B,D),(B,F,D),(B,F) -> (…,B)."""
    frames = torch.where(video_mask[..., None], wide(video_embeds), 0.0)
    products = torch.einsum("...bd,bfd->...bf", wide(query), frames)
    best = products.masked_fill(~video_mask, float("-inf")).max(-1).values
    return (best + (frame_weights * products).sum(-1)) / 2


def mean_paired_interaction(query: Tensor, video_embeds: Tensor, video_mask: Tensor) -> Tensor:
    """S(q,v) = <q, unit(mean over valid frames)> of matched pairs, for "mean". (…,B,D),(B,F,D) -> (…,B)."""
    return (wide(query) * masked_mean_direction(wide(video_embeds), video_mask)).sum(-1)


def word_frame_products(text: TextEmbeddings, video: VideoEmbeddings) -> Tensor:
    """<word, attended frame> of every text with every video, 0 at padding. -> (Bt,Bv,T,F), whole: for a few pairs."""
    words = torch.where(text.word_mask[..., None], wide(text.word_embeds), 0.0)
    frames = torch.where(video.video_mask[..., None], wide(video.attended_embeds), 0.0)
    return torch.einsum("atd,bfd->abtf", words, frames)


def check_embeddings(text: TextEmbeddings, video: VideoEmbeddings) -> None:
    """Raises `ValueError` for what cannot be scored: empty rows, NaN in a text, different widths."""
    if text.sentence_embeds.shape[-1] != video.attended_embeds.shape[-1]:
        raise ValueError(
            f"texts are {text.sentence_embeds.shape[-1]} wide and videos {video.attended_embeds.shape[-1]}; "
            f"encode both with the same model"
        )
    for name, embeds, mask in [
        ("word_mask", text.word_embeds, text.word_mask),
        ("video_mask", video.attended_embeds, video.video_mask),
    ]:
        if embeds.shape[:2] != mask.shape:
            raise ValueError(
                f"{name} is {tuple(mask.shape)}, its embeddings are {tuple(embeds.shape)}; give one per token"
            )
    require_valid_rows(text.word_mask, "word_mask", NO_WORDS)
    require_valid_rows(video.video_mask, "video_mask", NO_FRAMES)
    require_finite(text.sentence_embeds, "sentence_embeds")
    require_finite(text.word_embeds, "word_embeds", text.word_mask)

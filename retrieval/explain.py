"""What a score is made of: one number per word and frame that add up to it, for every interaction.

A max takes one entry, a mean a share of every entry: so the similarity of one text and one video is a sum over (word,
frame) pairs, most of them 0 under token interaction. A page that shows these numbers shows the score itself.
"""

import torch
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, pooled_words
from dmae.modeling_dmae.vectors_dmae import unit, wide


def score_parts(text: TextEmbeddings, video: VideoEmbeddings, config) -> Tensor:
    """One text, B videos -> (B,T+1,F), `parts.sum((1, 2)) == similarity(text, video, config)[0]`; 0 at padding.

    Row t < T is word t, row T the sentence.
    """
    sentence, words, word_weights, word_mask = (tensor[0] for tensor in text)
    frames, mask = wide(video.attended_embeds), video.video_mask
    frames = torch.where(mask[..., None], frames, 0.0)
    words = torch.where(word_mask[:, None], wide(words), 0.0)
    products = (frames @ torch.cat([words, wide(sentence)[None]]).T).mT
    by_word, by_sentence = products[:, :-1], products[:, -1:]
    if config.interaction == "mean":
        return _beside(torch.zeros_like(by_word), _mean_parts(sentence, frames, mask))
    weights, none = video.frame_weights, torch.zeros_like(by_word)
    whole = torch.ones(1, dtype=word_weights.dtype)
    if config.text_granularity == "sentence":
        return _beside(none, _max_parts(by_sentence, whole, weights, mask, whole.bool()))
    share = 0.5 if config.text_granularity == "both" else 1.0
    if config.similarity_form == "pooled":
        pooled = pooled_words(text.word_embeds, text.word_weights, text.word_mask)[0]
        query = share * pooled + (1 - share) * wide(sentence)
        kept = _pooled_share(torch.einsum("d,bfd->bf", query, frames), weights, mask)[:, None]
        return _beside(share * by_word * word_weights[:, None] * kept, (1 - share) * by_sentence * kept)
    spoken = _max_parts(by_word, word_weights, weights, mask, word_mask)
    return _beside(share * spoken, (1 - share) * _max_parts(by_sentence, whole, weights, mask, whole.bool()))


def best_frames(text: TextEmbeddings, video: VideoEmbeddings, config) -> Tensor:
    """Per video, the frame that gives most of its score. -> (B,) int64; equal ones: the first."""
    shares = score_parts(text, video, config).sum(1)
    return shares.masked_fill(~video.video_mask, float("-inf")).argmax(1)


def _beside(words: Tensor, sentence: Tensor) -> Tensor:
    return torch.cat([words, sentence], 1)


def _mean_parts(sentence: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """<s, unit(m)> with m the mean of the unit frames is Σ_f <s, unit(f)> / (n‖m‖). -> (B,1,F)."""
    frames = unit(frames)
    count = mask.sum(1, keepdim=True)
    mean = frames.sum(1) / count
    length = mean.norm(dim=1, keepdim=True)
    inverse = torch.where(length >= 1e-6, 1 / (count * length), torch.zeros_like(length))  # as `unit` does
    return (torch.einsum("d,bfd->bf", wide(sentence), frames) * inverse)[:, None]


def _pooled_share(products: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """½(max_f x_f + Σ_f c_f x_f) = Σ_f k_f x_f with k_f = ½([f is the best] + c_f). (B,F) -> (B,F)."""
    best = products.masked_fill(~mask, float("-inf")).argmax(1, keepdim=True)
    return (torch.zeros_like(products).scatter_(1, best, 1.0) + weights) / 2


def _max_parts(products: Tensor, word_weights: Tensor, weights: Tensor, mask: Tensor, word_mask: Tensor) -> Tensor:
    """½(Σ_t w_t max_f x_tf + Σ_f c_f max_t x_tf), each max at its place. (B,T,F) -> (B,T,F)."""
    best_frame = products.masked_fill(~mask[:, None], float("-inf")).argmax(2, keepdim=True)
    best_word = products.masked_fill(~word_mask[:, None], float("-inf")).argmax(1, keepdim=True)
    taken = torch.zeros_like(products).scatter_(2, best_frame, word_weights[:, None].expand_as(best_frame).clone())
    taken = taken + torch.zeros_like(products).scatter_(1, best_word, weights[:, None].clone())
    return taken * products / 2

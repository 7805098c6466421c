"""What a model sees in matched pairs: word-frame products, and what TPM masks. Numbers only; pages are elsewhere."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from dmae.inference.embedding import item_video
from dmae.modeling_dmae.similarity_dmae import word_frame_products


class Match(NamedTuple):
    """A caption's word pieces against a clip's frames."""

    words: list[str]
    frames: torch.Tensor  # (F,3,H,W) uint8, as they are shown
    timestamps: list[float]  # seconds
    products: np.ndarray  # (words, F), the word-frame products that the similarity takes its maxima of


class Masked(NamedTuple):
    """What TPM masks of one pair: (piece, masked?) in the order of the caption, and the visual tokens' weights."""

    pieces: list[tuple[str, bool]]
    frames: torch.Tensor  # (F,3,H,W) uint8
    positions: torch.Tensor  # (P,) frame-major position of each visual token
    weights: torch.Tensor  # (P,), sum 1
    masked: torch.Tensor  # (P,) bool


@torch.no_grad()
def word_frame_match(model, processor, caption: str, item: dict) -> Match:
    """What the token interaction of one caption and one video sees."""
    clip, batch = _pair(model, processor, caption, item)
    seen = {"pixel_values", "video_mask"}
    text = model.get_text_features(**{name: value for name, value in batch.items() if name not in seen})
    video = model.get_video_features(**{name: batch[name] for name in seen})
    products = word_frame_products(text, video)[0, 0].float().cpu().numpy()
    products = products[text.word_mask[0].cpu().numpy(), : len(clip.frames)]
    shown = slice(None)
    if model.config.sees_windows:  # one vector of all frames: the middle one stands for them
        shown = slice(len(clip.frames) // 2, len(clip.frames) // 2 + 1)
    words = [word.strip() for word in pieces(processor, caption)]
    return Match(words, clip.frames[shown], list(clip.timestamps[shown]), products)


@torch.no_grad()
def masked_match(model, processor, caption: str, item: dict) -> Masked:
    """Which words and visual tokens TPM masks in a pair. ValueError for a model without partial order."""
    if not model.config.partial_order:
        raise ValueError(
            "this model was built with partial_order=False: it masks no tokens, so there is nothing to show"
        )
    clip, batch = _pair(model, processor, caption, item)
    text, _, tokens = model.encode_pairs(**batch)
    _, text_keep, visual_weights, visual_keep = model.partial_order_masks(text, tokens)
    left, shown, mask = iter(pieces(processor, caption)), [], tokens.text_mask[0]
    for is_word, stays in zip(batch["word_mask"][0][mask].tolist(), text_keep[0][mask].tolist()):
        shown.append((next(left) if is_word else " [sentence]", not stays))  # the end token stands for the sentence
    return Masked(shown, clip.frames, tokens.positions[0], visual_weights[0], ~visual_keep[0])


def pieces(processor, caption: str) -> list[str]:
    """The word pieces as they stand in the caption, each with the space before it."""
    encoded = processor.tokenizer(
        caption,
        truncation=True,
        max_length=processor.max_words,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        split_special_tokens=True,
    )
    ends = [end for (_, end), special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"]) if not special]
    return [caption[start:end] for start, end in pairwise([0, *ends])]


def _pair(model, processor, caption: str, item: dict):
    """The decoded clip (frames as they are shown) and the batch of one pair that the model takes, on its device."""
    sampler = processor.feature_extractor
    clip = sampler.decode(item_video(item), item.get("start"), item.get("end"))
    video = sampler.pad(clip)
    batch = dict(processor(text=[caption], return_tensors="pt"))
    batch |= {name: torch.as_tensor(video[name])[None] for name in ("pixel_values", "video_mask")}
    return clip, {name: value.to(model.device) for name, value in batch.items()}

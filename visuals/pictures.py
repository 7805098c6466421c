"""Pages that show what a model does: results of two models side by side, masked tokens, word-frame similarities.

Each function returns one self-contained HTML page (frames are inlined, nothing is loaded from elsewhere); write it with
`Path("page.html").write_text(page, encoding="utf-8")`. Items are dicts {video_id, video or path, start, end}.
"""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from dmae.inference.embedding import item_path
from dmae.modeling_dmae.similarity_dmae import word_frame_products

STYLE = """
:root { color-scheme: light dark; --line: #8886; --right: #1a9850; --mark: #e66101; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; } p { margin: .3rem 0; }
small, .quiet { opacity: .75; }
.row { display: flex; gap: .7rem; align-items: flex-start; margin: .4rem 0; flex-wrap: wrap; }
.name { width: 7rem; flex: none; overflow-wrap: anywhere; font-weight: 600; }
.card { border: 3px solid var(--line); border-radius: 6px; padding: .3rem; }
.card.right { border-color: var(--right); }
.strip { display: flex; gap: 2px; }
img, video { display: block; border-radius: 3px; image-rendering: auto; }
s { text-decoration: line-through 3px var(--mark); }
table { border-collapse: collapse; }
td, th { padding: .25rem .45rem; text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
td.best { outline: 2px solid var(--mark); outline-offset: -2px; }
.heat { position: relative; } .grid { position: absolute; inset: 0; display: grid; }
.grid i { opacity: .5; }
.grid i.masked { background-image: linear-gradient(to top right, #0000 48%, #e66101 48% 52%, #0000 52%); }
.legend { display: inline-block; width: 9rem; height: .8rem; vertical-align: middle; }
"""
COLOURS = np.array([[0, 32, 76], [64, 77, 107], [124, 123, 120], [187, 175, 113], [255, 233, 69]])  # dark blue … yellow


def page(title: str, body: str, script: str = "") -> str:
    """A complete HTML document."""
    script = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n{script}</body></html>\n"
    )


def side_by_side_page(
    queries: Sequence[str],
    gold: Sequence[int],
    items: Sequence[dict],
    similarities: dict[str, np.ndarray],
    frame_sampler,
    top_k: int = 3,
    frames_shown: int = 3,
) -> str:
    """Fig. 5: the best `top_k` videos of each query, one row per model, the right video in green.

    similarities: {model's name: (queries, videos)}; gold: the right video of each query.
    """
    strips = Strips(items, frame_sampler, frames_shown)
    body = []
    for number, (query, right) in enumerate(zip(queries, gold, strict=True)):
        body.append(f"<h2>“{html.escape(query)}”</h2>")
        for name, scores in similarities.items():
            cards = []
            for place, video in enumerate(np.argsort(-scores[number], kind="stable")[:top_k], start=1):
                state, tick = (" right", " ✓ right") if video == right else ("", "")
                label = f"{place}. {scores[number, video]:.3f}{tick}<br><small>{_id(items[video])}</small>"
                cards.append(f'<div class="card{state}">{strips.html(video)}<p>{label}</p></div>')
            rank = 1 + int((scores[number] > scores[number, right]).sum())
            label = f'{html.escape(name)}<br><small class="quiet">right one: rank {rank}</small>'
            body.append(f'<div class="row"><div class="name">{label}</div>{"".join(cards)}</div>')
    return page(f"The top {top_k} of {' and '.join(similarities)}", "\n".join(body))


@torch.no_grad()
def masked_tokens_page(model, processor, pairs: Sequence[tuple[str, dict]]) -> str:
    """Fig. 6: which words and visual tokens TPM masks in matched pairs, and the weights it goes by.

    Masked words are struck through; each frame shows its tokens' weights (dark blue: small, yellow: large), masked ones
    crossed out. pairs: (caption, item). Raises ValueError for a model without partial order.
    """
    if not model.config.partial_order:
        raise ValueError(
            "this model was built with partial_order=False: it masks no tokens, so there is nothing to show"
        )
    legend = f'<span class="legend" style="background:{_gradient()}"></span>'
    body = [f"<p>Weights of the visual tokens: {legend} small … large, per video; crossed out: masked.</p>"]
    for caption, item in pairs:
        clip, batch = _pair(model, processor, caption, item)
        text, _, tokens = model.encode_pairs(**batch)
        _, text_keep, visual_weights, visual_keep = model.partial_order_masks(text, tokens)
        words = _struck(_pieces(processor, caption), batch["word_mask"][0], tokens.text_mask[0], text_keep[0])
        body.append(f"<h2>{_id(item)}</h2><p>{words}</p>")
        shown = [
            _heat_map(model.config, frame, number, tokens.positions[0], visual_weights[0], ~visual_keep[0])
            for number, frame in enumerate(clip.frames)
        ]
        body.append(f'<div class="row">{"".join(shown)}</div>')
    return page("What the partial-margin triplets mask", "\n".join(body))


class Match(NamedTuple):
    """A caption's word pieces against a clip's frames."""

    words: list[str]
    frames: torch.Tensor  # (F,3,H,W) uint8, as they are shown
    timestamps: list[float]  # seconds
    products: np.ndarray  # (words, F), the word-frame products that the similarity takes its maxima of


@torch.no_grad()
def word_frame_match(model, processor, caption: str, item: dict) -> Match:
    """What the token interaction of one caption and one video sees."""
    clip, batch = _pair(model, processor, caption, item)
    text, video = model.get_text_features(**_only(batch, "text")), model.get_video_features(**_only(batch, "video"))
    products = word_frame_products(text, video)[0, 0].float().cpu().numpy()
    products = products[text.word_mask[0].cpu().numpy(), : len(clip.frames)]
    return Match([word.strip() for word in _pieces(processor, caption)], clip.frames, list(clip.timestamps), products)


def word_frame_page(model, processor, pairs: Sequence[tuple[str, dict]]) -> str:
    """Similarity of every word piece with every (attended) frame of a match; each word's best frame is outlined."""
    body = []
    for caption, item in pairs:
        match = word_frame_match(model, processor, caption, item)
        heads = "".join(
            f"<th>{_image(frame, 72)}<small>{seconds:.1f} s</small></th>"
            for frame, seconds in zip(match.frames, match.timestamps)
        )
        rows = "".join(
            _word_row(word, row, match.products) for word, row in zip(match.words, match.products, strict=True)
        )
        body.append(f"<h2>“{html.escape(caption)}” · {_id(item)}</h2><table><tr><th></th>{heads}</tr>{rows}</table>")
    return page("Words and frames", "\n".join(body))


def _word_row(word: str, values: np.ndarray, products: np.ndarray) -> str:
    low, high = products.min(), products.max()
    best, cells = values.argmax(), []
    for frame, value in enumerate(values):
        share = (value - low) / max(high - low, 1e-9)
        ink = "#000" if share > 0.5 else "#fff"
        state = ' class="best"' if frame == best else ""
        cells.append(f'<td{state} style="background:{_colour(share)};color:{ink}">{value:.2f}</td>')
    return f"<tr><th>{html.escape(word)}</th>{''.join(cells)}</tr>"


def _pair(model, processor, caption: str, item: dict):
    """The decoded clip (frames as they are shown) and the batch of one pair that the model takes, on its device."""
    sampler = processor.feature_extractor
    clip = sampler.decode(item_path(item), item.get("start"), item.get("end"))
    video = sampler(item_path(item), start=item.get("start"), end=item.get("end"))
    batch = dict(processor(text=[caption], return_tensors="pt"))
    batch |= {name: torch.as_tensor(video[name])[None] for name in ("pixel_values", "video_mask")}
    return clip, {name: value.to(model.device) for name, value in batch.items()}


def _only(batch: dict, side: str) -> dict:
    video = ("pixel_values", "video_mask")
    return {name: value for name, value in batch.items() if (name in video) == (side == "video")}


def _pieces(processor, caption: str) -> list[str]:
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


def _struck(pieces: list[str], word_mask: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> str:
    """The caption's tokens that TPM may mask, masked ones struck through; the end token stands for the sentence."""
    left, shown = iter(pieces), []
    for is_word, stays in zip(word_mask[mask].tolist(), keep[mask].tolist()):
        piece = html.escape(next(left) if is_word else " [sentence]")
        shown.append(piece if stays else f"<s>{piece}</s>")
    return "".join(shown)


def _heat_map(config, frame: torch.Tensor, number: int, positions, weights, masked) -> str:
    """One frame under the weights of its tokens: a grid for patches, one cell for models that read whole frames."""
    patches = config.patches_in_frame if config.temporal_input == "patch" else 0
    side = round(patches**0.5) or 1
    mine = positions // (1 + patches) == number
    places, shares = (positions[mine] % (1 + patches)).tolist(), (weights / weights.max())[mine].tolist()
    gone = dict(zip(places, masked[mine].tolist()))
    cells = {
        place: f'<i{" class=masked" if gone[place] else ""} style="background-color:{_colour(share)}"></i>'
        for place, share in zip(places, shares)
    }
    first = 1 if patches else 0  # place 0 is the frame's own token; patches that were not kept stay bare
    grid = "".join(cells.get(place, "<i></i>") for place in range(first, first + side * side))
    label = f"{'[CLS]' if patches else 'frame'} {float(weights[mine][0]):.3f}"
    columns = f"grid-template-columns:repeat({side},1fr)"
    return (
        f'<div><div class="heat">{_image(frame, 132)}<div class="grid" style="{columns}">{grid}</div></div>'
        f"<small>{f'<s>{label}</s>' if gone[0] else label}</small></div>"
    )


class Strips:
    """A few frames of each video in a row, decoded once."""

    def __init__(self, items: Sequence[dict], frame_sampler, count: int):
        self.items, self.frame_sampler, self.count, self.done = items, frame_sampler, count, {}

    def html(self, number: int) -> str:
        if number not in self.done:
            item = self.items[number]
            frames = self.frame_sampler.decode(item_path(item), item.get("start"), item.get("end")).frames
            chosen = np.linspace(0, len(frames) - 1, min(self.count, len(frames))).round().astype(int)
            self.done[number] = f'<div class="strip">{"".join(_image(frames[at], 88) for at in chosen)}</div>'
        return self.done[number]


def _image(frame: torch.Tensor, width: int) -> str:
    """(3,H,W) uint8 -> an inlined picture."""
    return f'<img width="{width}" alt="" src="{png_uri(frame.permute(1, 2, 0).cpu().numpy())}">'


def png_uri(pixels: np.ndarray) -> str:
    """(H,W,3) uint8 -> `data:image/png;base64,…`, without an imaging library."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 per row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + body
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _colour(share: float) -> str:
    place = float(np.clip(share, 0, 1)) * (len(COLOURS) - 1)
    low = min(int(place), len(COLOURS) - 2)
    red, green, blue = (COLOURS[low] + (COLOURS[low + 1] - COLOURS[low]) * (place - low)).round().astype(int)
    return f"rgb({red},{green},{blue})"


def _gradient() -> str:
    return f"linear-gradient(to right,{','.join(_colour(step / 4) for step in range(5))})"


def _id(item: dict) -> str:
    return html.escape(str(item["video_id"]))

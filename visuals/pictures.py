"""Pages that show what a model does: results of two models side by side, masked tokens, word-frame similarities.

Each function returns one self-contained HTML page (frames are inlined, nothing is loaded from elsewhere); write it with
`Path("page.html").write_text(page, encoding="utf-8")`. Items are dicts {video_id, video or path, start, end}.
"""

from collections.abc import Sequence

import numpy as np

from dmae.inference.embedding import item_video
from dmae.visuals.matches import Masked, Match, masked_match, word_frame_match
from dmae.visuals.pages import colour, gradient, picture_uri, render


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
    shown = []
    for number, (query, right) in enumerate(zip(queries, gold, strict=True)):
        models = []
        for name, scores in similarities.items():
            best = np.argsort(-scores[number], kind="stable")[:top_k]
            cards = [
                {
                    "right": video == right,
                    "score": scores[number, video],
                    "pictures": strips[video],
                    "video_id": items[video]["video_id"],
                }
                for video in best
            ]
            rank = 1 + int((scores[number] > scores[number, right]).sum())
            models.append({"name": name, "rank": rank, "cards": cards})
        shown.append({"text": query, "models": models})
    title = f"The top {top_k} of {' and '.join(similarities)}"
    return render("side_by_side.html", title=title, queries=shown)


def masked_tokens_page(model, processor, pairs: Sequence[tuple[str, dict]]) -> str:
    """Fig. 6: which words and visual tokens TPM masks in matched pairs, and the weights it goes by.

    Masked words are struck through; each frame shows its tokens' weights (dark blue: small, yellow: large), masked ones
    crossed out. pairs: (caption, item). Raises ValueError for a model without partial order.
    """
    shown = []
    for caption, item in pairs:
        found = masked_match(model, processor, caption, item)
        frames = [_token_grid(model.config, found, number) for number in range(len(found.frames))]
        shown.append({"video_id": item["video_id"], "pieces": found.pieces, "frames": frames})
    return render("masked_tokens.html", title="What the partial-margin triplets mask", pairs=shown, gradient=gradient())


def word_frame_page(model, processor, pairs: Sequence[tuple[str, dict]]) -> str:
    """Similarity of every word piece with every (attended) frame of a match; each word's best frame is outlined."""
    matches = [
        {"caption": caption, "video_id": item["video_id"]}
        | word_frame_map(word_frame_match(model, processor, caption, item))
        for caption, item in pairs
    ]
    return render("words_and_frames.html", title="Words and frames", matches=matches)


def word_frame_map(match: Match) -> dict:
    """What the macro `word_frame_map` of cards.html shows of a match."""
    low, high = match.products.min(), match.products.max()
    rows = []
    for word, values in zip(match.words, match.products, strict=True):
        shares = (values - low) / max(high - low, 1e-9)
        cells = [
            {"value": value, "best": frame == values.argmax(), "colour": colour(share), "ink": _ink(share)}
            for frame, (value, share) in enumerate(zip(values, shares))
        ]
        rows.append((word, cells))
    pictures = [(picture_uri(frame), seconds) for frame, seconds in zip(match.frames, match.timestamps)]
    return {"pictures": pictures, "rows": rows}


def _ink(share: float) -> str:
    return "#000" if share > 0.5 else "#fff"


def _token_grid(config, found: Masked, number: int) -> dict:
    """One frame under the weights of its tokens: a grid for patches, one cell for models that read whole frames."""
    patches = config.patches_in_frame if config.temporal_input == "patch" else 0
    side = round(patches**0.5) or 1
    mine = found.positions // (1 + patches) == number
    places = (found.positions[mine] % (1 + patches)).tolist()
    shares = (found.weights / found.weights.max())[mine].tolist()
    gone = dict(zip(places, found.masked[mine].tolist()))
    cells = {place: {"colour": colour(share), "masked": gone[place]} for place, share in zip(places, shares)}
    first = 1 if patches else 0  # place 0 is the frame's own token; patches that were not kept stay bare
    return {
        "picture": picture_uri(found.frames[number]),
        "side": side,
        "cells": [cells.get(place) for place in range(first, first + side * side)],
        "label": f"{'[CLS]' if patches else 'frame'} {float(found.weights[mine][0]):.3f}",
        "masked": gone[0],
    }


class Strips:
    """`strips[n]`: a few frames of the n-th video as pictures, decoded once."""

    def __init__(self, items: Sequence[dict], frame_sampler, count: int):
        self.items, self.frame_sampler, self.count, self.done = items, frame_sampler, count, {}

    def __getitem__(self, number: int) -> list[str]:
        if number not in self.done:
            item = self.items[number]
            frames = self.frame_sampler.decode(item_video(item), item.get("start"), item.get("end")).frames
            chosen = np.linspace(0, len(frames) - 1, min(self.count, len(frames))).round().astype(int)
            self.done[number] = [picture_uri(frames[at]) for at in chosen]
        return self.done[number]

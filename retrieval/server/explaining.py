"""The explanation of one hit for the page: the score's own parts, word by frame."""

from typing import NamedTuple

import numpy as np

from dmae.retrieval.combine import Part, combined_scores
from dmae.retrieval.explain import score_parts
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult
from dmae.retrieval.server.searching import Search

LEVELS = 9  # shades; a style attribute per cell would need a page that allows inline styles


class Line(NamedTuple):
    """A word, or the sentence, against every frame. values add up to `total`; shades are 0 to LEVELS."""

    name: str
    total: float
    values: list[float]
    shades: list[int]


class Table(NamedTuple):
    """One query of a search: its score in the window, and the lines that it is the sum of."""

    title: str
    score: float
    weight: float
    times: list[float]
    lines: list[Line]
    totals: list[float]


class Explanation(NamedTuple):
    score: float
    interaction: str
    tables: list[Table]


def explanation(service, index: VideoIndex, search: Search, parts: list[Part], hit: SearchResult) -> Explanation:
    """What the score of a hit is made of."""
    state = index.state
    position = state.snapshot.positions(np.array([hit.row]))
    titles = _titles(service, search)
    tables = [_table(index, state, part, title, position) for part, title in zip(parts, titles)]
    score = tables[0].score if len(parts) == 1 else float(combined_scores(state, parts, position)[0])
    return Explanation(score, index.config.interaction, tables)


def _titles(service, search: Search) -> list[str]:
    wanted, unwanted = search.words()
    titles = [f"“{words}”" for words in [wanted] * bool(wanted)] + [f"without “{words}”" for words in unwanted]
    if search.like is not None:
        titles.append(f"like {service.live.row(search.like)[2]['video_id']}")
    return titles + ([f"like {service.clips.name(search.clip)}"] if search.clip else [])


def _table(index: VideoIndex, state, part: Part, title: str, position: np.ndarray) -> Table:
    video, times = state.snapshot.gather(position), state.snapshot.tensor("timestamps", position)[0]
    values = score_parts(part.query, video, index.config)[0]
    frames = video.video_mask[0].nonzero().flatten().tolist()
    words = part.query.word_mask[0].nonzero().flatten().tolist()
    names = _names(index, title, words)
    rows = [(name, values[word, frames]) for name, word in zip(names, words)] + [("whole sentence", values[-1, frames])]
    rows = [(name, row) for name, row in rows if bool((row != 0).any())] or rows[-1:]
    low, high = (float(bound([float(bound(row)) for _, row in rows])) for bound in (min, max))
    spread = max(high - min(low, 0.0), 1e-9)
    lines = [
        Line(name, float(row.sum()), row.tolist(), [_shade(float(value), spread) for value in row])
        for name, row in rows
    ]
    totals = values[:, frames].sum(0).tolist()
    return Table(title, float(values.sum()), part.weight, [float(times[frame]) for frame in frames], lines, totals)


def _shade(value: float, spread: float) -> int:
    return max(0, min(LEVELS, round(LEVELS * value / spread)))


def _names(index: VideoIndex, title: str, words: list[int]) -> list[str]:
    """The word pieces of a text query; the frames of a clip."""
    if title.startswith("like "):
        return [f"frame {number}" for number, _ in enumerate(words, start=1)]
    text = title[title.index("“") + 1 : -1]
    processor = index.text_processor
    tokens = processor.tokenizer.convert_ids_to_tokens(processor(text=[text])["input_ids"][0])
    return [tokens[word].replace("</w>", "").replace("Ġ", "") for word in words]

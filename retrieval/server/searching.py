"""A search as a page or a program asks for it, and its answer: hits with their file, their fit and their moments."""

import re
import shlex
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

import numpy as np

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval.asking import MAX_RESULTS, check_query, clock, parse_filter
from dmae.retrieval.combine import MINUS_WEIGHT, Part, search_combined
from dmae.retrieval.explain import score_parts
from dmae.retrieval.filters import filtered_ids
from dmae.retrieval.fit import WELL
from dmae.retrieval.index import FUSED_HITS, VideoIndex
from dmae.retrieval.results import SearchResult, video_as_text
from dmae.retrieval.server.live import LiveIndex
from dmae.retrieval.windows import merge_hits

SORTED_HITS = 120  # hits that another order than the best first rearranges
DATES = ("captured", "capture_date", "date", "created", "year")  # columns that say when, the file's own word first
SORTS = ("best", "newest", "longest", "name")
MOMENTS = 6
APART_SECONDS = 3.0  # nearer ones are one moment to a person
BARS = 240  # of a timeline; more windows than this are drawn as the best of their neighbours
MINUS = re.compile(r'(?<!\S)-(?:"([^"]*)"|(\w\S*))')


@dataclass(frozen=True)
class Search:
    """What is looked for; the fields are those of the address, so that an address is a search.

    q: words, `-word` or `-"some words"` for what must not be; like: the row of a video; clip: the key of an upload;
    filter: key=value pairs as in a shell; per_video: moments of one video; text_weight: see `VideoIndex.search`,
    None: the index's own.
    """

    q: str = ""
    like: int | None = None
    clip: str = ""
    filter: str = ""
    sort: str = "best"
    page: int = 1
    size: int = 24
    per_video: int = 1
    text_weight: float | None = None

    def __bool__(self) -> bool:
        return bool(self.q.strip() or self.like is not None or self.clip)

    def query_string(self, **changes) -> str:
        """The address of this search, or of one beside it; what is as always is left out."""
        asked, usual = replace(self, **changes), Search()
        pairs = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
        return urlencode({name: value for name, value in pairs.items() if value != getattr(usual, name)})

    def words(self) -> tuple[str, list[str]]:
        """(wanted words, unwanted ones)."""
        unwanted = [quoted or word for quoted, word in MINUS.findall(self.q)]
        return " ".join(MINUS.sub(" ", self.q).split()), [words for words in unwanted if words.strip()]


@dataclass(frozen=True)
class Moment:
    """A window, or a frame, of a video against the query: seconds and score."""

    start: float
    end: float
    score: float
    at: float  # where to play from


@dataclass(frozen=True)
class Found:
    """A hit with what the page shows beside it. fit: see `retrieval/fit.py`, None for clips."""

    hit: SearchResult
    available: bool
    fit: float | None
    bars: list[Moment] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)


class Searcher:
    """Runs searches over a live index."""

    def __init__(self, live: LiveIndex, background, clips):
        self.live, self.background, self.clips = live, background, clips

    def parts(self, index: VideoIndex, search: Search) -> list[Part]:
        """The queries that a search is made of. ValueError for an empty or over-long one, NotIndexed for a lost one."""
        wanted, unwanted = search.words()
        if not search:
            check_query(wanted)
        if len(unwanted) > 8:
            raise ValueError(f"{len(unwanted)} phrases to leave out; at most 8 are accepted")
        parts = []
        for words, weight in [(wanted, 1.0)] * bool(wanted) + [(words, MINUS_WEIGHT) for words in unwanted]:
            check_query(words)
            parts.append(Part(index.encode_texts([words]), weight))
        if search.like is not None:
            snapshot, position, _ = self.live.row(search.like)
            parts.append(Part(video_as_text(snapshot.gather(np.array([position])))))
        if search.clip:
            parts.append(Part(self.clips.embeddings(search.clip)))
        return parts

    def run(self, search: Search, top_k: int | None = None) -> list[SearchResult]:
        """Hits, best first. `top_k` of them, or those of the search's page and one more."""
        index = self.live.fresh()
        wanted = top_k or min(MAX_RESULTS, search.page * search.size + 1)
        if search.sort != "best":
            wanted = max(wanted, SORTED_HITS)
        filters = parse_filter(shlex_words(search.filter))
        parts = self.parts(index, search)
        if len(parts) == 1 and parts[0].weight > 0:
            weight = index.text_weight if search.text_weight is None else search.text_weight
            words = search.words()[0] if weight else ""  # none where the one part is a video or a clip
            options = {"filter": filters, "hits_per_video": search.per_video}
            hits = index.search_embeddings(parts[0].query, top_k=max(wanted, FUSED_HITS * bool(words)), **options)[0]
            if words:
                hits = index.with_texts(words, hits, weight, filters, parts[0].query)[:wanted]
        else:
            state = index.state
            allowed = filtered_ids(state.snapshot, filters) if filters else None
            hits = search_combined(state, parts, wanted, allowed, search.per_video)
        return in_order(hits, search.sort)

    def found(self, search: Search, hits: list[SearchResult], with_moments: bool = True) -> list[Found]:
        """Hits with their files' state, their fit, and, for the page, their timelines."""
        only_words = search.like is None and not search.clip
        mixed = only_words and bool(search.words()[1])
        parts = self.parts(self.live.index, search) if hits and (with_moments or mixed) else []
        results = []
        for hit in hits:
            well = self._fit(hit, parts if mixed else []) if only_words else None
            bars, moments = self.timeline(parts[0].query, hit) if with_moments else ([], [])
            results.append(Found(hit, self.live.available(hit.path), well, bars, moments))
        return results

    def _fit(self, hit: SearchResult, parts: list[Part]) -> float | None:
        """How well the wanted words fit; 0 for a video that words to leave out fit well."""
        if not parts:
            return self.background.fit(hit.score)
        state = self.live.index.state
        position = state.snapshot.positions(np.array([hit.row]))
        if not len(position):  # deleted since
            return 0.0
        wanted, *unwanted = [self.background.fit(float(state.score(part.query, position)[0])) for part in parts]
        return 0.0 if any((fit or 0.0) >= WELL for fit in unwanted) else wanted

    def timeline(self, query: TextEmbeddings, hit: SearchResult) -> tuple[list[Moment], list[Moment]]:
        """(all windows of the hit's video in order, its best moments): scores of windows, or shares of frames."""
        state = self.live.index.state
        snapshot = state.snapshot
        positions = self.live.windows(snapshot, hit.video_id)
        if not len(positions):  # deleted since
            return [], []
        if len(positions) == 1:
            bars = _frame_bars(state, query, positions)
            return bars, apart(sorted(bars, key=lambda bar: -bar.score))
        pairs = zip(positions.tolist(), state.score(query, positions))
        hits = [snapshot.hit(position, score) for position, score in pairs]
        best = state.results(query, merge_hits(hits, 2 * MOMENTS, 2 * MOMENTS))
        bars = [Moment(one.start, one.end, one.score, one.start) for one in hits]
        return _thinned(bars), apart([Moment(one.start, one.end, one.score, one.moment) for one in best])


def in_order(hits: list[SearchResult], sort: str) -> list[SearchResult]:
    """Hits as they are, or the best SORTED_HITS of them in another order; equal ones stay best first."""
    best = hits[:SORTED_HITS]
    if sort == "newest":
        return sorted(best, key=_date, reverse=True)
    if sort == "longest":
        return sorted(best, key=lambda hit: hit.start - hit.end)
    return sorted(best, key=lambda hit: hit.video_id.casefold()) if sort == "name" else hits


def apart(moments: list[Moment]) -> list[Moment]:
    """The best MOMENTS of them, best first, that begin at least APART_SECONDS from one another."""
    kept: list[Moment] = []
    for moment in moments:
        if all(abs(moment.at - other.at) >= APART_SECONDS for other in kept):
            kept.append(moment)
    return kept[:MOMENTS]


def nothing_fits(found: list[Found]) -> bool:
    """Whether even the best hit scores no more than captions about anything do."""
    return bool(found) and found[0].fit is not None and max(one.fit or 0.0 for one in found) < WELL


def shlex_words(text: str) -> list[str]:
    """`author="Jane Doe" year=2019` -> its words, as a shell reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"the filter {text!r} cannot be read ({error}); close the quotation marks") from error


def reasons(hit: SearchResult) -> list[str]:
    """Why a hit is there."""
    return list(hit.reasons) or [f"seen at {clock(hit.moment)}"]


def _frame_bars(state, query: TextEmbeddings, positions: np.ndarray) -> list[Moment]:
    """One bar per frame: its share of the score."""
    video, times = state.snapshot.gather(positions), state.snapshot.tensor("timestamps", positions)[0]
    shares = score_parts(query, video, state.config)[0].sum(0)
    frames = video.video_mask[0].nonzero().flatten().tolist()
    row = state.snapshot.row(int(positions[0]))
    starts = [float(times[frame]) for frame in frames]
    ends = [*starts[1:], max(float(row["end"]), starts[-1])]
    return [Moment(start, end, float(shares[frame]), start) for frame, start, end in zip(frames, starts, ends)]


def _thinned(bars: list[Moment]) -> list[Moment]:
    step = -(-len(bars) // BARS)
    return [max(bars[at : at + step], key=lambda bar: bar.score) for at in range(0, len(bars), step)]


def _date(hit: SearchResult) -> str:
    """The capture date, or whatever column says when, as text that sorts."""
    named = {str(name).lower(): str(value) for name, value in hit.metadata.items()}
    return next((named[name] for name in DATES if named.get(name)), "")

"""Full-text search in what is said in a video or written about it, fused with what is seen.

INDEX/texts.sqlite holds one passage per line of subtitles, name and column of metadata (SQLite's FTS5). It follows the
index and can be made again from the files at any time; without it, search is by pictures alone.

    fused(video) = 1 / (60 + rank by pictures) + w / (60 + rank by words)      (reciprocal ranks, Cormack et al. 2009)
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dmae.inference.guarded import in_worker
from dmae.retrieval.asking import clock
from dmae.retrieval.filters import described
from dmae.retrieval.places import files_of, is_gone
from dmae.retrieval.results import SearchResult
from dmae.retrieval.spoken import TRANSCRIPTS, Cue, Sidecars, read_cues

FILE = "texts.sqlite"
RANK_OFFSET = 60
MATCHES = 200  # passages that a query may find
NOT_TEXT = {"captions", "captured", "duration"}  # captions are what models are measured by: finding them proves nothing
SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (video TEXT PRIMARY KEY, stamp TEXT NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS passages USING fts5(
    text, video UNINDEXED, kind UNINDEXED, start UNINDEXED, end UNINDEXED, tokenize = "unicode61 remove_diacritics 2");
"""
# fmt: off
STOP_WORDS = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or",
    "over", "that", "the", "their", "this", "to", "was", "were", "while", "with",
])
# fmt: on


class Passage(NamedTuple):
    """Text of a video. kind: "said", "name" or a column of the metadata. start, end: seconds, where it has a time."""

    video_id: str
    kind: str
    text: str
    start: float | None = None
    end: float | None = None

    @property
    def reason(self) -> str:
        return f"said at {clock(self.start or 0.0)}" if self.kind == "said" else f"in the {self.kind}"


# ---------------------------------------------------------------------- keeping the texts


def refresh_texts(folder: Path, rows: Iterable[dict], in_process: bool = False) -> None:
    """Bring the texts to the rows of an index: only videos whose sources changed are read. The writer calls this."""
    sidecars = Sidecars()
    sources = {row["video_id"]: (row, _sources(row, folder, sidecars)) for row in rows}
    with closing(_open_for_writing(folder / FILE)) as base, base:
        known = dict(base.execute("SELECT video, stamp FROM videos"))
        stamps = {json.dumps(video_id): _stamp(*found) for video_id, found in sources.items()}
        changed = [found for found, (key, stamp) in zip(sources.values(), stamps.items()) if known.get(key) != stamp]
        for key in {*known} - {*stamps}:
            _forget(base, key)
        for batch in in_worker(_Passages(), changed, batch_size=1, workers=0 if in_process else 1):
            for (row, _), passages, error in batch:
                key = json.dumps(row["video_id"])
                _forget(base, key)
                base.execute("INSERT INTO videos VALUES (?, ?)", (key, stamps[key]))
                found = passages if error is None else []
                entries = [(_storable(p.text), key, p.kind, p.start, p.end) for p in found]
                base.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", entries)


class _Passages:
    """What the worker runs: (row, its text files) -> its passages."""

    cpu_seconds = 300.0

    def __call__(self, item: tuple[dict, list[Path]]) -> list[Passage]:
        return list(passages_of(*item))


def _open_for_writing(path: Path) -> sqlite3.Connection:
    """The base; a damaged one is made anew, since all of it can be read again."""
    try:
        base = sqlite3.connect(path)
        base.executescript(SCHEMA)
        base.execute("SELECT count(*) FROM passages").fetchone()
    except sqlite3.DatabaseError:
        base.close()
        path.unlink()
        base = sqlite3.connect(path)
        base.executescript(SCHEMA)
    return base


def _forget(base: sqlite3.Connection, key: str) -> None:
    base.execute("DELETE FROM passages WHERE video = ?", (key,))
    base.execute("DELETE FROM videos WHERE video = ?", (key,))


def _sources(row: dict, folder: Path, sidecars: Sidecars) -> list[Path]:
    transcript = folder / TRANSCRIPTS / f"{row.get('content')}.vtt"
    beside = [path for place in files_of(row) if place for path in sidecars.of(place)]
    return [*beside, *([transcript] if transcript.is_file() else [])]


def _stamp(row: dict, sources: list[Path]) -> str:
    """What the texts of a video are made from: another stamp means other texts."""
    times = [[str(path), path.stat().st_mtime_ns] for path in sources]
    return json.dumps([row["path"], row.get("signature"), described(row), times], sort_keys=True, default=str)


def passages_of(row: dict, sources: Sequence[Path]) -> Iterator[Passage]:
    """What is said in a video, what it is called, and what its metadata say. sources: its subtitle files."""
    video_id = row["video_id"]
    cues = [cue for path in sources for cue in read_cues(path)]
    if row["path"] and not is_gone(row["path"]):
        cues += read_cues(row["path"])
    first, last = row.get("clip") or (None, None)
    cues = [cue for cue in cues if cue.end >= (first or 0) and (last is None or cue.start <= last)]
    for cue in _joined(sorted(set(cues))):
        yield Passage(video_id, "said", cue.text, cue.start, cue.end)
    yield Passage(video_id, "name", _words_of(row))
    for name, value in described(row).items():
        values = value if isinstance(value, list) else [value]
        text = " ".join(str(entry) for entry in values if isinstance(entry, (str, int, float)))
        if text and name not in NOT_TEXT:
            yield Passage(video_id, str(name), text)


def _joined(cues: Sequence[Cue]) -> Iterator[Cue]:
    """Each cue with the one after it: a sentence is often cut in two."""
    for cue, following in zip(cues, [*cues[1:], None]):
        if following is not None and following.start - cue.end < 3:
            cue = cue._replace(text=f"{cue.text} {following.text}")
        yield cue


def _words_of(row: dict) -> str:
    """The name and the folders that a person chose: the id, and the file's own name."""
    text = f"{row['video_id']} {Path(row['path']).stem}"
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", text)


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# ---------------------------------------------------------------------- searching


def find_passages(folder: Path, query: str) -> list[Passage]:
    """The passages that hold all words of a query but its stop words, best first by BM25; [] without texts."""
    path = folder / FILE
    wanted = _match(query)
    if not path.is_file() or not wanted:
        return []
    asked = "SELECT video, kind, text, start, end FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            rows = base.execute(asked, (wanted, MATCHES)).fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path}: damaged ({error}); run `dmae index` again, which makes it anew") from error
    return [Passage(json.loads(video), kind, text, start, end) for video, kind, text, start, end in rows]


def _match(query: str) -> str:
    """The query as FTS5 reads it: quoted words, so that nothing in them is an operator."""
    words = re.findall(r"\w+", _storable(query).lower())
    telling = [word for word in words if word not in STOP_WORDS] or words
    return " ".join(f'"{word}"' for word in telling)


def fuse(
    hits: Sequence[SearchResult], passages: Sequence[Passage], described_as: dict[str, SearchResult], weight: float
) -> list[SearchResult]:
    """Hits by pictures and passages by words as one list, best first, each with its reasons.

    hits: best first. described_as: video id -> its result, for videos that only words found. A video found by words
    that are spoken, and no later than by pictures, begins where they are said. Equal sums keep the order of the hits.
    """
    by_video: dict[str, list[Passage]] = {}
    for passage in passages:
        by_video.setdefault(passage.video_id, []).append(passage)
    word_rank = {video_id: rank for rank, video_id in enumerate(by_video, start=1)}
    seen_rank = {}
    for rank, hit in enumerate(hits, start=1):
        seen_rank.setdefault(hit.video_id, rank)
    only_words = [described_as[v] for v in by_video if v not in seen_rank and v in described_as]
    scored = []
    for place, hit in enumerate([*hits, *only_words]):
        found, by_words = by_video.get(hit.video_id, []), word_rank.get(hit.video_id)
        rank = place + 1 if place < len(hits) else None
        share = (1 / (RANK_OFFSET + rank) if rank else 0) + (weight / (RANK_OFFSET + by_words) if by_words else 0)
        if found:
            first = rank is None or by_words <= seen_rank[hit.video_id]
            hit = _with_reasons(hit, found, seen=rank is not None, begin_where_said=first)
        scored.append((share, hit))
    return [hit for _, hit in sorted(scored, key=lambda pair: -pair[0])]


def _with_reasons(hit: SearchResult, found: list[Passage], seen: bool, begin_where_said: bool) -> SearchResult:
    said = next((passage for passage in found if passage.kind == "said"), None)
    reasons = list(dict.fromkeys([passage.reason for passage in found[:3]]))
    if said is not None and begin_where_said:
        start = said.start or 0.0
        hit = replace(hit, start=start, end=max(said.end or start, start), moment=start)
    return replace(hit, reasons=(*reasons, *(hit.reasons if seen else ())))

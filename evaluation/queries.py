"""One line per caption: where its video came, and what came first; two such files compared caption by caption."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmae.evaluation.scoring import TEXT_TILE, EncodedSplit, Scored, tile_scorer
from dmae.files import write_file
from dmae.metrics.text_video_retrieval.bootstrap import paired_difference
from dmae.metrics.text_video_retrieval.retrieval_metrics import summarize_ranks

TOP = 10


def write_queries(path: Path, split: EncodedSplit, captions: list[str], scored: Scored, config, device="cpu") -> None:
    """JSON lines `{"caption", "video_id", "rank", "top": [{"video_id", "score"}, … 10]}` in the split's order.

    Scores are those that ranked (after post-processing, if any); equal ones stand in the order of the videos.
    """
    score = tile_scorer(split.texts, split.videos, config, device)
    ranked, ids, lines = scored.ranked, split.video_ids, []
    for start in range(0, len(captions), TEXT_TILE):
        rows = np.arange(start, min(start + TEXT_TILE, len(captions)))
        tile = score(rows, slice(None)) if ranked is None else ranked[rows]
        best = np.argsort(-tile, axis=1, kind="stable")[:, :TOP]
        for row, scores, order in zip(rows, tile, best.tolist()):
            top = [{"video_id": ids[column], "score": round(float(scores[column]), 6)} for column in order]
            line = {"caption": captions[row], "video_id": ids[split.gold[row]]}
            lines.append(json.dumps({**line, "rank": float(scored.text_ranks[row]), "top": top}, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Queries:
    """The captions of a per-query file and the ranks of their videos."""

    path: Path
    keys: list[tuple[str, str, int]]  # video_id, caption, and which time it comes
    ranks: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Queries":
        """ValueError names the line that is not one of `dmae evaluate --per-query`."""
        keys, ranks, times = [], [], {}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogatepass").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                pair, rank = (row["video_id"], row["caption"]), float(row["rank"])
                if rank < 1 or not all(isinstance(text, str) for text in pair):
                    raise ValueError(f"rank {rank}")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: no line of `dmae evaluate --per-query` ({error!r})") from None
            times[pair] = times.get(pair, -1) + 1
            keys.append((*pair, times[pair]))
            ranks.append(rank)
        if not keys:
            raise ValueError(f"{path}: holds no queries")
        return cls(path, keys, np.array(ranks))

    def in_order_of(self, other: "Queries") -> np.ndarray:
        """The ranks of the same captions, in the other file's order. ValueError where the two hold others."""
        mine, theirs = set(self.keys), set(other.keys)
        if mine != theirs:
            example = next(iter(mine ^ theirs))
            raise ValueError(
                f"{self.path} and {other.path} cannot be compared: {len(mine - theirs)} and {len(theirs - mine)} of "
                f"their queries are in one only, e.g. {example[1]!r} of {example[0]!r}. Evaluate both on the same split"
            )
        place = {key: number for number, key in enumerate(self.keys)}
        return self.ranks[[place[key] for key in other.keys]]


def compare_queries(first: Queries, second: Queries, samples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """{metric: {"first", "second", "difference", "low", "high"}} text→video; the same videos drawn for both."""
    ranks, others = first.ranks, second.in_order_of(first)
    _, gold = np.unique([key[0] for key in first.keys], return_inverse=True)
    nothing = np.ones(gold.max() + 1)  # no video→text ranks here
    intervals = paired_difference((ranks, nothing), (others, nothing), gold, summarize_ranks, samples, seed=seed)
    ours, theirs = summarize_ranks(ranks, nothing), summarize_ranks(others, nothing)
    return {
        name: _entry(ours[name], theirs[name], intervals[name]) for name in ours if name.startswith("text_to_video")
    }


def _entry(ours: float, theirs: float, interval: tuple[float, float]) -> dict:
    return {"first": ours, "second": theirs, "difference": ours - theirs, "low": interval[0], "high": interval[1]}


def moved(first: Queries, second: Queries) -> list[dict]:
    """The queries whose video changed its rank, the largest change (as a ratio) first."""
    others = second.in_order_of(first)
    rows = [
        {"caption": key[1], "video_id": key[0], "first": float(here), "second": float(there)}
        for key, here, there in zip(first.keys, first.ranks, others)
        if here != there
    ]
    return sorted(rows, key=lambda row: -abs(np.log(row["first"] / row["second"])))

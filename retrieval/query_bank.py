"""QB-Norm for live queries: a bank of training captions beside an index, so that no video answers every query.

bank = build_query_bank(index, training_captions)      # also written to INDEX/query_bank.npz
results = search_with_bank(index, open_query_bank(index), "a dog on a beach")
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dmae.metrics.text_video_retrieval.postprocessing import QB_NORM_TEMPERATURE, QueryBank
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.embedding import encode_texts
from dmae.retrieval.results import SearchResult

FILE = "query_bank.npz"
CAPTIONS, ROWS = 256, 4096  # scored at a time


def build_query_bank(
    index, captions: Sequence[str], temperature: float = QB_NORM_TEMPERATURE, top_k: int = 1
) -> QueryBank:
    """Score training captions against every video of the index (its best window), and keep what QB-Norm needs.

    Written beside the index where that has a folder. Build it again after adding videos: `open_query_bank` notices.
    """
    snapshot = index._state.snapshot  # one state from beginning to end, whatever another process adds meanwhile
    videos = sorted({row["video_id"] for row in snapshot.rows()})
    text = encode_texts(index.model, index.processor, captions)
    starts = range(0, len(captions), CAPTIONS)
    chunks = (
        _video_scores(
            snapshot, TextEmbeddings(*(field[start : start + CAPTIONS] for field in text)), index.config, videos
        )
        for start in starts
    )
    bank = QueryBank.build(chunks, temperature, top_k, gallery_ids=videos)
    if index.path is not None:
        bank.save(Path(index.path) / FILE)
    return bank


def open_query_bank(index) -> QueryBank:
    """The bank beside an index. ValueError when the index has changed since, FileNotFoundError when there is none."""
    path = Path(index.path) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no query bank; make one with build_query_bank(index, training_captions)")
    return QueryBank.load(path, gallery_ids=sorted({row["video_id"] for row in index.rows()}))


def search_with_bank(index, bank: QueryBank, query: str, top_k: int = 10) -> list[SearchResult]:
    """The exact search of every video, in the order of QB-Norm; `score` is the normalised one."""
    results = index.search(query, top_k=len(bank.gallery_ids), exact=True)[0]
    place = {video_id: number for number, video_id in enumerate(bank.gallery_ids.tolist())}
    scores = np.full(len(place), -np.inf)
    for result in results:
        scores[place[result.video_id]] = result.score
    normalised = bank.normalize(scores)
    ranked = sorted(results, key=lambda result: -normalised[place[result.video_id]])
    return [replace(result, score=float(normalised[place[result.video_id]])) for result in ranked[:top_k]]


@torch.no_grad()
def _video_scores(snapshot, text: TextEmbeddings, config, videos: list[str]) -> np.ndarray:
    """(captions, videos): the best row of each video."""
    place = {video_id: number for number, video_id in enumerate(videos)}
    owner = np.array([place[row["video_id"]] for row in snapshot.rows()])
    scores = np.full((len(videos), len(text.word_mask)), -np.inf)
    for start in range(0, len(owner), ROWS):
        rows = np.arange(start, min(start + ROWS, len(owner)))
        np.maximum.at(scores, owner[rows], similarity(text, snapshot.gather(rows), config).cpu().numpy().T)
    return scores.T

"""QB-Norm for live queries: a bank of training captions beside an index, so that no video answers every query.

dmae index videos -o my.index --query-bank captions.txt
dmae search my.index "a dog on a beach" --qb-norm

build_query_bank(index, training_captions)               # writes INDEX/query_bank.npz and .txt
index.search(["a dog on a beach"], qb_norm=True)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmae import files
from dmae.inference.embedding import encode_texts
from dmae.metrics.text_video_retrieval.postprocessing import QB_NORM_TEMPERATURE, QueryBank
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.retrieval.asking import read_lines
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.windows import Hit

FILE, CAPTIONS_FILE = "query_bank.npz", "query_bank.txt"
CAPTIONS, ROWS = 256, 4096  # scored at a time


class LiveBank:
    """A bank that ranks hits: by τ·s − log Σ_b exp(τ·bank[b,j]) where the best hit is a hub of it, else by τ·s."""

    def __init__(self, bank: QueryBank):
        self.bank = bank
        self.place = {video_id: number for number, video_id in enumerate(bank.gallery_ids.tolist())}

    def rank(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits of one query, best similarity first -> the same hits with QB-Norm's scores, best first."""
        if not hits:
            return []
        hub = self.bank.activated[self.place[hits[0].video]]
        mass = self.bank.log_mass if hub else np.zeros(len(self.place))
        ranked = [
            hit._replace(score=float(self.bank.temperature * hit.score - mass[self.place[hit.video]])) for hit in hits
        ]
        return sorted(ranked, key=lambda hit: -hit.score)


def build_query_bank(index, captions: Sequence[str], temperature: float | None = None, top_k: int = 1) -> QueryBank:
    """Score training captions against every video of the index (its best window), and keep what QB-Norm needs.

    Written beside the index where that has a folder, with the captions: `dmae index` builds it again when videos come
    or go; after `index.add` and `index.delete` do so yourself, searches refuse a bank over other videos.
    """
    captions = [" ".join(caption.split()) for caption in captions]  # as they are read again when videos come or go
    temperature = temperature or QB_NORM_TEMPERATURE / index.config.score_scale
    snapshot = index.snapshot  # one state from beginning to end, whatever another process adds meanwhile
    videos = gallery(snapshot)
    text = encode_texts(index.model, index.processor, captions)
    chunks = (
        _video_scores(snapshot, text[at : at + CAPTIONS], index.config, videos)
        for at in range(0, len(captions), CAPTIONS)
    )
    bank = QueryBank.build(chunks, temperature, top_k, gallery_ids=videos)
    if index.path is not None:
        bank.save(Path(index.path) / FILE)
        files.write_file(Path(index.path) / CAPTIONS_FILE, "".join(f"{caption}\n" for caption in captions))
    return bank


def open_query_bank(path: str | Path | None, snapshot: Snapshot) -> LiveBank:
    """The bank beside an index. ValueError when the index has changed since, FileNotFoundError when there is none."""
    if path is None or not (Path(path) / FILE).is_file():
        raise FileNotFoundError(
            f"{path or 'an index in memory'} has no query bank; make one from training captions, one per line: "
            f"dmae index … --query-bank captions.txt"
        )
    return LiveBank(QueryBank.load(Path(path) / FILE, gallery_ids=gallery(snapshot)))


def refresh_query_bank(index, captions: Sequence[str] | None) -> bool:
    """Build the bank of new captions, or of the stored ones if the videos have changed since; True if it was built."""
    path = Path(index.path)
    if captions is None:
        if not (path / CAPTIONS_FILE).is_file():
            return False
        try:
            open_query_bank(path, index.snapshot)
            return False
        except (ValueError, FileNotFoundError):
            captions = read_lines(path / CAPTIONS_FILE, "captions")
    build_query_bank(index, captions)
    return True


def gallery(snapshot: Snapshot) -> list[str]:
    """The videos that a bank covers, in its order."""
    return sorted({row["video_id"] for row in snapshot.rows()})


def _video_scores(snapshot: Snapshot, text: TextEmbeddings, config, videos: list[str]) -> np.ndarray:
    """(captions, videos): the best row of each video."""
    place = {video_id: number for number, video_id in enumerate(videos)}
    owner = np.array([place[row["video_id"]] for row in snapshot.rows()])
    scores = np.full((len(videos), len(text.word_mask)), -np.inf)
    for start in range(0, len(owner), ROWS):
        rows = np.arange(start, min(start + ROWS, len(owner)))
        np.maximum.at(scores, owner[rows], similarity(text, snapshot.gather(rows), config).cpu().numpy().T)
    return scores.T

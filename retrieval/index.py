"""VideoIndex: candidates by a lower bound, then the exact score by the model's own `similarity()`.

index = VideoIndex.open("my_videos.index")
index.search(["a dog surfing"], top_k=5)  # per query a list of SearchResult(video_id, path, score, start, end)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dmae.inference.embedding import EncodedVideos, encode_texts, encode_videos
from dmae.inference.identity import check_model, describe_model, remember_weights, weights_stamp
from dmae.inference.loading import load_described
from dmae.inference.query_side import load_query_side
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval import storage
from dmae.retrieval.asking import check_query
from dmae.retrieval.backends import choose_backend, follow
from dmae.retrieval.calibration import SearchPlan, measure_plan
from dmae.retrieval.filters import filtered_ids
from dmae.retrieval.narrow import check_kind
from dmae.retrieval.qdrant import QdrantBackend
from dmae.retrieval.query_bank import FILE as BANK_FILE
from dmae.retrieval.query_bank import LiveBank, open_query_bank
from dmae.retrieval.ray_shards import RayBackend, RayShards
from dmae.retrieval.results import SearchResult, video_as_text
from dmae.retrieval.rows import as_item
from dmae.retrieval.segments import Segment
from dmae.retrieval.state import IndexState
from dmae.retrieval.stored_index import StoredIndex
from dmae.retrieval.text_search import find_passages, fuse
from dmae.retrieval.text_weight import learn_text_weight

__all__ = ["SearchPlan", "SearchResult", "VideoIndex"]
FUSED_HITS = 100  # by pictures, before words are counted in


class VideoIndex(StoredIndex):
    """Searchable embeddings of videos, in memory or in a folder. Make one with `build`, `open` or `dmae index`."""

    def __init__(
        self, manifest: dict, segments: Sequence[Segment], path: Path | None = None, model=None, processor=None
    ):
        super().__init__(manifest, segments, path)
        self._model, self._processor, self._device = model, processor, "auto"
        self._query_side = None  # (model, processor) that read queries alone
        self._bank = None

    # ------------------------------------------------------------------ making, opening, saving

    @classmethod
    def build(cls, embeddings: EncodedVideos, model, processor, backend="auto", frames="float16") -> "VideoIndex":
        """An index in memory of what `encode_videos` gave; `save` puts it into a folder."""
        index = cls.empty(model, processor, backend, frames=frames)
        index.add(embeddings)
        return index

    @classmethod
    def empty(
        cls, model, processor, backend: str = "auto", path: Path | None = None, window=None, frames: str = "float16"
    ) -> "VideoIndex":
        """An index without rows, tied to this model; with a `path`, the first commit creates the folder.

        frames: how they are stored, "float16", "int8" or "merged" (see `narrow.py`).
        """
        choose_backend(backend, rows=0)
        check_kind(frames)
        described, config = describe_model(model, processor), model.config.to_dict()
        manifest = storage.new_manifest(model=described, config=config, backend=backend, window=window, frames=frames)
        return cls(manifest, [], path, model, processor)

    @classmethod
    def open(cls, path: str | Path, model=None, processor=None, device: str = "auto") -> "VideoIndex":
        """Open a folder. Without a model, the one that the manifest names is loaded, to `device`, when it is needed:
        for words only the half that reads them, where its files are known to be the ones that built the index.

        Raises FileNotFoundError without an index, ValueError for a damaged or newer one and for another model.
        """
        path = Path(path)
        if (model is None) != (processor is None):
            raise ValueError("give a loaded model together with its processor, or neither")
        manifest, segments = storage.read_state(path)
        if model is not None:
            check_model(manifest, model, processor, path)
        index = cls(manifest, segments, path, model, processor)
        index._device = device
        return index

    @classmethod
    def connect(cls, url: str, path: str | Path, model=None, processor=None) -> "VideoIndex":
        """Open the index folder `path` with the Qdrant collection at `url` (qdrant://host:6333/name) for candidates.

        The collection is brought to the rows of the folder first; the exact scores come from the folder's frames.
        Raises OSError where no server answers.
        """
        return cls.open(path, model, processor).with_engine(QdrantBackend.connect(url))

    @classmethod
    def on_ray(
        cls, path: str | Path, shards: int, address: str | None = None, model=None, processor=None
    ) -> "VideoIndex":
        """Open the index folder `path` with its rows spread over actors of a Ray cluster; every call stays the same.

        address: of the cluster (None: the one that this process is connected to, or a new one on this machine). All
        nodes must see the folder. A node that dies is named in the log and replaced; OSError where that fails.
        """
        index = cls.open(path, model, processor)
        manifest, snapshot = index._state[:2]
        actors = RayShards(Path(path), shards, address)
        index._state = index._state.over(RayBackend(actors, manifest, snapshot, index.config))
        return index

    def with_engine(self, engine: QdrantBackend) -> "VideoIndex":
        """Take candidates from this engine from now on, once it holds the rows of the index."""
        if not len(self):
            raise ValueError("the index is empty; index videos before connecting it to a server")
        known = engine.ids(self.snapshot.segments[0].arrays["coarse"].shape[1])
        self._state = self._state.over(follow(engine, known, self.snapshot))
        return self

    @property
    def model(self):
        with self._lock:  # threads of a server that need it first share one
            if self._model is None:
                self._load()
        return self._model

    def _load(self) -> None:
        described = self._state.manifest["model"]
        stamp = weights_stamp(described["name"], described.get("revision"))
        model, processor = load_described(described, device=self._device)
        check_model(self._state.manifest, model, processor, self.path)
        remember_weights(stamp, described["weights"])
        self._processor, self._model = processor, model

    @property
    def processor(self) -> Any:
        return self._processor if self.model is not None else None

    def encode_texts(self, texts: Sequence[str]) -> TextEmbeddings:
        """Queries as the index's model embeds them; no frame is embedded, so the half that reads words will do."""
        model, processor = self._reader()
        return encode_texts(model, processor, texts)

    @property
    def text_processor(self):
        """What makes a batch of queries."""
        return self._reader()[1]

    def _reader(self) -> tuple:
        """(model, processor) that read words."""
        with self._lock:
            if self._model is None and self._query_side is None:
                self._query_side = load_query_side(self._state.manifest["model"], self.config, self._device)
        return self._query_side or (self.model, self.processor)

    def add(
        self,
        videos: EncodedVideos | Iterable[dict | str | Path],
        also_delete: Iterable[str] = (),
        extend: Iterable[str] = (),
    ) -> list[dict]:
        """Add embedded videos, or files (paths, or {video_id, path, start, end} dicts) to embed first. One commit.

        A video whose id is in the index already replaces it, but those in `extend` gain windows; `also_delete` names
        ids that go in the same commit. Returns what was skipped.
        """
        if not isinstance(videos, EncodedVideos):
            videos = encode_videos(self.model, self.processor, [as_item(video) for video in videos])
        if videos.embeddings is not None:
            with self.writing():
                self._add_rows(videos, also_delete, set(extend))
            self._renew_backend()
        return videos.skipped

    def calibrate(
        self,
        queries: Sequence[str] | TextEmbeddings,
        target_recall: float = 0.99,
        videos: Sequence[str] | None = None,
        exact: np.ndarray | None = None,
    ) -> SearchPlan:
        """Measure how many candidates these queries need to find exact search's top 10, and store that as the plan.

        queries: captions like those that will be asked, a few hundred; texts or their embeddings. videos: for queries
        in words, the id of the video that each one is about; then the weight of spoken and written words is learned
        too, and stored as what `dmae search` and `dmae serve` use. exact: ids of their exact top 10 (Q,10), where they
        are known; else all rows are scored.
        """
        if videos is not None:
            if not isinstance(queries, Sequence):
                raise ValueError("videos say what queries in words are about; give the words, not their embeddings")
            learn_text_weight(self, queries, videos)
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall={target_recall} must be above 0 and at most 1")
        text = self.encode_texts(queries) if isinstance(queries, Sequence) else queries
        with self.writing():
            manifest, snapshot, backend = self._state[:3]
            plan = measure_plan(snapshot, backend, self.config, text, target_recall, exact=exact)
            self._commit(snapshot.segments, manifest["next_id"], plan=asdict(plan))
        return plan

    # ------------------------------------------------------------------ searching

    def search(
        self,
        queries: str | Sequence[str],
        top_k: int = 10,
        filter: dict | None = None,
        candidates: int | None = None,
        hits_per_video: int = 1,
        exact: bool = False,
        qb_norm: bool = False,
        text_weight: float = 0.0,
    ) -> list[list[SearchResult]]:
        """The best videos for each query, best first.

        filter: {key: value} on the metadata, `video_id` or `path`; values may hold * and ?.
        candidates: rows that are scored exactly, the plan's number by default; exact: score all rows.
        hits_per_video: how many moments of one video may be listed.
        qb_norm: rank the candidates by QB-Norm with the bank of captions beside the index; `score` is the normalised
        one. FileNotFoundError without a bank, ValueError for one over other videos.
        text_weight: how much what is said or written counts beside what is seen (1: as much); `score` stays that of the
        pictures, the order is that of both. 0: pictures alone.
        """
        queries = [queries] if isinstance(queries, str) else list(queries)
        for query in queries:
            check_query(query)
        if not 0 <= text_weight < math.inf:
            raise ValueError(f"text_weight={text_weight} must not be negative, and finite")
        text = self.encode_texts(queries)
        wanted = max(top_k, FUSED_HITS) if text_weight else top_k
        found = self.search_embeddings(text, wanted, filter, candidates, hits_per_video, exact, qb_norm)
        if not text_weight:
            return found
        pairs = zip(queries, found)
        return [
            self.with_texts(query, hits, text_weight, filter, text[n : n + 1])[:top_k]
            for n, (query, hits) in enumerate(pairs)
        ]

    @property
    def text_weight(self) -> float:
        """How much words count beside pictures: as learned by `calibrate`, else as much."""
        return self.manifest.get("text_weight", 1.0)

    def with_texts(
        self, query: str, hits: list[SearchResult], weight: float, filter: dict | None, embedded: TextEmbeddings
    ) -> list[SearchResult]:
        """Hits by pictures, and what is said or written in the videos of the index, as one list."""
        passages = [] if self.path is None else find_passages(self.path, query)
        if not passages:
            return hits
        state, seen = self._state, {hit.video_id for hit in hits}
        allowed = None if not filter else set(filtered_ids(state.snapshot, filter).tolist())
        rows = {passage: state.snapshot.shown_by(passage.video_id, passage.start) for passage in passages}
        ids = state.snapshot.ids
        rows = {p: row for p, row in rows.items() if row is not None and (allowed is None or int(ids[row]) in allowed)}
        unseen: dict[str, int] = {}
        for passage, row in rows.items():
            if passage.video_id not in seen:
                unseen.setdefault(passage.video_id, row)
        only_words = {hit.video_id: hit for hit in state.described(embedded, list(unseen.values()))}
        return fuse(hits, list(rows), only_words, weight)

    def search_by_video(self, path: str | Path, start=None, end=None, **options) -> list[SearchResult]:
        """Videos like this one: its frames take the place of the words, their mean that of the sentence."""
        if options.get("qb_norm"):
            raise ValueError("the bank of QB-Norm holds captions; it ranks queries in words, not clips")
        item = {"video_id": str(path), "path": str(path), "start": start, "end": end}
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such video file")
        video = encode_videos(self.model, self.processor, [item], num_workers=0).embeddings
        return self.search_embeddings(video_as_text(video), **options)[0]

    def search_embeddings(
        self, text: TextEmbeddings, top_k=10, filter=None, candidates=None, hits_per_video=1, exact=False, qb_norm=False
    ) -> list[list[SearchResult]]:
        """`search` for queries that are embedded already."""
        for name, value in [("top_k", top_k), ("hits_per_video", hits_per_video), ("candidates", candidates)]:
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        state = self._state
        allowed = None if not filter else filtered_ids(state.snapshot, filter)
        wanted = None if exact else max(candidates or state.plan.candidates, top_k)
        bank = self._query_bank(state) if qb_norm else None
        return state.search_many(text, top_k, wanted, allowed, hits_per_video, bank)

    def _query_bank(self, state: IndexState) -> LiveBank:
        """The bank beside the index, read once per file and commit."""
        file = None if self.path is None else self.path / BANK_FILE
        stamp = (state.manifest["generation"], file.stat().st_mtime_ns if file and file.is_file() else None)
        if self._bank is None or self._bank[0] != stamp:
            self._bank = stamp, open_query_bank(self.path, state.snapshot)
        return self._bank[1]

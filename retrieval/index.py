"""VideoIndex: candidates by a lower bound, then the exact score by the model's own `similarity()`.

index = VideoIndex.open("my_videos.index")
index.search(["a dog surfing"], top_k=5)  # per query a list of SearchResult(video_id, path, score, start, end)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dmae import files
from dmae.inference.embedding import EncodedVideos, encode_texts, encode_videos
from dmae.inference.loading import check_model, describe_model, load_model_and_processor
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval import storage
from dmae.retrieval.backends import FaissBackend, choose_backend, follow
from dmae.retrieval.calibration import SearchPlan, measure_plan
from dmae.retrieval.filters import filtered_ids
from dmae.retrieval.places import stored
from dmae.retrieval.qdrant import QdrantBackend
from dmae.retrieval.query_bank import FILE as BANK_FILE
from dmae.retrieval.query_bank import LiveBank, open_query_bank
from dmae.retrieval.results import SearchResult, check_query, video_as_text
from dmae.retrieval.rows import as_item, encoded_arrays, index_rows
from dmae.retrieval.segments import ROW_TENSORS, Segment, merge_segments, segment_arrays, worth_merging, write_segment
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.state import IndexState
from dmae.retrieval.text_search import Passage, find_passages, fuse

__all__ = ["SearchPlan", "SearchResult", "VideoIndex"]
SEGMENT_ROWS = 20_000
REWRITE_VIDEOS = 2_000
FUSED_HITS = 100  # by pictures, before words are counted in


class VideoIndex:
    """Searchable embeddings of videos, in memory or in a folder. Make one with `build`, `open` or `dmae index`."""

    def __init__(
        self, manifest: dict, segments: Sequence[Segment], path: Path | None = None, model=None, processor=None
    ):
        self.path, self._model, self._processor = path, model, processor
        self._writing, self._bank, self._places = False, None, None
        self.config = read_config(manifest, path)
        self._state = self._make_state(manifest, segments)

    # ------------------------------------------------------------------ making, opening, saving

    @classmethod
    def build(cls, embeddings: EncodedVideos, model, processor, backend: str = "auto") -> "VideoIndex":
        """An index in memory of what `encode_videos` gave; `save` puts it into a folder."""
        index = cls.empty(model, processor, backend)
        index.add(embeddings)
        return index

    @classmethod
    def empty(cls, model, processor, backend: str = "auto", path: Path | None = None, window=None) -> "VideoIndex":
        """An index without rows, tied to this model; with a `path`, the first commit creates the folder."""
        choose_backend(backend, rows=0)
        manifest = storage.new_manifest(
            model=describe_model(model, processor), config=model.config.to_dict(), backend=backend, window=window
        )
        return cls(manifest, [], path, model, processor)

    @classmethod
    def open(cls, path: str | Path, model=None, processor=None) -> "VideoIndex":
        """Open a folder. Without a model, the one that the manifest names is loaded at the first query.

        Raises FileNotFoundError without an index, ValueError for a damaged or newer one and for another model.
        """
        path = Path(path)
        manifest, segments = storage.read_state(path)
        if model is not None:
            check_model(manifest, model, processor, path)
        return cls(manifest, segments, path, model, processor)

    @classmethod
    def connect(cls, url: str, path: str | Path, model=None, processor=None) -> "VideoIndex":
        """Open the index folder `path` with the Qdrant collection at `url` (qdrant://host:6333/name) for candidates.

        The collection is brought to the rows of the folder first; the exact scores come from the folder's frames.
        Raises OSError where no server answers.
        """
        return cls.open(path, model, processor).with_engine(QdrantBackend.connect(url))

    def with_engine(self, engine: QdrantBackend) -> "VideoIndex":
        """Take candidates from this engine from now on, once it holds the rows of the index."""
        if not len(self):
            raise ValueError("the index is empty; index videos before connecting it to a server")
        known = engine.ids(self.snapshot.segments[0].arrays["coarse"].shape[1])
        self._state = self._state.over(follow(engine, known, self.snapshot))
        return self

    def save(self, path: str | Path) -> "VideoIndex":
        """Write an index to an empty or new folder, and stay attached to it."""
        path = Path(path)
        with storage.only_writer(path):
            if (path / storage.MANIFEST).exists():
                raise ValueError(f"{path} holds an index already; choose another folder")
            alive = [segment for segment in self._state.snapshot.segments if segment.alive.any()]
            segments = [write_segment(path, merge_segments([segment])) for segment in alive]
            self.path = path
            self._state.manifest["id"] = storage.new_identity()  # a copy goes its own way from here
            self._commit(segments, self._state.manifest["next_id"])
        return self

    def refresh(self) -> bool:
        """Take over what another process committed; True if anything had changed. Running queries keep their state.

        Raises ValueError where another index, or one of another model, has taken the place of this one.
        """
        if self.path is None or not (self.path / storage.MANIFEST).exists():
            return False
        ours = self._state.manifest
        manifest = storage.read_manifest(self.path)
        if (manifest.get("id"), manifest["generation"]) == (ours.get("id"), ours["generation"]):
            return False
        storage.check_same_index(ours, manifest, self.path)
        manifest, segments = storage.read_state(self.path, known=self._state.snapshot.segments)
        storage.check_same_index(ours, manifest, self.path)
        self._state = self._make_state(manifest, segments)
        return True

    def _make_state(self, manifest: dict, segments: Sequence[Segment]) -> IndexState:
        return IndexState.make(manifest, segments, self.config, self.path, getattr(self, "_state", None))

    # ------------------------------------------------------------------ properties

    @property
    def model(self):
        if self._model is None:
            described = self._state.manifest["model"]
            model, processor = load_model_and_processor(described["name"], revision=described["revision"])
            check_model(self._state.manifest, model, processor, self.path)
            self._model, self._processor = model, processor
        return self._model

    @property
    def processor(self):
        return self._processor if self.model is not None else None

    @property
    def manifest(self) -> dict:
        return self._state.manifest

    @property
    def state(self) -> IndexState:
        """What one search needs, as last committed or refreshed: whoever holds it sees that state to the end."""
        return self._state

    @property
    def snapshot(self) -> Snapshot:
        """The rows as last committed or refreshed, read-only: it stays as it is whatever happens to the index."""
        return self._state.snapshot

    def rows(self) -> list[dict]:
        """All rows as stored: {video_id, path, start, end, signature, metadata}."""
        return self._state.snapshot.rows()

    @property
    def plan(self) -> SearchPlan:
        return self._state.plan

    @property
    def video_ids(self) -> list[str]:
        """The videos in the index, each once, in the order they were added."""
        return list(dict.fromkeys(row["video_id"] for row in self._state.snapshot.rows()))

    def __len__(self) -> int:
        """Rows: videos, or windows of them."""
        return len(self._state.snapshot)

    def info(self) -> dict:
        """What `dmae index-info` prints."""
        manifest, snapshot, backend = self._state[:3]
        rows = len(snapshot)
        return {
            "path": str(self.path) if self.path else None,
            "model": manifest["model"],
            "roots": self.roots,
            "interaction": self.config.interaction,
            "videos": len(self.video_ids),
            "rows": rows,
            "frames": snapshot.segments[0].arrays["frames"].shape[1] if rows else None,
            "dimension": snapshot.segments[0].arrays["frames"].shape[2] if rows else None,
            "window": manifest.get("window"),
            "backend": backend.name,
            "plan": asdict(self.plan),
            "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()) if self.path else None,
            "generation": manifest["generation"],
        }

    # ------------------------------------------------------------------ changing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder as its only writer, on the latest state; may be nested. An index in memory needs no lock.

        Raises OSError while another process writes or when the index is gone, ValueError when it is another one.
        """
        if self.path is None or self._writing:
            yield
            return
        with storage.only_writer(self.path):
            self._writing = True
            try:
                self.refresh()
                if self._state.manifest["generation"] and not (self.path / storage.MANIFEST).exists():
                    raise FileNotFoundError(f"{self.path} held this index and holds none any more; nothing was written")
                yield
            finally:
                self._writing = False

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
        return videos.skipped

    def _add_rows(self, videos: EncodedVideos, also_delete: Iterable[str], extend: set[str]) -> None:
        """Commit rows; earlier rows of the same video ids go in the same commit, so no reader sees both or neither."""
        rows = [stored(row, self.roots) for row in index_rows(videos)]
        first = self._state.manifest["next_id"]
        arrays = encoded_arrays(videos, rows, first, self.config)
        segments = self._segments_without({row["video_id"] for row in rows} - extend | set(also_delete))
        self._commit([*segments, self._store(arrays)], first + len(rows))

    def rewrite(self, changes: Mapping[str, dict]) -> None:
        """Change what the rows of videos say (video_id -> columns), not their embeddings: a few thousand a commit."""
        with self.writing():
            ids = list(changes)
            for start in range(0, len(ids), REWRITE_VIDEOS):
                self._rewrite({video_id: changes[video_id] for video_id in ids[start : start + REWRITE_VIDEOS]})

    def _rewrite(self, changes: Mapping[str, dict]) -> None:
        snapshot, first = self._state.snapshot, self._state.manifest["next_id"]
        rows = snapshot.rows()
        positions = np.array([p for p, row in enumerate(rows) if row["video_id"] in changes], dtype=np.int64)
        new = [stored({**rows[p], **changes[rows[p]["video_id"]]}, self.roots) for p in positions]
        kept = {name: snapshot.tensor(name, positions).numpy() for name in ROW_TENSORS if name != "ids"}
        arrays = segment_arrays(ids=np.arange(first, first + len(new)), rows=new, **kept)
        segments = [segment.without(snapshot.ids[positions]) for segment in snapshot.segments]
        self._commit([*segments, self._store(arrays)], first + len(new))

    @property
    def roots(self) -> dict[str, str]:
        """The named folders that paths of rows are relative to."""
        return self._state.manifest.get("roots") or {}

    def set_roots(self, roots: dict[str, str]) -> None:
        """Name the folders anew; the first commit of a new index writes them with it."""
        if roots != self.roots:
            if self._state.manifest["generation"]:
                with self.writing():
                    self._commit(self._state.snapshot.segments, self._state.manifest["next_id"], roots=roots)
            else:
                self._state.manifest["roots"] = roots

    def delete(self, video_ids: Iterable[str]) -> int:
        """Remove videos (all windows) in one commit; returns how many. An unknown id: ValueError, nothing done."""
        gone = {video_ids} if isinstance(video_ids, str) else set(video_ids)
        with self.writing():
            unknown = gone - set(self.video_ids)
            if unknown:
                raise ValueError(f"not in the index: {', '.join(sorted(unknown)[:5])}; nothing was deleted")
            if gone:
                self._commit(self._segments_without(gone), self._state.manifest["next_id"])
        return len(gone)

    def compact(self) -> None:
        """Join small segments and drop deleted rows, where there is enough of either to be worth the copy."""
        with self.writing():
            groups = worth_merging(self._state.snapshot.segments, SEGMENT_ROWS)
            if groups:
                segments = [
                    self._store(merge_segments(group)) if merge else segment
                    for group, merge in groups
                    for segment in (group[:1] if merge else group)
                ]
                self._commit(segments, self._state.manifest["next_id"])

    def save_backend(self) -> None:
        """Keep a backend that takes long to build beside the index; the flat one is read from the segments at once."""
        manifest, snapshot, backend = self._state[:3]
        if self.path is None or not isinstance(backend, FaissBackend):
            return
        saved = manifest.get("faiss") or {"next_id": 0}
        if (snapshot.ids >= saved["next_id"]).sum() * 20 > len(snapshot):  # else adding the rest at opening is quicker
            with self.writing():
                file = storage.fresh_name("coarse", "faiss")
                with files.new_file(self.path / file) as partial:
                    backend.save(partial)
                faiss = {"file": file, "next_id": manifest["next_id"]}
                self._commit(snapshot.segments, manifest["next_id"], faiss=faiss)

    def calibrate(self, queries: Sequence[str] | TextEmbeddings, target_recall: float = 0.99) -> SearchPlan:
        """Measure how many candidates these queries need to find exact search's top 10, and store that as the plan.

        queries: captions like those that will be asked, a few hundred; texts or their embeddings.
        """
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall={target_recall} must be above 0 and at most 1")
        if not hasattr(queries, "word_mask"):
            queries = encode_texts(self.model, self.processor, queries)
        with self.writing():
            manifest, snapshot, backend = self._state[:3]
            free = manifest.get("backend", "auto") == "auto" and not isinstance(backend, QdrantBackend)
            plan = measure_plan(snapshot, backend, self.config, queries, target_recall, scan_all=free)
            self._commit(snapshot.segments, manifest["next_id"], plan=asdict(plan))
        return plan

    def _store(self, arrays: dict) -> Segment:
        if self.path is None:
            return Segment(arrays)
        return write_segment(self.path, arrays)

    def _segments_without(self, video_ids: set[str]) -> list[Segment]:
        snapshot = self._state.snapshot
        positions = [position for position, row in enumerate(snapshot.rows()) if row["video_id"] in video_ids]
        gone = snapshot.ids[positions]
        return [segment.without(gone) for segment in snapshot.segments]

    def _commit(self, segments: Sequence[Segment], next_id: int, **changes) -> None:
        segments = [segment for segment in segments if segment.alive.any()]
        manifest = dict(self._state.manifest, next_id=next_id, **changes)
        manifest["generation"] += 1
        manifest["segments"] = [segment.manifest_entry() for segment in segments]
        if self.path is not None:
            storage.write_manifest(self.path, manifest)
            storage.sweep(self.path, manifest)
        self._state = self._make_state(manifest, segments)

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
        if text_weight < 0:
            raise ValueError(f"text_weight={text_weight} must not be negative")
        text = encode_texts(self.model, self.processor, queries)
        wanted = max(top_k, FUSED_HITS) if text_weight else top_k
        found = self.search_embeddings(text, wanted, filter, candidates, hits_per_video, exact, qb_norm)
        if not text_weight:
            return found
        pairs = zip(queries, found)
        return [
            self.with_texts(query, hits, text_weight, filter, text[n : n + 1])[:top_k]
            for n, (query, hits) in enumerate(pairs)
        ]

    def with_texts(
        self, query: str, hits: list[SearchResult], weight: float, filter: dict | None, embedded: TextEmbeddings
    ) -> list[SearchResult]:
        """Hits by pictures, and what is said or written in the videos of the index, as one list."""
        passages = [] if self.path is None else find_passages(self.path, query)
        if not passages:
            return hits
        state, seen = self._state, {hit.video_id for hit in hits}
        allowed = None if not filter else set(filtered_ids(state.snapshot, filter).tolist())
        rows = {passage: self._row_of(state.snapshot, passage) for passage in passages}
        ids = state.snapshot.ids
        rows = {p: row for p, row in rows.items() if row is not None and (allowed is None or int(ids[row]) in allowed)}
        unseen: dict[str, int] = {}
        for passage, row in rows.items():
            if passage.video_id not in seen:
                unseen.setdefault(passage.video_id, row)
        only_words = {hit.video_id: hit for hit in state.described(embedded, list(unseen.values()))}
        return fuse(hits, list(rows), only_words, weight)

    def _row_of(self, snapshot: Snapshot, passage: Passage) -> int | None:
        """The position of the row that shows a passage, or of the video's first one."""
        if self._places is None or self._places[0] is not snapshot:
            places: dict[str, list[int]] = {}
            for position, row in enumerate(snapshot.rows()):
                places.setdefault(row["video_id"], []).append(position)
            self._places = snapshot, places
        mine = self._places[1].get(passage.video_id, [])
        shown = (p for p in mine if passage.start is not None and snapshot.row(p)["end"] >= passage.start)
        return next(shown, mine[0] if mine else None)

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
        queries = [text[row : row + 1] for row in range(len(text.word_mask))]
        bank = self._query_bank(state) if qb_norm else None
        return [state.search(query, top_k, wanted, allowed, hits_per_video, bank) for query in queries]

    def _query_bank(self, state: IndexState) -> LiveBank:
        """The bank beside the index, read once per file and commit."""
        file = None if self.path is None else self.path / BANK_FILE
        stamp = (state.manifest["generation"], file.stat().st_mtime_ns if file and file.is_file() else None)
        if self._bank is None or self._bank[0] != stamp:
            self._bank = stamp, open_query_bank(self.path, state.snapshot)
        return self._bank[1]


def read_config(manifest: dict, path: Path | None) -> DMAEConfig:
    """The model's configuration in a manifest. ValueError where it is none."""
    try:
        return DMAEConfig.from_dict(dict(manifest["config"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged manifest, config is none of a DMAE model ({error})") from error

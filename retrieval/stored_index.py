"""An index and its folder: what was committed, and every way to commit something else. No model is needed."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dmae import files
from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.retrieval import storage
from dmae.retrieval.backends import build_cascade
from dmae.retrieval.calibration import SearchPlan
from dmae.retrieval.cascade import FaissBackend, file_checksum
from dmae.retrieval.places import stored
from dmae.retrieval.rows import encoded_arrays, index_rows
from dmae.retrieval.segments import (
    Segment,
    common_tensors,
    merge_segments,
    segment_arrays,
    video_keys,
    worth_merging,
    write_segment,
)
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.state import IndexState

SEGMENT_ROWS = 20_000
REWRITE_VIDEOS = 2_000
Stored = TypeVar("Stored", bound="StoredIndex")


class StoredIndex:
    """Rows in memory or in a folder, read as of one commit. `VideoIndex` embeds and searches."""

    def __init__(self, manifest: dict, segments: Sequence[Segment], path: Path | None = None):
        self.path = path
        self._lock, self._writing = threading.RLock(), None  # _writing: the thread that writes
        self.config = read_config(manifest, path)
        self._state = self._make_state(manifest, segments)

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
            "stored_as": manifest.get("frames") or "float16",
            "window": manifest.get("window"),
            "backend": backend.name,
            "plan": asdict(self.plan),
            "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()) if self.path else None,
            "generation": manifest["generation"],
        }

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

    # ------------------------------------------------------------------ changing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder as its only writer, on the latest state; may be nested. An index in memory needs no lock.

        Raises OSError while another process writes or when the index is gone, ValueError when it is another one.
        """
        if self.path is None or self._writing == threading.get_ident():
            yield
            return
        with self._lock, storage.only_writer(self.path):
            self._writing = threading.get_ident()
            try:
                self.refresh()
                if self._state.manifest["generation"] and not (self.path / storage.MANIFEST).exists():
                    raise FileNotFoundError(f"{self.path} held this index and holds none any more; nothing was written")
                yield
            finally:
                self._writing = None

    def save(self: Stored, path: str | Path) -> Stored:
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

    def _add_rows(self, videos: EncodedVideos, also_delete: Iterable[str], extend: set[str]) -> None:
        """Commit rows; earlier rows of the same video ids go in the same commit, so no reader sees both or neither."""
        rows = [stored(row, self.roots) for row in index_rows(videos)]
        first = self._state.manifest["next_id"]
        arrays = encoded_arrays(videos, rows, first, self.config, self.manifest.get("frames") or "float16")
        segments, _ = self._segments_without({row["video_id"] for row in rows} - extend | set(also_delete))
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
        names = common_tensors(snapshot.segments)
        kept = {name: snapshot.tensor(name, positions).numpy() for name in names if name != "ids"}
        arrays = segment_arrays(ids=np.arange(first, first + len(new)), rows=new, **kept)
        segments, _ = self._segments_without(set(changes))
        self._commit([*segments, self._store(arrays)], first + len(new))

    @property
    def roots(self) -> dict[str, str]:
        """The named folders that paths of rows are relative to."""
        return self._state.manifest.get("roots") or {}

    def keep(self, **values) -> None:
        """Change what the manifest says besides rows (roots, exclude, …); the first commit of a new index writes it."""
        changed = {name: value for name, value in values.items() if self._state.manifest.get(name) != value}
        if not changed or not self._state.manifest["generation"]:
            self._state.manifest.update(changed)
            return
        with self.writing():
            self._commit(self._state.snapshot.segments, self._state.manifest["next_id"], **changed)

    def delete(self, video_ids: Iterable[str]) -> int:
        """Remove videos (all windows) in one commit; returns how many. An unknown id: ValueError, nothing done."""
        gone = {video_ids} if isinstance(video_ids, str) else set(video_ids)
        with self.writing():
            segments, found = self._segments_without(gone)
            unknown = gone - found
            if unknown:
                raise ValueError(f"not in the index: {', '.join(sorted(unknown)[:5])}; nothing was deleted")
            if gone:
                self._commit(segments, self._state.manifest["next_id"])
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
        """Make the FAISS file anew where so much came or went that it pays. Searches and commits go on meanwhile."""
        snapshot, backend = self._state.snapshot, self._state.backend
        if self.path is None or not isinstance(backend, FaissBackend) or not len(snapshot):
            return
        if backend.file is not None and not backend.crowded:
            return
        fresh = build_cascade(snapshot) if backend.crowded or len(backend.parts.tail_ids) else backend
        if fresh.parts.main is None:
            return
        with self.writing():
            file = storage.fresh_name("coarse", "faiss")
            with files.new_file(self.path / file) as partial:
                fresh.save(partial)
            faiss = {"file": file, "sum": file_checksum(self.path / file)}
            self._commit(self._state.snapshot.segments, self._state.manifest["next_id"], faiss=faiss)

    def _renew_backend(self) -> None:
        """Make a crowded FAISS file anew in a thread, unless the caller goes on writing."""
        backend = self._state.backend
        if not self._writing and self.path and isinstance(backend, FaissBackend) and backend.crowded:
            threading.Thread(target=self._save_backend_later, name="dmae-faiss").start()

    def _save_backend_later(self) -> None:
        with suppress(OSError):  # another process writes, or the disk is full: the next addition tries again
            self.save_backend()

    def _store(self, arrays: dict) -> Segment:
        if self.path is None:
            return Segment(arrays)
        return write_segment(self.path, arrays)

    def _segments_without(self, video_ids: set[str]) -> tuple[list[Segment], set[str]]:
        """The segments without the rows of these videos, and which of the videos were there."""
        keys, segments, found = video_keys(video_ids), [], set()
        for segment in self._state.snapshot.segments:
            rows = segment.rows_of(video_ids, keys)
            found |= {name for _, name in rows}
            segments.append(segment.without(number for number, _ in rows))
        return segments, found

    def _commit(self, segments: Sequence[Segment], next_id: int, **changes) -> None:
        segments = [segment for segment in segments if segment.alive.any()]
        manifest: dict[str, Any] = dict(self._state.manifest, next_id=next_id, **changes)
        manifest["generation"] += 1
        manifest["segments"] = [segment.manifest_entry() for segment in segments]
        if self.path is not None:
            storage.write_manifest(self.path, manifest)
            storage.sweep(self.path, manifest)
        self._state = self._make_state(manifest, segments)


def read_config(manifest: dict, path: Path | None) -> DMAEConfig:
    """The model's configuration in a manifest. ValueError where it is none."""
    try:
        return DMAEConfig.from_dict(dict(manifest["config"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged manifest, config is none of a DMAE model ({error})") from error

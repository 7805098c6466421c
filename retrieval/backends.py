"""Candidate engines: given a few vectors x_m, the ids with the largest max_m x_m·v̄. Exact scores are not their concern.

An engine sees one vector per row. Ids are int64, unique for life. Ids that the index no longer has may come back; the
index drops them, so an engine may delete lazily.
"""

import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

FLAT_UP_TO = 500_000  # rows; above, `auto` takes FAISS when it is installed
SCAN_ROWS = 1_024  # a block of vectors in float32 stays in cache


class Backend(Protocol):
    """What the index asks of a single-vector engine."""

    name: str

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, payload: list[dict] | None = None) -> None:
        """Add rows: ids (n,), vectors (n,D); an id that is there already is replaced."""

    def delete(self, ids: np.ndarray) -> None:
        """Forget rows; unknown ids are no error."""

    def candidates(self, queries: torch.Tensor, top_k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Up to top_k ids by max_m <queries[m], vector>, best first; queries (M,D); only ids in `allowed` if given."""
        ...


class FlatBackend:
    """Every vector, on the CPU in float16 as stored: exact, nothing to build, deletable. 2·D bytes a row."""

    name = "flat"

    def __init__(self):
        self.blocks: list[tuple[np.ndarray, torch.Tensor]] = []

    def upsert(self, ids, vectors, payload=None) -> None:
        self.delete(ids)
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float16))
        # a new list, not a changed one: a search that runs now keeps the blocks that it began with
        self.blocks = [*self.blocks, (np.array(ids, dtype=np.int64), vectors)]

    def delete(self, ids) -> None:
        kept = []
        for block_ids, vectors in self.blocks:
            gone = np.isin(block_ids, ids)
            if gone.any():
                block_ids, vectors = block_ids[~gone], vectors[torch.from_numpy(~gone)]
            if len(block_ids):
                kept.append((block_ids, vectors))
        self.blocks = kept

    def candidates(self, queries, top_k, allowed=None) -> np.ndarray:
        blocks = self.blocks
        if not blocks:
            return np.empty(0, dtype=np.int64)
        queries = queries.float().T.contiguous()
        queries = queries[:, 0] if queries.shape[1] == 1 else queries  # matrix times vector: no slower than its reading
        scores, block = (
            [],
            torch.empty(SCAN_ROWS, len(queries)),
        )  # one block for all: new memory costs more than the copy
        for block_ids, vectors in blocks:
            score = torch.empty(len(block_ids))
            for start in range(0, len(block_ids), SCAN_ROWS):
                part = block[: len(block_ids) - start].copy_(vectors[start : start + SCAN_ROWS])
                product = part @ queries
                score[start : start + SCAN_ROWS] = product if product.ndim == 1 else product.amax(1)
            if allowed is not None:
                score[torch.from_numpy(~np.isin(block_ids, allowed))] = float("-inf")
            scores.append(score)
        scores, ids = torch.cat(scores), np.concatenate([block_ids for block_ids, _ in blocks])
        best, order = scores.topk(min(top_k, len(scores)))
        return ids[order[best > float("-inf")].numpy()]


class FaissBackend:
    """FAISS IVF with 8-bit vectors: about D bytes a row, a few milliseconds at a million rows, deletable (HNSW is not).

    The lists are trained on the first rows; `nprobe` of them are read per query vector.
    """

    name = "faiss"

    def __init__(self, dimension: int, nprobe: int = 128):
        self.dimension, self.nprobe = dimension, nprobe
        self.index: Any = None  # a faiss.IndexIVF, once trained
        self.trained_on = 0
        self.lock = threading.Lock()  # FAISS may be searched by many threads, but not while it changes

    @classmethod
    def load(cls, path: Path, nprobe: int = 128) -> "FaissBackend":
        faiss = import_faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: damaged FAISS index; delete it and it is built again") from error
        backend = cls(index.d, nprobe)
        backend.index, backend.trained_on = index, index.ntotal
        return backend

    def save(self, path: Path) -> None:
        with self.lock:
            import_faiss().write_index(self.index, str(path))

    def train(self, vectors: np.ndarray) -> None:
        """Learn the lists: about 4·sqrt(n) of them, up to 4096, from at most 40 rows each."""
        faiss = import_faiss()
        lists = int(min(4096, max(1, 4 * len(vectors) ** 0.5), max(1, len(vectors) // 39)))
        quantizer = faiss.IndexFlatIP(self.dimension)
        scalar = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, self.dimension, lists, scalar, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = True
        quantizer.this.disown()
        rng = np.random.default_rng(0)
        sample = rng.choice(len(vectors), size=min(len(vectors), 40 * lists), replace=False)
        self.trained_on = len(vectors)
        index.train(np.ascontiguousarray(vectors[np.sort(sample)], dtype=np.float32))
        self.index = index

    def upsert(self, ids, vectors, payload=None) -> None:
        if not len(ids):
            return
        ids = np.asarray(ids, dtype=np.int64)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        with self.lock:
            if self.index is None:
                self.dimension = vectors.shape[1]
                self.train(vectors)
            self._remove(ids)
            self.index.add_with_ids(vectors, ids)

    def delete(self, ids) -> None:
        with self.lock:
            self._remove(np.asarray(ids, dtype=np.int64))

    def _remove(self, ids: np.ndarray) -> None:
        if self.index is not None and self.index.ntotal and len(ids):
            self.index.remove_ids(import_faiss().IDSelectorBatch(ids))

    def candidates(self, queries, top_k, allowed=None) -> np.ndarray:
        """The union of the M lists of the best top_k contains the top_k of their maximum."""
        faiss = import_faiss()
        with self.lock:
            if self.index is None or not self.index.ntotal:
                return np.empty(0, dtype=np.int64)
            extra = {} if allowed is None else {"sel": faiss.IDSelectorBatch(np.asarray(allowed, dtype=np.int64))}
            params = faiss.SearchParametersIVF(nprobe=min(self.nprobe, self.index.nlist), **extra)
            vectors = np.ascontiguousarray(queries.float().numpy())
            scores, ids = self.index.search(vectors, min(top_k, self.index.ntotal), params=params)
        found = ids >= 0
        ids, scores = ids[found], scores[found]
        order = np.argsort(-scores, kind="stable")
        unique, first = np.unique(ids[order], return_index=True)
        return unique[np.argsort(first)][:top_k]


def import_faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError("this index uses FAISS; install it: pip install 'dmae[search]'") from error
    return faiss


def choose_backend(name: str, rows: int) -> str:
    """`auto`: flat up to FLAT_UP_TO rows, then FAISS where it is installed."""
    if name not in ("auto", "flat", "faiss"):
        raise ValueError(f"unknown backend {name!r}; valid: auto, flat, faiss")
    if name != "auto":
        return name
    if rows <= FLAT_UP_TO:
        return "flat"
    try:
        import_faiss()
    except ImportError:
        return "flat"
    return "faiss"


def open_backend(name: str, manifest: dict, snapshot, path: Path | None, before: tuple | None) -> Backend:
    """The engine over a snapshot's coarse vectors, of the kind `name` ("auto": by the number of rows).

    before: (engine, snapshot) of the last state, whose engine takes over the difference if it still fits. A saved FAISS
    file is read and completed; its deleted rows stay in it and are dropped from the candidates.
    """
    kind = choose_backend(name, len(snapshot))
    backend, known = (before[0], before[1].ids) if before else (None, None)
    if backend is None or type(backend) is not {"flat": FlatBackend, "faiss": FaissBackend}[kind]:
        backend, known = _new_backend(kind, manifest, snapshot, path)
    if kind == "faiss" and len(snapshot) > 4 * max(backend.trained_on, 1) and len(known):
        backend, known = FaissBackend(backend.dimension), np.empty(0, np.int64)  # its lists were learnt from too few
    return follow(backend, known, snapshot)


def follow(backend: Backend, known: np.ndarray, snapshot) -> Backend:
    """Bring an engine that holds the rows `known` to those of a snapshot."""
    gone, new = np.setdiff1d(known, snapshot.ids), np.setdiff1d(snapshot.ids, known)
    if len(gone):
        backend.delete(gone)
    if len(new):
        backend.upsert(new, snapshot.tensor("coarse", snapshot.positions(new)).numpy())
    return backend


def _new_backend(kind: str, manifest: dict, snapshot, path: Path | None) -> tuple[Backend, np.ndarray]:
    """(engine, the ids that it holds already)."""
    if kind == "flat" or not len(snapshot):
        return (FlatBackend() if kind == "flat" else FaissBackend(0)), np.empty(0, np.int64)
    saved = manifest.get("faiss")
    if saved and path is not None and (path / saved["file"]).is_file():
        return FaissBackend.load(path / saved["file"]), snapshot.ids[snapshot.ids < saved["next_id"]]
    return FaissBackend(snapshot.segments[0].arrays["coarse"].shape[1]), np.empty(0, np.int64)

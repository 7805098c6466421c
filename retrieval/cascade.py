"""The cascade: 4-bit codes for every row, 8-bit vectors for the best of them, both in FAISS; frames decide afterwards.

    all rows     D/2 codes of 4 bits (PQ, "fast scan": sums of table entries in registers)   D/4 bytes a row
    `codes`      8 bits a number (SQ8), read only for what the codes let through              D bytes a row
    `top_k`      to the exact score (not here)

The file is never changed: it is mapped, so the 8-bit vectors stay on disk until they are read. Rows that came since are
scanned in 8 bits, on the file's own scale, so the two lists merge by score; deleted rows are dropped from the answers.
`crowded` says when it is time to build anew.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SAMPLE = 20_000  # rows that the codes are learnt from
CODED_FROM = 1_000  # fewer rows are scanned in 8 bits; codes learnt from a handful would tell little
CROWDED = 0.05  # share of rows, new or deleted, beyond which a new file pays; 1,000,000 rows: a scan of 1 ms


class Parts(NamedTuple):
    """Swapped as a whole when rows come or go; a running search keeps those that it began with."""

    main: Any  # faiss.IndexIDMap over an IndexRefine(IndexPQFastScan, IndexScalarQuantizer), or None
    ids: np.ndarray  # (n,) of its rows
    tail: Any  # faiss.IndexScalarQuantizer, or None
    tail_ids: np.ndarray
    dead: np.ndarray  # sorted ids that no longer count


class FaissBackend:
    """The cascade of one index; answers lists of ids for queries. Needs the extra `dmae[search]`."""

    name = "faiss"

    def __init__(self):
        none = np.empty(0, np.int64)
        self.parts = Parts(None, none, None, none, none)
        self.file: str | None = None  # beside the index

    @classmethod
    def load(cls, path: Path) -> "FaissBackend":
        """Map a file that `save` wrote. ValueError: damaged."""
        faiss = import_faiss()
        backend = cls()
        backend.file = path.name
        try:
            main = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            ids = faiss.vector_to_array(main.id_map)
            backend.parts = backend.parts._replace(main=main, ids=ids, tail=_empty_like(_refine(main)[1]))
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged FAISS index ({error}); delete it and it is built again") from error
        return backend

    def save(self, path: Path) -> None:
        """Write codes and 8-bit vectors. Rows of the tail are not among them: build first."""
        import_faiss().write_index(self.parts.main, str(path))

    def __len__(self) -> int:
        """Rows that are held, deleted ones included."""
        return len(self.parts.ids) + len(self.parts.tail_ids)

    @property
    def crowded(self) -> bool:
        """Whether so much came or went since the codes were made that making them again pays."""
        parts = self.parts
        coded = len(parts.ids)
        changed = len(parts.tail_ids) + len(parts.dead)
        return changed > CROWDED * coded if coded else changed >= CODED_FROM

    def build(self, ids: np.ndarray, blocks) -> "FaissBackend":
        """Codes and 8-bit vectors of these rows; `blocks(rows)` gives the vectors (n,D) at some row numbers."""
        faiss = import_faiss()
        sample = np.sort(np.random.default_rng(0).permutation(len(ids))[:SAMPLE])
        learnt = np.ascontiguousarray(blocks(sample), dtype=np.float32)
        width = learnt.shape[1]
        exact = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        exact.train(learnt)
        none = np.empty(0, np.int64)
        if len(ids) < CODED_FROM:
            exact.add(learnt)
            self.parts = Parts(None, none, exact, np.asarray(ids, np.int64)[sample], none)
            return self
        codes = faiss.IndexPQFastScan(width, width // 2 if width % 2 == 0 else width, 4, faiss.METRIC_INNER_PRODUCT)
        codes.train(learnt)
        main = faiss.IndexIDMap(refine := faiss.IndexRefine(codes, exact))
        main.referenced_objects = (refine, codes, exact)  # FAISS does not own them
        for start in range(0, len(ids), SAMPLE):
            rows = np.arange(start, min(start + SAMPLE, len(ids)))
            main.add_with_ids(np.ascontiguousarray(blocks(rows), dtype=np.float32), np.asarray(ids, np.int64)[rows])
        self.parts = Parts(main, np.array(ids, np.int64), _empty_like(exact), none, none)
        return self

    def upsert(self, ids, vectors, payload=None) -> None:
        """Add rows, with ids that were never used before: they are scanned in 8 bits until the next build."""
        if not len(ids):
            return
        parts, ids = self.parts, np.asarray(ids, dtype=np.int64)
        if parts.tail is None:
            self.build(ids, lambda rows: vectors[rows])
            return
        tail = import_faiss().clone_index(parts.tail)  # a search that runs now keeps the other one
        tail.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self.parts = parts._replace(tail=tail, tail_ids=np.concatenate([parts.tail_ids, ids]))

    def delete(self, ids) -> None:
        parts = self.parts
        held = np.isin(ids, parts.ids) | np.isin(ids, parts.tail_ids)
        self.parts = parts._replace(dead=np.union1d(parts.dead, np.asarray(ids, dtype=np.int64)[held]))

    def candidates(self, queries, top_k, allowed=None, codes=0) -> list[np.ndarray]:
        """Per query (Q,D), the ids with the largest products in 8 bits, best first, of the `codes` rows that the 4-bit
        codes find best; codes=0, or a filter: of all rows."""
        parts = self.parts
        vectors = np.ascontiguousarray(queries.float().numpy())
        found = [(np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64))]
        if parts.main is not None:
            found.append(_main_scores(parts, vectors, top_k, allowed, codes))
        if len(parts.tail_ids):
            found.append(_scan(parts.tail, parts.tail_ids, vectors, top_k, allowed))
        scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*found))
        if len(parts.dead):
            ids[np.isin(ids, parts.dead)] = -1
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = (row[best] for row, best in zip(ids, order))
        return [row[row >= 0][:top_k] for row in ranked]


def _main_scores(parts: Parts, vectors: np.ndarray, top_k: int, allowed, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """8-bit scores and ids (Q,k) of the file's best rows."""
    refine, exact = _refine(parts.main)
    if allowed is not None or not codes or codes >= len(parts.ids):
        return _scan(exact, parts.ids, vectors, top_k, allowed)
    top_k = min(top_k, codes)
    params = import_faiss().IndexRefineSearchParameters(k_factor=codes / top_k)
    scores, rows = refine.search(vectors, top_k, params=params)
    return scores, np.where(rows >= 0, parts.ids[rows], -1)


def _scan(exact, ids: np.ndarray, vectors: np.ndarray, top_k: int, allowed) -> tuple[np.ndarray, np.ndarray]:
    """All rows of an 8-bit index, or those whose ids are allowed."""
    params = None
    if allowed is not None:
        faiss = import_faiss()
        params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(np.isin(ids, allowed))))
    scores, rows = exact.search(vectors, min(top_k, len(ids)), params=params)
    return scores, np.where(rows >= 0, ids[rows], -1)


def _refine(main):
    """(the IndexRefine, its 8-bit index) inside the map."""
    faiss = import_faiss()
    refine = faiss.downcast_index(main.index)
    return refine, faiss.downcast_index(refine.refine_index)


def _empty_like(exact):
    """An 8-bit index without rows, on the scale of another."""
    faiss = import_faiss()
    index = faiss.IndexScalarQuantizer(exact.d, exact.sq.qtype, exact.metric_type)
    index.sq.trained, index.is_trained = exact.sq.trained, True
    return index


def file_checksum(path: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    total = 0
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            total = zlib.crc32(piece, total)
    return total


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("this index uses FAISS; install it: pip install 'dmae[search]'") from error
    return faiss

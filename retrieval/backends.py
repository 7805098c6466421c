"""Candidate engines: given query vectors, the ids with the largest inner products. Exact scores are not their concern.

An engine sees one vector per row. Ids are int64, given once and never again. Ids that the index no longer has may come
back; the index drops them, so an engine may delete lazily.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from dmae.retrieval.cascade import FaissBackend, import_faiss

FLAT_UP_TO = 20_000  # rows; above, `auto` takes FAISS when it is installed
SCAN_ROWS = 1_024  # a block of vectors in float32 stays in cache


class Backend(Protocol):
    """What the index asks of a single-vector engine."""

    name: str

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, payload: list[dict] | None = None) -> None:
        """Add rows: ids (n,), vectors (n,D)."""

    def delete(self, ids: np.ndarray) -> None:
        """Forget rows; unknown ids are no error."""

    def candidates(
        self, queries: torch.Tensor, top_k: int, allowed: np.ndarray | None = None, codes: int = 0
    ) -> list[np.ndarray]:
        """Per query (Q,D), up to top_k ids by <query, vector>, best first; only ids in `allowed` if given. `codes`:
        how many rows an engine of several stages looks at after its first."""
        ...


class FlatBackend:
    """Every vector, on the CPU in float16 as stored: exact, nothing to build, deletable. 2·D bytes a row."""

    name = "flat"

    def __init__(self):
        self.blocks: list[tuple[np.ndarray, torch.Tensor]] = []

    def upsert(self, ids, vectors, payload=None) -> None:
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

    def candidates(self, queries, top_k, allowed=None, codes=0) -> list[np.ndarray]:
        blocks = self.blocks
        if not blocks:
            return [np.empty(0, dtype=np.int64)] * len(queries)
        ids = np.concatenate([block_ids for block_ids, _ in blocks])
        scores = torch.empty(len(ids), len(queries))
        queries, at = queries.float().T.contiguous(), 0
        block = torch.empty(SCAN_ROWS, len(queries))  # one for all: new memory costs more than the copy
        for _, vectors in blocks:
            for start in range(0, len(vectors), SCAN_ROWS):
                part = block[: len(vectors) - start].copy_(vectors[start : start + SCAN_ROWS])
                torch.mm(part, queries, out=scores[at : at + len(part)])
                at += len(part)
        if allowed is not None:
            scores[torch.from_numpy(~np.isin(ids, allowed))] = float("-inf")
        best, order = scores.topk(min(top_k, len(ids)), dim=0)
        return [ids[places[good].numpy()] for places, good in zip(order.T, (best > float("-inf")).T)]


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

    before: (engine, snapshot) of the last state, whose engine takes over the difference. A saved FAISS file is mapped
    and completed; where there is none, or where it covers less than a quarter of the rows, it is built in memory.
    """
    kind, saved = choose_backend(name, len(snapshot)), None
    if kind == "flat":
        if before is not None and before[0].name == kind:
            return follow(before[0], before[1].ids, snapshot)
        return follow(FlatBackend(), np.array([], np.int64), snapshot)
    if path is not None and "sum" in (manifest.get("faiss") or {}):  # without: an index of format 1 or 2, other inside
        saved = manifest["faiss"]["file"]
    if before is not None and before[0].name == kind and saved in (before[0].file, None):
        backend, known = before[0], before[1].ids
    else:
        backend = FaissBackend.load(path / saved) if saved and (path / saved).is_file() else FaissBackend()
        known = backend.parts.ids
    if len(snapshot) > 4 * len(backend):  # its scale was learnt from too few
        backend, known = build_cascade(snapshot), snapshot.ids
        backend.file = saved
    return follow(backend, known, snapshot)


def build_cascade(snapshot) -> FaissBackend:
    """Codes and 8-bit vectors of all rows, block by block: 1,000,000 rows need their codes in memory, no more."""
    if not len(snapshot):
        return FaissBackend()
    return FaissBackend().build(snapshot.ids, lambda rows: snapshot.tensor("coarse", rows).numpy())


def follow(backend: Backend, known: np.ndarray, snapshot) -> Backend:
    """Bring an engine that holds the rows `known` to those of a snapshot."""
    # ids are unique: no sorting of a million of them, at every opening and commit
    gone, new = (np.setdiff1d(*pair, assume_unique=True) for pair in [(known, snapshot.ids), (snapshot.ids, known)])
    if len(gone):
        backend.delete(gone)
    if len(new):
        backend.upsert(new, snapshot.tensor("coarse", snapshot.positions(new)).numpy())
    return backend

"""DSL and QB-Norm: scores re-weighted after the model, so that no video answers every query (the hubness problem)."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

DSL_TEMPERATURE = 100.0
QB_NORM_TEMPERATURE = 20.0


def dsl(similarities: np.ndarray, temperature: float = DSL_TEMPERATURE) -> tuple[np.ndarray, np.ndarray]:
    """S ∘ softmax(τ S over the query axis), per direction (dual softmax, CAMoE, arXiv 2109.04290).

    (texts, videos) -> two matrices (texts, videos): one to rank videos for a text (softmax over the texts), one to rank
    texts for a video (softmax over the videos). Several texts per video need nothing special.

    Transductive: each score depends on all queries of the test set, so results that use it must say so, and for one
    live query it does nothing (the softmax of a single query is 1).

    >>> to_video, to_text = dsl(np.array([[0.5, 0.2], [0.4, 0.3]]))
    >>> to_video.round(3).tolist()
    [[0.5, 0.0], [0.0, 0.3]]
    """
    similarities = _wide(similarities)
    to_video, to_text = (similarities * _softmax(temperature * similarities, axis) for axis in (0, 1))
    return to_video, to_text


def qb_norm(
    similarities: np.ndarray, bank: np.ndarray, temperature: float = QB_NORM_TEMPERATURE, top_k: int = 1
) -> np.ndarray:
    """Dynamic inverted softmax against a bank of training queries (QB-Norm, arXiv 2112.12777). Inductive.

    (queries, gallery), (bank queries, gallery) -> (queries, gallery), ranking within each row only:
    τ S[q,j] − log Σ_b exp(τ bank[b,j]) for the queries whose best item is among the `top_k` of some bank query, and
    τ S[q,j] itself for the others. For video→text pass (videos, texts) and the similarities of training videos.
    """
    return QueryBank.build([bank], temperature, top_k).normalize(similarities)


class QueryBank:
    """What QB-Norm remembers of its bank: two numbers per gallery item, enough to normalise one live query.

    log_mass (gallery,): log Σ_b exp(τ bank[b,j]), how much the bank likes item j. activated (gallery,) bool: j is among
    the best of some bank query. gallery_ids: the items' names in order, to notice a bank that belongs to another index.
    """

    def __init__(self, log_mass: np.ndarray, activated: np.ndarray, temperature: float, gallery_ids=None):
        self.log_mass, self.activated, self.temperature = log_mass, activated, float(temperature)
        self.gallery_ids: Any = None if gallery_ids is None else np.asarray(gallery_ids, dtype=str)
        if self.gallery_ids is not None and self.gallery_ids.shape != log_mass.shape:
            raise ValueError(f"{len(self.gallery_ids)} gallery ids for a bank over {len(log_mass)} items")

    @classmethod
    def build(
        cls,
        chunks: Iterable[np.ndarray],
        temperature: float = QB_NORM_TEMPERATURE,
        top_k: int = 1,
        gallery_ids=None,
    ) -> "QueryBank":
        """From similarities (bank queries, gallery), in chunks of rows: the bank is never whole in memory."""
        if temperature <= 0 or top_k < 1:
            raise ValueError(f"temperature must be above 0 and top_k at least 1, got {temperature} and {top_k}")
        log_mass: np.ndarray | None = None
        activated = np.array([], dtype=bool)
        for chunk in chunks:
            chunk = _wide(chunk)
            if log_mass is None:
                log_mass = np.full(chunk.shape[1], -np.inf)
                activated = np.zeros(chunk.shape[1], dtype=bool)
            elif chunk.shape[1] != len(log_mass):
                raise ValueError(f"a chunk of the bank covers {chunk.shape[1]} gallery items, others {len(log_mass)}")
            if len(chunk):
                log_mass = np.logaddexp(log_mass, _logsumexp(temperature * chunk.astype(np.float64), 0))
                activated[np.argpartition(-chunk, min(top_k, chunk.shape[1]) - 1, axis=1)[:, :top_k]] = True
        if log_mass is None or not activated.any():
            raise ValueError("the bank holds no query; build it from the captions of the training split")
        return cls(log_mass, activated, temperature, gallery_ids)

    def normalize(self, similarities: np.ndarray) -> np.ndarray:
        """(queries, gallery) or one live query (gallery,) -> the same shape; higher is better, within a row."""
        similarities = _wide(similarities)
        if similarities.shape[-1] != len(self.log_mass):
            raise ValueError(
                f"{similarities.shape[-1]} gallery items, but the bank was built over {len(self.log_mass)}"
            )
        scores = self.temperature * similarities.astype(np.float64)
        inverted = self.activated[similarities.argmax(-1)]
        return np.where(inverted[..., None], scores - self.log_mass, scores)

    def save(self, path: str | os.PathLike) -> None:
        """Write one .npz file, whole or not at all."""
        folder, name = os.path.split(os.path.abspath(path))
        partial = os.path.join(folder, f".{name}.{os.getpid()}.dmae-new")
        ids = {} if self.gallery_ids is None else {"gallery_ids": self.gallery_ids}
        try:
            with open(partial, "wb") as file:
                np.savez(file, log_mass=self.log_mass, activated=self.activated, temperature=self.temperature, **ids)
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            if os.path.exists(partial):
                os.unlink(partial)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike, gallery_ids=None) -> "QueryBank":
        """Read what `save` wrote. With `gallery_ids`, a bank over other items or another order is refused."""
        try:
            with np.load(path, allow_pickle=False) as file:
                stored = {name: file[name] for name in file.files}
            bank = cls(stored["log_mass"], stored["activated"], float(stored["temperature"]), stored.get("gallery_ids"))
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path}: not a query bank ({error}); build it again") from error
        if gallery_ids is not None and not np.array_equal(bank.gallery_ids, np.asarray(gallery_ids, dtype=str)):
            raise ValueError(f"{path}: this bank was built over other videos, or in another order; build it again")
        return bank


def _wide(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if np.isnan(values).any():
        raise ValueError("similarities hold NaN; a NaN has no rank")
    return values


def _softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def _logsumexp(logits: np.ndarray, axis: int) -> np.ndarray:
    highest = logits.max(axis)
    return highest + np.log(np.exp(logits - np.expand_dims(highest, axis)).sum(axis))

"""Several queries at once: words and a clip, words but not others. Scores of each are made comparable, then added.

A text scores 0.2 to 0.3 where a clip scores 0.8, so each query's scores are first measured in standard deviations above
its mean over the index: s = Σ_i w_i (s_i − μ_i) / σ_i / Σ_{w_i > 0} w_i. Every s_i is the exact similarity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval.results import SearchResult, best_hits
from dmae.retrieval.state import EXACT_UP_TO, IndexState

MINUS_WEIGHT = -0.5  # what is unwanted counts half: else a video of anything else beats one of what is wanted
CANDIDATES = 1_000  # rows that each wanted query hands to the exact stage
REFERENCE_ROWS = 2_000  # rows, evenly spaced, whose scores give μ and σ


class Part(NamedTuple):
    """One query of several: its embeddings (one row), and its weight, below 0 for what is unwanted."""

    query: TextEmbeddings
    weight: float = 1.0


def search_combined(
    state: IndexState, parts: Sequence[Part], top_k: int, allowed: np.ndarray | None = None, hits_per_video: int = 1
) -> list[SearchResult]:
    """The best videos for all parts together, best first; `moment` is that of the first part.

    ValueError where every part is unwanted.
    """
    if not any(part.weight > 0 for part in parts):
        raise ValueError("there are only words to leave out; say what to look for too")
    positions = _candidates(state, parts, allowed)
    scores = combined_scores(state, parts, positions)
    return state.results(parts[0].query, best_hits(state.snapshot, positions, scores, top_k, hits_per_video))


def combined_scores(state: IndexState, parts: Sequence[Part], positions: np.ndarray) -> np.ndarray:
    """s of these rows. -> (n,) float64."""
    rows = len(state.snapshot)
    reference = np.unique(np.linspace(0, rows - 1, min(rows, REFERENCE_ROWS)).astype(np.int64))
    total = np.zeros(len(positions))
    for part in parts:
        usual = state.score(part.query, reference)
        spread = float(usual.std()) or 1.0
        total += part.weight * (state.score(part.query, positions) - usual.mean()) / spread
    return total / sum(part.weight for part in parts if part.weight > 0)


def _candidates(state: IndexState, parts: Sequence[Part], allowed: np.ndarray | None) -> np.ndarray:
    """Every row of a small index or filter; else the candidates of all wanted parts."""
    total = len(state.snapshot) if allowed is None else len(allowed)
    wanted = None if total <= EXACT_UP_TO else CANDIDATES
    found = [state.candidates(part.query, wanted, allowed) for part in parts if part.weight > 0]
    return np.unique(np.concatenate(found))

"""Confidence intervals of retrieval metrics by resampling videos."""

from collections.abc import Callable

import numpy as np


def bootstrap_intervals(
    text_ranks: np.ndarray,
    video_ranks: np.ndarray,
    gold: np.ndarray,
    summarize: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)}: percentiles of the metrics over `samples` draws of as many videos, with replacement.

    The unit drawn is the video together with all its captions, since captions of one video succeed and fail together;
    drawing captions one by one would make the intervals of multi-caption sets too narrow. The gallery stays as it is:
    the interval says how far another draw of queries, not of distractors, would move the metric.

    Args:
        text_ranks (texts,), video_ranks (videos with a text,): as `retrieval_ranks` gives them. gold (texts,).
        summarize: `summarize_ranks`, or a function of the drawn ranks.
    """
    return _intervals(list(_draws(text_ranks, video_ranks, gold, summarize, samples, seed)), confidence)


def paired_difference(
    ranks: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    gold: np.ndarray,
    summarize: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)} of the first model's metric minus the second's, both on the same drawn videos.

    An interval that leaves 0 out is a difference that another draw of queries would be unlikely to turn round; pairing
    takes away the part of the noise that both models share.
    """
    pairs = zip(_draws(*ranks, gold, summarize, samples, seed), _draws(*other, gold, summarize, samples, seed))
    return _intervals([{name: ours[name] - theirs[name] for name in ours} for ours, theirs in pairs], confidence)


def _draws(text_ranks, video_ranks, gold, summarize, samples, seed):
    if samples < 2:
        raise ValueError(f"samples={samples}: an interval needs at least 2, and about 1000 to be steady")
    videos, group, counts = np.unique(gold, return_inverse=True, return_counts=True)
    if text_ranks.shape != group.shape or video_ranks.shape != videos.shape:
        raise ValueError(
            f"{len(group)} texts of {len(videos)} videos need as many ranks, "
            f"got {len(text_ranks)} and {len(video_ranks)}"
        )
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = generator.integers(0, len(videos), len(videos))
        sizes = counts[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        texts = order[np.repeat(starts[drawn], sizes) + within]  # all captions of every drawn video
        yield summarize(text_ranks[texts], video_ranks[drawn])


def _intervals(draws: list[dict[str, float]], confidence: float) -> dict[str, tuple[float, float]]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, e.g. 0.95")
    tail = 50 * (1 - confidence)
    ends = {name: np.percentile([draw[name] for draw in draws], [tail, 100 - tail]) for name in draws[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

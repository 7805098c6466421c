"""Recall, median and mean rank of text-video similarities, both directions, from a matrix or tile by tile."""

from collections.abc import Callable, Iterator

import numpy as np

# A score goes before the right one by half of each comparison it passes: higher 1, equal 0, ½ or 1, lower 0.
TIES = {
    "optimistic": (np.greater, np.greater),
    "average": (np.greater, np.greater_equal),
    "pessimistic": (np.greater_equal, np.greater_equal),
}
PROTOCOLS = ("group_max", "individual")
RECALL_AT = (1, 5, 10)
STRIP = (127, 1016)  # rows and columns counted at once: stays in cache, and 127 (eight lanes: 1016) twos fit a byte


def retrieval_metrics(
    similarities: np.ndarray, gold: np.ndarray, ties: str = "average", protocol: str = "group_max"
) -> dict[str, float]:
    """R@1, R@5, R@10, median rank, mean rank and rsum of text→video and video→text.

    Args:
        similarities: (texts, videos), higher is more alike, any real dtype; compared in float32 or wider.
        gold: (texts,) the column of each text's video. Several texts may share a video; a video without texts is a
            distractor: it is ranked against, and asks nothing itself.
        ties: how many of the items that score exactly like the right one go before it: "average" half of them, so that
            a collapsed model scores at chance; "optimistic" none; "pessimistic" all. Always one rank per query.
        protocol: video→text with several captions a video. "group_max": each video's best caption against the best
            caption of every other video; "individual": against every caption of every other video.

    Returns:
        Fractions (`…_R@k`; `…_rsum` is their sum, at most 3) and ranks from 1 (`…_median_rank`, `…_mean_rank`).

    Raises:
        ValueError: a NaN, shapes that do not fit together, a gold index outside the matrix, an unknown word.

    >>> retrieval_metrics([[0.9, 0.1], [0.8, 0.3]], [0, 1])["text_to_video_R@1"]
    0.5
    """
    text_ranks, video_ranks = retrieval_ranks(similarities, gold, ties, protocol)
    return summarize_ranks(text_ranks, video_ranks)


def summarize_ranks(text_ranks: np.ndarray, video_ranks: np.ndarray) -> dict[str, float]:
    """The ten rank statistics plus both rsums of text→video and video→text ranks, as plain floats."""
    metrics = {}
    for direction, ranks in (("text_to_video", text_ranks), ("video_to_text", video_ranks)):
        recalls = {f"{direction}_R@{k}": float(np.count_nonzero(ranks <= k) / len(ranks)) for k in RECALL_AT}
        metrics |= recalls
        metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        metrics[f"{direction}_mean_rank"] = float(np.mean(ranks))
        metrics[f"{direction}_rsum"] = sum(recalls.values())
    return metrics


def retrieval_ranks(
    similarities: np.ndarray, gold: np.ndarray, ties: str = "average", protocol: str = "group_max"
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (texts,) of text→video and (videos with a text,) of video→text in column order; see `retrieval_metrics`."""
    similarities = np.asarray(similarities)
    if similarities.ndim != 2:
        raise ValueError(f"similarities must be (texts, videos), got shape {similarities.shape}")
    if similarities.dtype.kind not in "fiub":
        raise ValueError(f"similarities must be real numbers, got dtype {similarities.dtype}")
    gold = _check_gold(gold, *similarities.shape)
    in_order = bool((np.diff(gold) >= 0).all())  # then a block of rows is a view, not a copy

    def score(rows: np.ndarray, columns: slice) -> np.ndarray:
        return similarities[slice(rows[0], rows[-1] + 1) if in_order else rows, columns]

    return streaming_ranks(score, gold, similarities.shape[1], ties, protocol)


def streaming_ranks(
    score: Callable[[np.ndarray, slice], np.ndarray],
    gold: np.ndarray,
    num_videos: int,
    ties: str = "average",
    protocol: str = "group_max",
    tile_bytes: int = 1 << 24,
) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of `retrieval_ranks` without the whole matrix: memory is O(texts + videos) plus one tile.

    Args:
        score: `score(rows, columns)` gives the similarities (len(rows), len(columns)) of the texts `rows` (an array of
            indices) and the videos `columns` (a slice). It is called twice for tiles that hold a right answer.
        tile_bytes: about how large a float32 tile may be; a tile holds at least all captions of one video.
    """
    if ties not in TIES:
        raise ValueError(f"ties={ties!r} is unknown; use one of {', '.join(TIES)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
    gold = _check_gold(gold, len(np.asarray(gold)), num_videos)
    side = max(1, int((tile_bytes / 4) ** 0.5))
    columns = [slice(start, min(start + side, num_videos)) for start in range(0, num_videos, side)]
    own = _own_scores(score, gold, columns, side)  # (texts,) the score of each text with its own video
    best = np.full(num_videos, -np.inf, own.dtype)  # (videos,) each video's best own caption
    np.maximum.at(best, gold, own)

    count = _Counter(ties, own.dtype)
    text_before, video_before = np.zeros(len(gold)), np.zeros(num_videos)
    for rows in _row_blocks(gold, side):
        starts = np.flatnonzero(np.diff(gold[rows], prepend=-1))  # where the captions of the next video begin
        grouped = protocol == "group_max" and len(starts) < len(rows)
        for cols in columns:
            tile = _tile(score, rows, cols)
            _refuse_nan(tile, rows, cols)
            here, there = _gold_in(gold[rows], cols)
            before_rows, before_columns = count(tile, own[rows, None], None if grouped else best[cols])
            before_rows[here] -= count.pairs(tile[here, there], own[rows[here]])
            if grouped:
                tile = np.maximum.reduceat(tile, starts, axis=0)  # (videos of these rows, cols)
                here, there = _gold_in(gold[rows[starts]], cols)
                _, before_columns = count(tile, None, best[cols])
            np.subtract.at(before_columns, there, count.pairs(tile[here, there], best[cols][there]))
            text_before[rows] += before_rows
            video_before[cols] += before_columns
    return 1 + text_before, 1 + video_before[np.unique(gold)]


class _Counter:
    """How many scores of a tile go before the right one of their row and of their column.

    Speed: NumPy compares two equally laid out arrays about twice as fast as it broadcasts, bytes are summed eight at a
    time, and the buffers are kept from strip to strip.
    """

    def __init__(self, ties: str, dtype: np.dtype):
        self.comparisons = TIES[ties]
        size = STRIP[0] * STRIP[1]
        self.row_right, self.column_right = np.empty(size, dtype), np.empty(size, dtype)
        self.passed = np.empty(size, bool), np.empty(size, bool)

    def __call__(self, tile: np.ndarray, row_right, column_right) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cols), (rows, 1) or None, (cols,) or None -> (rows,), (cols,), zeros where None was given."""
        before_rows, before_columns = np.zeros(len(tile)), np.zeros(tile.shape[1])
        for j in range(0, tile.shape[1], STRIP[1]):
            cols = slice(j, j + STRIP[1])
            if column_right is not None:  # laid out once for all strips below
                columns = _reshaped(self.column_right, tile[: STRIP[0], cols].shape)
                columns[:] = column_right[cols]
            for i in range(0, len(tile), STRIP[0]):
                rows = slice(i, i + STRIP[0])
                scores = tile[rows, cols]
                if row_right is not None:
                    right = _reshaped(self.row_right, scores.shape)
                    right[:] = row_right[rows]
                    before_rows[rows] += _sum_bytes(self._twice(scores, right)) / 2
                if column_right is not None:
                    twice = self._twice(scores, columns[: len(scores)])
                    before_columns[cols] += np.add.reduce(twice, axis=0, dtype=np.uint8) / 2
        return before_rows, before_columns

    def _twice(self, scores: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(r, c) uint8: the number of comparisons each score passes, 0..2."""
        first, second = (_reshaped(buffer, scores.shape) for buffer in self.passed)
        self.comparisons[0](scores, right, out=first)
        self.comparisons[1](scores, right, out=second)
        return np.add(first.view(np.uint8), second.view(np.uint8), out=first.view(np.uint8))

    def pairs(self, scores: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n,), (n,) -> (n,) how much of each score goes before its right one."""
        first, second = self.comparisons
        return first(scores, right) * 0.5 + second(scores, right) * 0.5


def _reshaped(buffer: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return buffer[: shape[0] * shape[1]].reshape(shape)


def _sum_bytes(values: np.ndarray) -> np.ndarray:
    """(r, c) uint8 -> (r,), c·2 < 8·255 wherever eight bytes can be added as one word."""
    if values.shape[1] % 8:
        return values.sum(axis=1)
    return values.view(np.uint64).sum(axis=1).view(np.uint8).reshape(-1, 8).sum(axis=1)


def _own_scores(score: Callable, gold: np.ndarray, columns: list[slice], side: int) -> np.ndarray:
    """(texts,) scores of the right pairs, from the very tiles the counting sees: other shapes round differently."""
    own = np.empty(0)
    for rows in _row_blocks(gold, side):
        for cols in columns:
            here, there = _gold_in(gold[rows], cols)
            if len(here):
                tile = _tile(score, rows, cols)
                own = own if len(own) else np.empty(len(gold), tile.dtype)
                own[rows[here]] = tile[here, there]
                _refuse_nan(own[rows[here]], rows, cols)
    return own


def _gold_in(gold: np.ndarray, cols: slice) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose right video lies in `cols`, and its position there."""
    here = np.flatnonzero((gold >= cols.start) & (gold < cols.stop))
    return here, gold[here] - cols.start


def _row_blocks(gold: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Text indices in the order of their videos, about `side` at a time; the captions of a video stay together."""
    order = np.argsort(gold, kind="stable")
    starts = np.flatnonzero(np.diff(gold[order])) + 1
    first = 0
    while first < len(order):
        ends = starts[(starts > first) & (starts <= first + side)]
        if first + side >= len(order):
            end = len(order)
        elif len(ends):
            end = ends[-1]
        else:  # one video with more captions than a block holds
            later = starts[starts > first]
            end = later[0] if len(later) else len(order)
        yield order[first:end]
        first = end


def _tile(score: Callable, rows: np.ndarray, cols: slice) -> np.ndarray:
    tile = np.asarray(score(rows, cols))
    if tile.dtype in (np.float32, np.float64):
        return tile
    return tile.astype(np.float32 if tile.dtype == np.float16 else np.float64)


def _refuse_nan(scores: np.ndarray, rows: np.ndarray, cols: slice) -> None:
    if np.isnan(scores.max()):  # a maximum passes NaN on, and needs no second array
        raise ValueError(
            f"similarities hold NaN (texts {rows.min()}..{rows.max()}, videos {cols.start}..{cols.stop - 1}); "
            "a NaN has no rank: look for an empty clip or caption, or for an overflow in half precision"
        )


def _check_gold(gold: np.ndarray, num_texts: int, num_videos: int) -> np.ndarray:
    gold = np.asarray(gold)
    if gold.shape != (num_texts,):
        raise ValueError(f"gold must hold one video index per text, shape ({num_texts},), got {gold.shape}")
    if num_texts == 0 or num_videos == 0:
        raise ValueError(f"nothing to rank: {num_texts} texts and {num_videos} videos")
    if gold.dtype.kind not in "iu":
        raise ValueError(f"gold must be integers (columns of the matrix), got dtype {gold.dtype}")
    if gold.min() < 0 or gold.max() >= num_videos:
        raise ValueError(f"gold must lie in 0..{num_videos - 1}, got {gold.min()}..{gold.max()}")
    return gold.astype(np.int64)

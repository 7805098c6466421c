"""How much words count beside pictures, learned from queries whose video is known."""

from collections.abc import Sequence

import numpy as np

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
TOP_K = 100


def learn_text_weight(index, queries: Sequence[str], videos: Sequence[str]) -> float:
    """Store and return the weight of WEIGHTS with the highest mean reciprocal rank of each query's own video.

    Equal ranks: the weight nearest to 1, which is what counts without any learning. ValueError for queries that are no
    words, or of another number than the videos, and for videos that the index has not got.
    """
    if not all(isinstance(query, str) for query in queries) or len(queries) != len(videos) or not len(videos):
        raise ValueError(f"to learn the weight of words give as many queries in words as videos, not {len(videos)}")
    unknown = sorted({*videos} - {*index.video_ids})
    if unknown:
        raise ValueError(f"not in the index: {', '.join(unknown[:5])}; name the videos by their ids in it")
    embedded = index.encode_texts(list(queries))
    seen = index.search_embeddings(embedded, top_k=TOP_K)
    ranks = {weight: [] for weight in WEIGHTS}
    for number, (query, video, hits) in enumerate(zip(queries, videos, seen)):
        for weight in WEIGHTS:
            row = embedded[number : number + 1]
            fused = index.with_texts(query, hits, weight, None, row) if weight else hits
            place = next((rank for rank, hit in enumerate(fused, start=1) if hit.video_id == video), None)
            ranks[weight].append(1 / place if place else 0.0)
    best = max(WEIGHTS, key=lambda weight: (round(float(np.mean(ranks[weight])), 9), -abs(np.log2(weight + 1e-9))))
    index.keep(text_weight=best)
    return best

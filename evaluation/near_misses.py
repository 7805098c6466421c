"""Scoring a split whose videos have recorded near misses, as MovingDigits has."""

from pathlib import Path

import numpy as np

from dmae.data import listing


def read_rows(split: str | Path) -> list[dict]:
    """The rows of a split's `metadata.jsonl`."""
    return [row for _, row in listing.read_rows(Path(split) / "metadata.jsonl")]


def first_caption_scores(
    model, processor, split: str | Path, rows: list[dict], num_workers: int | None = None
) -> np.ndarray:
    """Similarities of every row's first caption with every row's video, (N, N). ValueError if a clip cannot be read."""
    from dmae.inference.embedding import encode_texts, encode_videos
    from dmae.modeling_dmae.similarity_dmae import similarity

    items = [{"video_id": row["video_id"], "path": str(Path(split) / row["file_name"])} for row in rows]
    videos = encode_videos(model, processor, items, num_workers=num_workers)
    if videos.skipped:
        raise ValueError(f"{len(videos.skipped)} clips of {split} cannot be read, the first: {videos.skipped[0]}")
    texts = encode_texts(model, processor, [row["captions"][0] for row in rows])
    return similarity(texts, videos.embeddings, model.config).numpy()


def near_miss_accuracy(scores: np.ndarray, rows: list[dict]) -> dict[str, float]:
    """{attribute: share of (video, near miss) pairs whose caption scores its own video higher}; ties count half."""
    place = {row["video_id"]: index for index, row in enumerate(rows)}
    wins: dict[str, list[float]] = {}
    for index, row in enumerate(rows):
        for near in row["near_misses"]:
            gap = scores[index, index] - scores[index, place[near["video_id"]]]
            wins.setdefault(near["attribute"], []).append(float(gap > 0) + 0.5 * float(gap == 0))
    return {attribute: float(np.mean(values)) for attribute, values in wins.items()}

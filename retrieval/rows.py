"""From embedded items to the rows that an index stores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmae.inference.embedding import EncodedVideos, item_file
from dmae.retrieval.bound import coarse_vectors
from dmae.retrieval.narrow import stored_frames
from dmae.retrieval.segments import segment_arrays

KEPT = ("signature", "metadata", "clip", "content", "copies", "file")


def as_item(video: dict | str | Path) -> dict:
    """A file as {video_id, path}; a dict as it is, named after its file if it has no video_id.

    FileNotFoundError where there is no such file, ValueError for a dict that says neither.
    """
    if isinstance(video, dict):
        if video.get("video_id") is not None:
            return video
        file = item_file(video)
        if file is None:
            raise ValueError("a video in memory has no file to be named after; give it a 'video_id'")
        return {**video, "video_id": Path(file).stem}
    path = Path(video)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    return {"video_id": path.stem, "path": str(path)}


def index_rows(videos: EncodedVideos) -> list[dict]:
    """What is stored of each item: its window, else the span of the file if known, else that of its frames."""
    return [_row(item, span) for item, span in zip(videos.items, _frame_spans(videos))]


def encoded_arrays(
    videos: EncodedVideos, rows: Sequence[dict], first_id: int, config, frames: str = "float16"
) -> dict[str, np.ndarray]:
    """The arrays of one segment, with ids counted from `first_id`; `frames`: how they are stored, see `narrow.py`."""
    embeddings = videos.embeddings
    return segment_arrays(
        ids=np.arange(first_id, first_id + len(videos.items)),
        **stored_frames(embeddings, videos.timestamps, frames),
        coarse=coarse_vectors(embeddings, config),
        rows=rows,
    )


def _frame_spans(videos: EncodedVideos) -> list[tuple[float, float]]:
    """Per row, the times of its first and last frame."""
    mask = videos.embeddings.video_mask
    first = videos.timestamps.masked_fill(~mask, float("inf")).amin(1)
    last = videos.timestamps.masked_fill(~mask, float("-inf")).amax(1)
    return list(zip(first.tolist(), last.tolist()))


def _row(item: dict, frames_span: tuple[float, float]) -> dict:
    start, end = item.get("span") or frames_span
    start = item["start"] if item.get("start") is not None else start
    end = item["end"] if item.get("end") is not None else end
    kept = {name: item[name] for name in KEPT if item.get(name)}
    file = item_file(item)
    path = "" if file is None else str(Path(file).resolve())
    if item.get("start") is not None and "last" in item:  # how a run that was stopped knows where it was
        kept["last"] = item["last"]
    return {"video_id": str(item["video_id"]), "path": path, "start": round(start, 3), "end": round(end, 3), **kept}

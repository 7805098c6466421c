"""From scored rows to what a person sees: results and their moments."""

from dataclasses import dataclass, field

import numpy as np
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit, wide
from dmae.retrieval.explain import best_frames
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.windows import MARGIN, Hit, merge_hits


@dataclass(frozen=True)
class SearchResult:
    """A hit. score: the exact similarity, unscaled; start, end: seconds of the matching window, or of the whole video.

    moment: the time of the frame that gives most of the score; metadata: what is known of the video, from its row and
    from the file itself.
    """

    video_id: str
    path: str
    score: float
    start: float
    end: float
    moment: float = field(default=0.0, compare=False)
    metadata: dict = field(default_factory=dict, compare=False, repr=False)
    row: int = field(default=-1, compare=False, repr=False)  # its id in the index
    copies: tuple[str, ...] = field(default=(), compare=False, repr=False)  # other files with the same content
    missing: bool = field(default=False, compare=False)  # none of its files is there now
    reasons: tuple[str, ...] = field(default=(), compare=False)  # why it is here

    def to_dict(self) -> dict:
        """The fields of the command's JSON."""
        names = ("video_id", "path", "score", "start", "end", "moment", "reasons", "metadata", "copies", "missing")
        return {name: getattr(self, name) for name in names}


def video_as_text(video: VideoEmbeddings) -> TextEmbeddings:
    """A query made of frames: mean direction, unit frames, their weights, their mask."""
    frames = unit(wide(video.video_embeds))  # stored frames are float16
    mean = unit(torch.einsum("bf,bfd->bd", video.frame_weights, frames))
    return TextEmbeddings(mean, frames, video.frame_weights, video.video_mask)


def best_moments(snapshot: Snapshot, query: TextEmbeddings, positions: np.ndarray, config) -> list[float]:
    """Per row, the time of the frame that gives most of its score."""
    if not len(positions):
        return []
    frames = best_frames(query, snapshot.gather(positions), config)
    times = snapshot.tensor("timestamps", positions).gather(1, frames[:, None])
    return [round(time, 3) for time in times[:, 0].tolist()]


def best_hits(snapshot: Snapshot, positions, scores, top_k: int, hits_per_video: int) -> list[Hit]:
    """Rows of the best scores, merged to moments. Equal scores: the row that was added first.

    Only as many rows are read as can still change the answer: those that score within the margin of the last moment.
    """
    order = np.argsort(-scores, kind="stable")
    taken, hits = min(len(order), 2 * top_k), []
    while True:
        for place in order[len(hits) : taken]:
            hits.append(snapshot.hit(positions[place], scores[place]))
        merged = merge_hits(hits, top_k, hits_per_video)
        if taken == len(order):
            return merged
        if len(merged) < top_k:
            taken = min(len(order), 4 * taken)
            continue
        lowest = merged[-1].score - MARGIN * abs(merged[-1].score)
        needed = int(np.searchsorted(-scores[order], -lowest, side="right"))
        if needed <= taken:
            return merged
        taken = needed

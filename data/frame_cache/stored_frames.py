"""Frames that need no decoding: kept in memory (small sets, decoded once per run) or read from a prepared folder."""

import copy

from torch.utils.data import DataLoader, Dataset

from dmae.data.frame_cache.store import with_frame_cache
from dmae.inference.progress import progress
from dmae.processing.frames_dmae import DecodedFrames, FrameSampler


def with_stored_frames(processor, where: str, rows: list[dict], num_workers: int):
    """(processor, broken): a copy that takes frames from `where`: "none", "memory", or a `dmae prepare` folder.

    The original is the one to save: a model folder knows nothing of this machine's caches. broken: {"video_id", "path",
    "error"} of the rows that are known not to decode; only "memory" tries them all.
    """
    if where == "none":
        return processor, []
    if where != "memory":
        return with_frame_cache(processor, rows, where), []
    copied = copy.copy(processor)
    copied.feature_extractor = MemoryFrames(processor.feature_extractor, rows, num_workers)
    return copied, copied.feature_extractor.broken


class MemoryFrames(FrameSampler):
    """Decodes `rows` at once and keeps them as uint8: clips · F · 3 · size² bytes, shared with forked workers."""

    def __init__(self, sampler: FrameSampler, rows: list[dict], num_workers: int):
        if sampler.sampling == "segment_random":
            raise ValueError("data.cache_frames: processor.sampling=segment_random draws new frames each time; use fps")
        super().__init__(**sampler.to_dict())
        self.kept: dict[tuple, DecodedFrames] = {}
        self.broken: list[dict] = []
        loader = DataLoader(_Decoded(rows, sampler), batch_size=None, num_workers=num_workers)
        with progress(len(rows), "decoding into memory", unit="clips") as advance:
            for row, decoded in zip(rows, loader):
                if isinstance(decoded, str):
                    self.broken.append({"video_id": row["video_id"], "path": str(row["video"]), "error": decoded})
                else:
                    # a copy outside the shared memory through which the worker sent it
                    frames = DecodedFrames(*(tensor.clone() for tensor in decoded))
                    self.kept[str(row["video"]), row["start"], row["end"]] = frames
                advance(1)

    def to_dict(self) -> dict:
        """The settings alone: the frames are no part of them, and too many to be copied for a message."""
        kept, self.kept = self.kept, {}
        try:
            return super().to_dict()
        finally:
            self.kept = kept

    def decode(self, video, start=None, end=None, generator=None, *of_frames) -> DecodedFrames:
        kept = self.kept.get((str(video), start, end))
        return kept or super().decode(video, start, end, generator, *of_frames)


class _Decoded(Dataset):
    def __init__(self, rows: list[dict], sampler: FrameSampler):
        self.rows, self.sampler = rows, sampler

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> DecodedFrames | str:
        """The frames, or why there are none."""
        row = self.rows[index]
        try:
            return self.sampler.decode(row["video"], row["start"], row["end"])
        except (ValueError, OSError) as error:
            return str(error)

"""From (row, caption, draw) to a batch of tensors, in the loader's workers: decode, tokenise, weigh words, stack."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import Dataset

from dmae.data.clips import stable_id
from dmae.training.sampler import Pair, rank_share

# How many other videos are tried in place of one that cannot be decoded before giving up.
MAX_REPLACEMENTS = 10


class TrainingExamples(Dataset):
    """Rows `{video_id, video, captions, start, end}` read as batches of pairs.

    `__getitems__` receives a rank's whole batch at once, so that the stand-in for a broken video can be one that the
    batch does not hold yet. Everything random is seeded by the pair's `draw`: the number of workers or a resume
    change nothing.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], processor):
        self.rows = rows
        self.processor = processor

    def __getitems__(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        taken = {pair.row for pair in pairs}
        return [self._example(pair, taken) for pair in pairs]

    def _example(self, pair: Pair, taken: set[int]) -> dict[str, Any]:
        skipped, row = [], pair.row
        while True:
            try:
                frames = self._frames(self.rows[row], pair.draw)
                break
            except (ValueError, OSError) as error:
                skipped.append(_skipped(self.rows[row], error))
                row = self._stand_in(pair, taken, skipped)
                taken.add(row)
        captions = self.rows[row]["captions"]
        return {
            "video_id": self.rows[row]["video_id"],
            "caption": captions[pair.caption % len(captions)],
            "paragraph": " ".join(captions),
            "frames": frames,
            "skipped": skipped,
        }

    def _frames(self, row: dict[str, Any], draw: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(draw)
        return self.processor.feature_extractor.decode(row["video"], row["start"], row["end"], generator).frames

    def _stand_in(self, pair: Pair, taken: set[int], skipped: list[dict[str, str]]) -> int:
        """The first free row at or after a drawn one: the same in every rerun."""
        if len(skipped) > MAX_REPLACEMENTS or len(taken) >= len(self.rows):
            names = "; ".join(f"{item['path']}: {item['error']}" for item in skipped[:3])
            raise ValueError(f"{len(skipped)} videos in a row cannot be decoded, stopping: {names}")
        row = pair.draw % len(self.rows)
        while row in taken:
            row = (row + 1) % len(self.rows)
        return row

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch for `to_model_inputs`: tensors, `names` (video ids) and `skipped` (what was replaced)."""
        captions = [example["caption"] for example in examples]
        paragraphs = [example["paragraph"] for example in examples]
        batch = dict(self.processor(text=captions, paragraphs=paragraphs, return_tensors="pt"))
        batch["frames"], batch["video_mask"] = _stack(
            [example["frames"] for example in examples], self.processor.feature_extractor.num_frames
        )
        names = [example["video_id"] for example in examples]
        batch["video_ids"] = torch.tensor([stable_id(name) for name in names])
        batch["caption_ids"] = torch.tensor([stable_id(" ".join(caption.lower().split())) for caption in captions])
        batch["names"] = names
        batch["skipped"] = [item for example in examples for item in example["skipped"]]
        return batch


@contextmanager
def loaded_ahead(
    examples: TrainingExamples, batches: list[list[Pair]], accelerator: Accelerator, num_workers: int, seed: int
) -> Iterator[DataLoaderShard]:
    """This rank's part of the batches, decoded ahead by workers, on the device."""
    world, rank = accelerator.num_processes, accelerator.process_index
    loader = DataLoaderShard(
        examples,
        device=accelerator.device,
        batch_sampler=[rank_share(batch, rank, world) for batch in batches],
        collate_fn=examples.collate,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),  # leaves the global generator to the model
    )
    try:
        yield loader
    finally:
        loader.end()


def _skipped(row: dict[str, Any], error: Exception) -> dict[str, str]:
    return {"video_id": row["video_id"], "path": str(row["video"]), "error": str(error)}


def to_model_inputs(batch: dict[str, Any], frame_sampler) -> dict[str, torch.Tensor]:
    """What `model(**batch)` takes. Frames travel as uint8 (a quarter of the bytes) and are normalised on the device."""
    inputs = {name: value for name, value in batch.items() if name not in ("frames", "names", "skipped")}
    padding = ~batch["video_mask"][:, :, None, None, None]
    return {**inputs, "pixel_values": frame_sampler.normalize(batch["frames"]).masked_fill(padding, 0.0)}


def _stack(videos: list[torch.Tensor], num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[(n_i,3,S,S)] -> (B,F,3,S,S) padded with zeros, (B,F) bool."""
    frames = videos[0].new_zeros((len(videos), num_frames, *videos[0].shape[1:]))
    for row, video in enumerate(videos):
        frames[row, : len(video)] = video
    counts = torch.tensor([len(video) for video in videos])
    return frames, torch.arange(num_frames) < counts[:, None]

"""Texts and videos through the model in batches; loader workers decode, and a bad file never stops the rest."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from dmae.inference.progress import progress
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings


class EncodedVideos(NamedTuple):
    """What `encode_videos` gives; all tensors on the CPU, floats in float32, rows in the order of `items`.

    embeddings: VideoEmbeddings of N rows, or None when nothing decoded.
    items: the N dicts that decoded, as they were given.
    timestamps: (N, F) seconds of the chosen frames; only entries under `video_mask` mean anything.
    skipped: one {"video_id", "path", "error"} for each item that did not decode.
    """

    embeddings: VideoEmbeddings | None
    items: list[dict]
    timestamps: torch.Tensor
    skipped: list[dict]

    @property
    def video_ids(self) -> list[str]:
        return [item["video_id"] for item in self.items]

    def split(self, chosen: Callable[[str], bool]) -> tuple["EncodedVideos", "EncodedVideos"]:
        """(those whose video id is chosen, the others), skipped entries likewise."""
        return self._where(chosen), self._where(lambda video_id: not chosen(video_id))

    def _where(self, chosen) -> "EncodedVideos":
        rows = [row for row, video_id in enumerate(self.video_ids) if chosen(video_id)]
        embeddings = type(self.embeddings)(*(tensor[rows] for tensor in self.embeddings)) if rows else None
        skipped = [entry for entry in self.skipped if chosen(entry["video_id"])]
        return EncodedVideos(embeddings, [self.items[row] for row in rows], self.timestamps[rows], skipped)


def item_path(item: dict) -> str:
    """The file of an item: its `video` (a training row) or its `path` (an index row)."""
    path = item.get("video") or item.get("path")
    if not path:
        raise ValueError(f"item {item.get('video_id')!r} names no file: give it a 'video' or a 'path'")
    return str(path)


def default_workers(num_items: int) -> int:
    """Loader workers: none for a handful of videos (starting them costs more), else all cores but one, at most 8."""
    return 0 if num_items < 8 else max(1, min(8, (os.cpu_count() or 1) - 1))


@torch.no_grad()
def encode_texts(
    model, processor, texts: Sequence[str], batch_size: int = 256, paragraphs: Sequence[str] | None = None
) -> TextEmbeddings:
    """Embed texts: TextEmbeddings with one row per text, on the CPU in float32.

    paragraphs: per text, all captions of its video joined (training-time TF-IDF, `q`); None at inference, where q = 1.
    Raises ValueError for an empty list or an empty text.
    """
    texts = list(texts)
    if not texts:
        raise ValueError("no texts to encode")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {number} is empty: {text!r}")
    model.eval()
    batches = []
    for start in range(0, len(texts), batch_size):
        chunk = slice(start, start + batch_size)
        extra = {} if paragraphs is None else {"paragraphs": list(paragraphs[chunk])}
        batch = processor(text=texts[chunk], return_tensors="pt", **extra)
        batches.append(_to_cpu(model.get_text_features(**_to_device(batch, model))))
    return concatenate(batches)


def encode_videos(
    model,
    processor,
    items: Iterable[dict],
    batch_size: int = 16,
    num_workers: int | None = None,
    description="embedding",
) -> EncodedVideos:
    """Embed videos: every item ({video_id, video or path, start, end}) is either in the result or in its `skipped`.

    Raises ValueError when not one item decodes, naming the first reason.
    """
    items = list(items)
    parts = list(iter_videos(model, processor, items, batch_size, num_workers, description))
    whole = concatenate_encoded(parts)
    if whole.embeddings is None:
        reason = whole.skipped[0]["error"] if whole.skipped else "there are no items"
        raise ValueError(f"none of {len(items)} videos could be embedded; the first: {reason}")
    return whole


def iter_videos(
    model,
    processor,
    items: Sequence[dict],
    batch_size: int = 16,
    num_workers: int | None = None,
    description="embedding",
) -> Iterator[EncodedVideos]:
    """As `encode_videos`, one EncodedVideos per batch in the order of `items`: a caller can commit as it goes."""
    items = list(items)
    workers = default_workers(len(items)) if num_workers is None else num_workers
    loader = DataLoader(
        _Clips(items, processor.feature_extractor),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=2 if workers else None,
    )
    model.eval()
    with progress(len(items), description) as advance:
        for clips, errors in loader:
            yield _encode_batch(model, processor.feature_extractor, clips, errors, items)
            advance(len(clips) + len(errors))


class _Clips(Dataset):
    """Decodes in the worker; an error travels back as a line of text, because exceptions do not always pickle."""

    def __init__(self, items: Sequence[dict], frame_sampler):
        self.items, self.frame_sampler = items, frame_sampler

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple:
        item = self.items[number]
        try:
            return number, self.frame_sampler.decode(item_path(item), item.get("start"), item.get("end")), None
        except (ValueError, OSError) as error:  # VideoDecodeError is a ValueError
            return number, None, str(error)


def _collate(samples: list) -> tuple[list, list]:
    good = [(number, clip) for number, clip, error in samples if error is None]
    bad = [(number, error) for number, _, error in samples if error is not None]
    return good, bad


@torch.no_grad()
def _encode_batch(model, frame_sampler, clips: list, errors: list, items: Sequence[dict]) -> EncodedVideos:
    skipped = [
        {"video_id": items[number]["video_id"], "path": item_path(items[number]), "error": error}
        for number, error in errors
    ]
    if not clips:
        return EncodedVideos(None, [], torch.empty(0, 0), skipped)
    batch, timestamps = _pad_clips([clip for _, clip in clips], frame_sampler, next(model.parameters()))
    embeddings = _to_cpu(model.get_video_features(**batch))
    return EncodedVideos(embeddings, [items[number] for number, _ in clips], timestamps, skipped)


def _pad_clips(clips: Sequence, frame_sampler, like: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """Decoded clips -> a normalised batch beside the model; they came from the workers as uint8, a quarter the size."""
    frames, size = frame_sampler.num_frames, frame_sampler.size
    pixel_values = torch.zeros(len(clips), frames, 3, size, size, device=like.device, dtype=like.dtype)
    video_mask = torch.zeros(len(clips), frames, dtype=torch.bool)
    timestamps = torch.zeros(len(clips), frames)
    for row, clip in enumerate(clips):
        count = len(clip.frames)
        pixel_values[row, :count] = frame_sampler.normalize(clip.frames.to(like.device)).to(like.dtype)
        video_mask[row, :count] = True
        timestamps[row, :count] = clip.timestamps
    return {"pixel_values": pixel_values, "video_mask": video_mask.to(like.device)}, timestamps


def _to_device(batch, model) -> dict:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def _to_cpu(embeddings):
    """fp32 from here on: scores are compared in float32 or wider."""
    return type(embeddings)(*(t.float().cpu() if t.is_floating_point() else t.cpu() for t in embeddings))


def concatenate(parts: Sequence):
    """Join TextEmbeddings (or VideoEmbeddings) along their rows."""
    return type(parts[0])(*(torch.cat(tensors) for tensors in zip(*parts)))


def concatenate_encoded(parts: Sequence[EncodedVideos]) -> EncodedVideos:
    """Join batches of `iter_videos`; batches of which nothing decoded add only to `skipped`."""
    skipped = [entry for part in parts for entry in part.skipped]
    parts = [part for part in parts if part.embeddings is not None]
    if not parts:
        return EncodedVideos(None, [], torch.empty(0, 0), skipped)
    items = [item for part in parts for item in part.items]
    timestamps = torch.cat([part.timestamps for part in parts])
    return EncodedVideos(concatenate([part.embeddings for part in parts]), items, timestamps, skipped)

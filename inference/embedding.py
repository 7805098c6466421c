"""Texts and videos through the model in batches; loader workers decode, and a bad file never stops the rest."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dmae.inference.guarded import in_worker
from dmae.inference.presets import preset_of, warn_of_language
from dmae.inference.progress import progress
from dmae.inference.stretches import as_samples, decode_stretch
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings


class EncodedVideos(NamedTuple):
    """What `encode_videos` gives; all tensors on the CPU, floats in float32, rows in the order of `items`.

    embeddings: VideoEmbeddings of N rows, or None when nothing decoded.
    items: the N dicts that decoded, as they were given.
    timestamps: (N, F) seconds of the chosen frames; only entries under `video_mask` mean anything. For a model that
        sees a window at once F is 1, the window's middle, and an item's "span" holds its first and last frame's time.
    skipped: one {"video_id", "path", "error"} for each item that did not decode.
    """

    embeddings: Any  # VideoEmbeddings | None
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
        embeddings = self.embeddings[rows] if rows else None
        skipped = [entry for entry in self.skipped if chosen(entry["video_id"])]
        return EncodedVideos(embeddings, [self.items[row] for row in rows], self.timestamps[rows], skipped)


def item_video(item: dict) -> Any:
    """What the frame sampler reads of an item: its `video` (anything a processor takes), else its `path`."""
    video = item.get("video")
    video = item.get("path") if video is None else video
    if video is None or (isinstance(video, str) and not video):
        raise ValueError(f"item {item.get('video_id')!r} has no video: give it a 'video' or a 'path'")
    return video


def item_file(item: dict) -> str | None:
    """The file an item's video is read from; None for one that is only in memory."""
    video = item_video(item)
    if isinstance(video, Mapping):  # as `datasets.Video(decode=False)` gives it
        video = video.get("path")
    video = video if isinstance(video, (str, os.PathLike)) else item.get("path")
    return None if video is None else str(video)


def item_path(item: dict) -> str:
    """An item's file, or what its video is, for people to read."""
    return item_file(item) or f"<{type(item_video(item)).__name__} in memory>"


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
    preset = preset_of(model.config.name_or_path)
    if preset:
        warn_of_language(texts, preset.languages)
    model.eval()
    batches = []
    for start in range(0, len(texts), batch_size):
        chunk = slice(start, start + batch_size)
        extra = {} if paragraphs is None else {"paragraphs": list(paragraphs[chunk])}
        batch = processor(text=texts[chunk], return_tensors="pt", **extra)
        batches.append(_to_cpu(model.get_text_features(**_to_device(batch, model))))
    return TextEmbeddings.cat(batches)


def encode_videos(
    model,
    processor,
    items: Iterable[dict],
    batch_size: int = 16,
    num_workers: int | None = None,
    description="embedding",
) -> EncodedVideos:
    """Embed videos: every item ({video_id, video or path, start, end}) is either in the result or in its `skipped`.

    `video` is whatever a processor takes: a file, bytes, frames, a row of `datasets.Video`.
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
    items: Iterable[dict],
    batch_size: int = 16,
    num_workers: int | None = None,
    description="embedding",
    total: int | None = None,
) -> Iterator[EncodedVideos]:
    """As `encode_videos`, one EncodedVideos per batch in the order of `items`: a caller can commit as it goes.

    items may be an iterator, which is read no further than the workers need. An item with an "error" is skipped for
    that reason. total: how many videos there are, for progress; an item that is not the `last` of its video counts
    by the time of its end.
    """
    if isinstance(items, Sequence):
        total = len(items) if total is None else total
    workers = default_workers(total or 1) if num_workers is None else num_workers
    model.eval()
    encoder, whole, told = _Encoder(model, processor.feature_extractor), 0, 0.0
    with progress(total, description) as advance:
        for batch in in_worker(_Clips(processor.feature_extractor), items, batch_size, workers):
            samples = [sample for one in batch for sample in as_samples(*one)]
            yield encoder(samples)
            items = [item for item, _, _ in samples]
            whole += sum(item.get("last", True) for item in items)
            now = whole + (_share_done(items[-1]) if items else 0.0)
            advance(now - told, len(items))
            told = now


def encode_frames(model, processor, frames: torch.Tensor, timestamps: torch.Tensor) -> VideoEmbeddings:
    """One video whose frames were decoded elsewhere: (n,3,size,size) uint8 and their seconds (n,), as the processor's
    frame sampler gives them."""
    from dmae.processing.frames_dmae import DecodedFrames

    item = {"video_id": "frames", "video": frames}
    model.eval()
    encoder = _Encoder(model, processor.feature_extractor)
    return encoder([(item, DecodedFrames(frames, timestamps), None)]).embeddings


def _share_done(item: dict) -> float:
    """How much of its video lies before the end of a window that is not the last one."""
    span = item.get("span")
    if item.get("last", True) or not span or item.get("end") is None:
        return 0.0
    return min(1.0, max(0.0, (item["end"] - span[0]) / max(span[1] - span[0], 1e-9)))


class _Clips:
    """What the worker runs: item -> its frames."""

    def __init__(self, frame_sampler):
        self.frame_sampler = frame_sampler

    def __call__(self, item: dict):
        if item.get("error"):
            raise ValueError(item["error"])
        if item.get("windows"):
            return decode_stretch(self.frame_sampler, item, item_video(item))
        return self.frame_sampler.decode(item_video(item), item.get("start"), item.get("end"))

    def weight(self, item: dict) -> int:
        """How many videos' frames an item brings: a batch of stretches would be several times as large."""
        if not item.get("windows"):
            return 1
        frames = (item["end"] - item["start"]) * self.frame_sampler.fps
        return max(1, round(frames / self.frame_sampler.num_frames))

    @property
    def cpu_seconds(self) -> float:
        return self.frame_sampler.max_cpu_seconds


class _Encoder:
    """Batches of decoded items -> EncodedVideos; a frame that lies in several windows of a file is embedded once."""

    def __init__(self, model, frame_sampler):
        self.model, self.frame_sampler = model, frame_sampler
        self.known: dict[tuple, torch.Tensor] = {}  # (file, time) -> tokens, of the last batch: its windows may go on

    @torch.no_grad()
    def __call__(self, samples: list[tuple]) -> EncodedVideos:
        skipped = [
            {"video_id": item["video_id"], "path": item_path(item), "error": error}
            for item, _, error in samples
            if error is not None
        ]
        good = [(item, clip) for item, clip, error in samples if error is None]
        if not good:
            return EncodedVideos(None, [], torch.empty(0, 0), skipped)
        if self.model.config.sees_windows:
            return self._windows(good, skipped)
        frame_tokens, video_mask, timestamps = self._padded(good, self._tokens(good))
        embeddings = _to_cpu(self.model.get_video_features(frame_tokens=frame_tokens, video_mask=video_mask))
        return EncodedVideos(embeddings, [item for item, _ in good], timestamps, skipped)

    def _windows(self, good: list[tuple], skipped: list[dict]) -> EncodedVideos:
        """One vector each, seen at the middle of its window; what the window spans is said in its item."""
        pixels = self._pixels([frame for _, clip in good for frame in clip.frames])
        counts = torch.tensor([len(clip.frames) for _, clip in good], device=pixels.device)
        video_mask = torch.arange(self.frame_sampler.num_frames, device=pixels.device) < counts[:, None]
        padded = pixels.new_zeros(*video_mask.shape, *pixels.shape[1:])
        padded[video_mask] = pixels
        embeddings = _to_cpu(self.model.get_video_features(padded, video_mask))
        spans = [(float(clip.timestamps[0]), float(clip.timestamps[-1])) for _, clip in good]
        middles = torch.tensor([[(first + last) / 2] for first, last in spans])
        items = [item if item.get("span") else {**item, "span": span} for (item, _), span in zip(good, spans)]
        return EncodedVideos(embeddings, items, middles, skipped)

    def _tokens(self, good: list[tuple]) -> dict[tuple, torch.Tensor]:
        """The tokens of every frame of these items by its key; only those that are not known yet are computed."""
        frames = {key: frame for row, pair in enumerate(good) for key, frame in zip(_keys(row, *pair), pair[1].frames)}
        new = [key for key in frames if key not in self.known]
        tokens = {key: self.known[key] for key in frames if key in self.known}
        most = self.frame_sampler.num_frames * len(good)  # no more at once than without shared frames
        for start in range(0, len(new), most):
            part = new[start : start + most]
            tokens |= zip(part, self.model.get_frame_tokens(self._pixels([frames[key] for key in part])))
        self.known = {key: value for key, value in tokens.items() if key[0] == _keys(0, *good[-1])[0][0]}
        return tokens

    def _pixels(self, frames: list[torch.Tensor]) -> torch.Tensor:
        """Normalised frames beside the model; they came from the workers as uint8, a quarter the size."""
        like = next(self.model.parameters())
        return self.frame_sampler.normalize(torch.stack(frames).to(like.device)).to(like.dtype)

    def _padded(self, good: list[tuple], tokens: dict[tuple, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(tokens (B,F,1 or 1+K,D), mask (B,F), seconds (B,F)) of the items, 0 at padding."""
        one = next(iter(tokens.values()))
        shape = (len(good), self.frame_sampler.num_frames)
        padded, mask = one.new_zeros(*shape, *one.shape), torch.zeros(shape, dtype=torch.bool, device=one.device)
        timestamps = torch.zeros(shape)
        for row, (item, clip) in enumerate(good):
            count = len(clip.frames)
            padded[row, :count] = torch.stack([tokens[key] for key in _keys(row, item, clip)])
            mask[row, :count] = True
            timestamps[row, :count] = clip.timestamps
        return padded, mask, timestamps


def _keys(row: int, item: dict, clip) -> list[tuple]:
    """What a frame is known by: its file, as it was when it was read, and its time; in memory, the item itself."""
    file = item_file(item)
    source = row if file is None else (file, *(item.get("signature") or ()))
    return [(source, time) for time in clip.timestamps.tolist()]


def _to_device(batch, model) -> dict:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def _to_cpu(embeddings):
    """fp32 from here on: scores are compared in float32 or wider."""
    return embeddings.to("cpu", torch.float32)


def concatenate_encoded(parts: Sequence[EncodedVideos]) -> EncodedVideos:
    """Join batches of `iter_videos`; batches of which nothing decoded add only to `skipped`."""
    skipped = [entry for part in parts for entry in part.skipped]
    parts = [part for part in parts if part.embeddings is not None]
    if not parts:
        return EncodedVideos(None, [], torch.empty(0, 0), skipped)
    items = [item for part in parts for item in part.items]
    timestamps = torch.cat([part.timestamps for part in parts])
    return EncodedVideos(VideoEmbeddings.cat([part.embeddings for part in parts]), items, timestamps, skipped)

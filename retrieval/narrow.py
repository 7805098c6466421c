"""Frames in fewer bytes: 8 bits a number with a scale per frame, and neighbouring frames that say the same merged.

float16   2·F·D bytes a row, as the model gave them
int8      F·D bytes and 4·F of scales: half
merged    as int8, with a third of the frames: a sixth

Beside float16 frames lie `scenes`, these merged to a quarter and in 8 bits: an eighth more bytes, by which a search
chooses among its candidates before it reads their frames.
"""

import numpy as np
import torch
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import wide

KINDS = ("float16", "int8", "merged")


def stored_frames(video: VideoEmbeddings, timestamps: Tensor, kind: str) -> dict[str, np.ndarray]:
    """The frame tensors of a segment: frames, frame_weights, video_mask, timestamps, and frame_scales with 8 bits; with
    float16 those of `scenes_of` too."""
    scenes = scenes_of(video) if kind == "float16" else {}
    if kind == "merged":
        video, timestamps = merge_neighbours(video, timestamps, -(-video.video_mask.shape[1] // 3))
    tensors = {"frames": video.attended_embeds, "frame_weights": video.frame_weights, "video_mask": video.video_mask}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()} | {"timestamps": timestamps.numpy()}
    if kind != "float16":
        arrays["frames"], arrays["frame_scales"] = in_8_bits(arrays["frames"])
    return arrays | scenes


def scenes_of(video: VideoEmbeddings) -> dict[str, np.ndarray]:
    """The tensors `scenes` and `scene_factors` of a segment: a quarter of the frames, merged, in 8 bits. None for so
    few frames that one would be left: that is the mean, which is stored already.

    Where a video has fewer frames than that, its first scene stands in the empty places, with no weight.
    """
    number = -(-video.video_mask.shape[1] // 4)
    if number < 2:
        return {}
    merged, _ = merge_neighbours(video, torch.zeros(video.video_mask.shape), number)
    rows, places = np.arange(len(merged.video_mask))[:, None], torch.arange(number).expand(len(merged.video_mask), -1)
    first = merged.video_mask.float().argmax(1, keepdim=True)
    taken = torch.where(merged.video_mask, places, first).numpy()
    scenes, scales = in_8_bits(merged.attended_embeds.numpy()[rows, taken])
    factors = np.stack([scales, merged.frame_weights.numpy().astype(np.float32)], -1)
    return {"scenes": scenes, "scene_factors": factors}


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"frames={kind!r} is not a choice; valid: {', '.join(KINDS)}")


def in_8_bits(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,F,D) -> int8 (n,F,D) and scales float32 (n,F): frame ≈ scale · numbers, wrong by half a scale at most."""
    scales = np.abs(frames).max(-1).astype(np.float32) / 127
    numbers = np.rint(frames / np.maximum(scales, 1e-30)[..., None])
    return numbers.astype(np.int8), scales


def merge_neighbours(video: VideoEmbeddings, timestamps: Tensor, frames: int) -> tuple[VideoEmbeddings, Tensor]:
    """Again and again the two neighbours with the highest cosine become one, until `frames` are left. -> (B,frames,D).

    A merged frame is the mean of its parts by weight and carries the sum of their weights, so Σ_j c_j v_j stays as it
    is; similarity of the merged frames is at most the exact one (a mean is at most a maximum). Frames outside the mask
    have weight 0 and merge first. Times are means by weight too. Cosines of means follow from the products of the
    frames, (B,F,F), so the frames themselves are read at the beginning and at the end alone.
    """
    values, weights, mask = wide(video.attended_embeds), wide(video.frame_weights), video.video_mask
    times, products = wide(timestamps), values @ values.mT
    rows, parts = torch.arange(len(mask)), torch.eye(values.shape[1], dtype=values.dtype).expand_as(products)
    while parts.shape[1] > frames:
        seen = parts @ products
        lengths = (seen * parts).sum(-1).clamp(min=0.0).sqrt()
        likeness = (seen[:, :-1] * parts[:, 1:]).sum(-1) / (lengths[:, :-1] * lengths[:, 1:]).clamp(min=1e-12)
        first = likeness.masked_fill(~(mask[:, :-1] & mask[:, 1:]), 2.0).argmax(1)
        pair = torch.stack([first, first + 1], 1)
        share = weights.gather(1, pair)
        total = share.sum(1)
        share = share / total.clamp(min=1e-30)[:, None]
        left = torch.arange(parts.shape[1] - 1).expand(len(rows), -1)
        left = left + (left > first[:, None])
        joined = torch.einsum("bp,bpf->bf", share, parts[rows[:, None], pair])
        time, valid = (share * times.gather(1, pair)).sum(1), mask.gather(1, pair).any(1)
        parts, weights, times, mask = parts[rows[:, None], left], *(t.gather(1, left) for t in (weights, times, mask))
        parts[rows, first], weights[rows, first], times[rows, first], mask[rows, first] = joined, total, time, valid
    values = parts @ values
    return VideoEmbeddings(values, values, weights, mask), times

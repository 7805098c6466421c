"""Frames in fewer bytes: 8 bits a number with a scale per frame, and neighbouring frames that say the same merged.

float16   2·F·D bytes a row, as the model gave them
int8      F·D bytes and 4·F of scales: half
merged    as int8, with a third of the frames: a sixth
"""

import numpy as np
import torch
from torch import Tensor

from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit, wide

KINDS = ("float16", "int8", "merged")


def stored_frames(video: VideoEmbeddings, timestamps: Tensor, kind: str) -> dict[str, np.ndarray]:
    """The frame tensors of a segment: frames, frame_weights, video_mask, timestamps, and frame_scales with 8 bits."""
    if kind == "merged":
        video, timestamps = merge_neighbours(video, timestamps, -(-video.video_mask.shape[1] // 3))
    tensors = {"frames": video.attended_embeds, "frame_weights": video.frame_weights, "video_mask": video.video_mask}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()} | {"timestamps": timestamps.numpy()}
    if kind != "float16":
        arrays["frames"], arrays["frame_scales"] = in_8_bits(arrays["frames"])
    return arrays


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
    have weight 0 and merge first. Times are means by weight too.
    """
    values, weights, mask = wide(video.attended_embeds), wide(video.frame_weights), video.video_mask
    times = wide(timestamps)
    rows = torch.arange(len(mask))
    while values.shape[1] > frames:
        likeness = (unit(values[:, :-1]) * unit(values[:, 1:])).sum(-1)
        first = likeness.masked_fill(~(mask[:, :-1] & mask[:, 1:]), 2.0).argmax(1)
        pair = torch.stack([first, first + 1], 1)
        share = weights.gather(1, pair)
        total = share.sum(1)
        share = share / total.clamp(min=1e-30)[:, None]
        left = torch.arange(values.shape[1] - 1).expand(len(rows), -1)
        left = left + (left > first[:, None])
        joined = torch.einsum("bp,bpd->bd", share, values[rows[:, None], pair])
        time, valid = (share * times.gather(1, pair)).sum(1), mask.gather(1, pair).any(1)
        values, weights, times, mask = values[rows[:, None], left], *(t.gather(1, left) for t in (weights, times, mask))
        values[rows, first], weights[rows, first], times[rows, first], mask[rows, first] = joined, total, time, valid
    return VideoEmbeddings(values, values, weights, mask), times

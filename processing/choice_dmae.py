"""Which frames of a video to take: decided from their times alone, without a video."""

import math

import numpy as np
import torch

SAMPLINGS = ("fps", "uniform", "segment_start", "segment_center", "segment_random")
ROUNDING = 6e-4  # seconds: Matroska keeps whole milliseconds, what begins at 1.0004 s there may begin at 1 s


def choose_frames(
    times: np.ndarray,
    num_frames: int,
    sampling: str = "fps",
    fps: float = 1.0,
    start: float | None = None,
    end: float | None = None,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Which frames to take, by time: ascending times (n,) in seconds -> ascending distinct indices.

    At most `num_frames` of them. A moment stands for the frame *shown* then: the last one that starts at or before it.
    Frames outside [`start`, `end`] do not count; if none lies inside, the one shown at `start` is taken, if any.

    fps            every 1/fps seconds from the first frame on; where those are too many, an even choice of them
    uniform        `num_frames` moments evenly from the first to the last frame
    segment_start  `num_frames` equal segments, the beginning of each (transformers' video processors by default)
    segment_center `num_frames` equal segments, the middle of each
    segment_random `num_frames` equal segments, a random moment in each (`generator`, else torch's global one)
    every          all of them, for `every_frame`; no setting of a sampler

    A frame counts once: a video with fewer frames than moments gives fewer indices, never repeats.
    """
    low, high = -math.inf if start is None else start, math.inf if end is None else end
    inside = np.flatnonzero((times >= low - 1e-9) & (times <= high + 1e-9))
    spacing = (times[-1] - times[0]) / max(len(times) - 1, 1)  # how long the last frame lasts, for all we know
    if not len(inside):
        until = np.append(times[1:], times[-1] + spacing)
        return np.flatnonzero((times <= low) & (low < until))
    times = times[inside]
    first, last = times[0], times[-1]
    if sampling == "fps":
        moments = first + np.arange(math.floor((last - first + ROUNDING) * fps) + 1) / fps
    elif sampling == "every":
        moments = times
    elif sampling == "uniform":
        moments = np.linspace(first, last, num_frames)
    else:
        length = min(last + spacing, high) - first
        fixed = {"segment_start": 0.0, "segment_center": 0.5}.get(sampling)
        offset = torch.rand(num_frames, generator=generator).double().numpy() if fixed is None else fixed
        moments = first + (np.arange(num_frames) + offset) * length / num_frames
    chosen = np.unique(np.searchsorted(times, moments + ROUNDING, side="right") - 1)
    if len(chosen) > num_frames:
        chosen = chosen[np.linspace(0, len(chosen) - 1, num_frames).astype(np.int64)]
    return inside[chosen]


def every_frame(times: np.ndarray, num_frames: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """All frames of a window; ValueError if they are more than `num_frames`. As `choose_frames` without a choice."""
    inside = choose_frames(times, len(times), "every", start=start, end=end)
    if len(inside) > num_frames:
        raise ValueError(
            f"do_sample_frames=False, and the video has {len(inside)} frames where num_frames={num_frames} is the "
            f"most; let them be sampled, or give fewer"
        )
    return inside

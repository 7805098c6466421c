"""Videos in memory, in the forms people hold them: arrays, lists of frames, decoders; each with its times.

A batch is told from a video, and a video from a frame, by structure alone (`listed`): a frame is a picture or an array
of 3 axes, a video 4 axes or a list of frames, a batch 5 axes or a list of videos. Told by methods, never by class: no
library is imported for what it may give.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .sources_dmae import VideoDecodeError


class HeldFrames(NamedTuple):
    """One video in memory: its frames in any form, and the second at which each is shown, ascending."""

    frames: Sequence[Any] | torch.Tensor
    times: np.ndarray


def listed(videos: Any) -> tuple[list[Any], bool]:
    """-> (the videos, whether it was one alone). A list of lists of videos is flattened, as in transformers."""
    if _is_array(videos) and videos.ndim == 5:
        return list(videos), False
    if not isinstance(videos, (list, tuple)) or _with_metadata(videos):
        return [videos], True
    if not videos:
        raise ValueError("videos is an empty list; give at least one video")
    if _is_numbers(videos):
        return listed(np.asarray(videos))
    if all(_is_frame(item) for item in videos):
        return [videos], True
    nested = [isinstance(item, (list, tuple)) and not _is_one_video(item) for item in videos]
    return [video for item, several in zip(videos, nested) for video in (item if several else [item])], False


def held_frames(video: Any, metadata: Mapping | None, fps: float) -> HeldFrames | None:
    """The frames of a video in memory; None for what must be opened and decoded, and for a decoder.

    metadata: `fps`, and `frames_indices` where frames were left out (as transformers' `VideoMetadata`): then a frame is
    shown at index / fps. Without, frames count as 1/`fps` seconds apart.
    """
    if isinstance(video, tuple) and _with_metadata(video):
        video, metadata = video
    if isinstance(video, Mapping) and video.get("frames") is not None:
        video, metadata = video["frames"], {**(metadata or {}), **{k: v for k, v in video.items() if k != "frames"}}
    if isinstance(video, (list, tuple)) and _is_numbers(video):
        video = np.asarray(video)
    if _is_array(video):
        frames: Sequence[Any] | torch.Tensor = _channels_first(torch.as_tensor(video))
    elif isinstance(video, (list, tuple)):
        frames = video
    else:
        return None
    if not len(frames):
        raise VideoDecodeError("a video in memory holds no frames; give at least one")
    return HeldFrames(frames, _times(len(frames), metadata or {}, fps))


def frame_tensor(frame: Any) -> torch.Tensor:
    """A picture, or an array (H,W,3) or (3,H,W) of uint8, whole numbers to 255 or floats in [0,1] -> (3,H,W) uint8."""
    if hasattr(frame, "convert"):  # a PIL image: grey, palette and transparent ones too
        frame = np.array(frame.convert("RGB"))
    values = torch.as_tensor(frame)
    if values.ndim != 3 or 3 not in (values.shape[0], values.shape[2]):
        raise ValueError(f"a frame of shape {tuple(values.shape)}: expected (H,W,3) or (3,H,W)")
    values = values.permute(2, 0, 1) if values.shape[2] == 3 else values
    return values if values.dtype == torch.uint8 else _as_bytes(values)


class DecoderReader:
    """Frames of a torchcodec `VideoDecoder`, or of anything with its `get_frames_played_at` and `metadata`.

    A moment stands for the frame the decoder plays then; times are the decoder's own. It tells when its first and last
    frame begin and how many there are, so what lies between is chosen as if it were evenly spaced.
    """

    def __init__(self, decoder: Any):
        self.decoder, about = decoder, decoder.metadata
        first, end, rate = about.begin_stream_seconds or 0.0, about.end_stream_seconds, about.average_fps
        if not (rate and end is not None and end > first):
            raise VideoDecodeError(f"a decoder says it plays from {first} s to {end} s at {rate} fps; give its file")
        # `rate` counts how long the last frame is said to last, often wrongly (Matroska): its beginning is asked for
        self.last_moment = max(end - 1e-3, first)
        last = float(decoder.get_frames_played_at([self.last_moment]).pts_seconds[0])
        self.times = np.linspace(first, last, about.num_frames or round((end - first) * rate))

    def read(self, choose: Callable[[np.ndarray], np.ndarray]) -> HeldFrames:
        """What `choose` picks of the evenly spaced times; a frame that is played twice counts once."""
        chosen = choose(self.times)
        if not len(chosen):
            raise VideoDecodeError(
                f"a decoder has no frame in the chosen window: its frames lie between {self.times[0]:.2f} s and "
                f"{self.times[-1]:.2f} s; move the window"
            )
        # asked for in the middle of its time: a frame may begin a rounding after the even time
        middles = self.times[chosen] + (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1) / 2
        batch = self.decoder.get_frames_played_at([*np.minimum(middles, self.last_moment)])
        times, first = np.unique(np.asarray(batch.pts_seconds, dtype=np.float64), return_index=True)
        return HeldFrames([batch.data[place] for place in first], times)


def is_decoder(video: Any) -> bool:
    return hasattr(video, "get_frames_played_at")


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim")


def _is_frame(item: Any) -> bool:
    return hasattr(item, "convert") or (_is_array(item) and item.ndim == 3)


def _is_one_video(item: Sequence[Any]) -> bool:
    """Frames, numbers nested like frames, or frames with their metadata: one video, though it is a list."""
    return bool(item) and (_with_metadata(item) or _is_numbers(item) or all(_is_frame(part) for part in item))


def _with_metadata(item: Sequence[Any]) -> bool:
    """(frames, metadata), what transformers' `load_video` gives."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping) and "fps" in item[1]


def _is_numbers(item: Any) -> bool:
    """Numbers nested at least four deep: frames, rows, pixels, channels."""
    depth = 0
    while isinstance(item, (list, tuple)) and item:
        item, depth = item[0], depth + 1
    return depth >= 4 and isinstance(item, (int, float))


def _channels_first(frames: torch.Tensor) -> torch.Tensor:
    """(F,H,W,3), or (F,3,H,W), told apart by where the 3 is (last wins) -> (F,3,H,W), a view."""
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise ValueError(
            f"frames of shape {tuple(frames.shape)} and dtype {frames.dtype}: expected (F,H,W,3) or (F,3,H,W), uint8 "
            f"or floats in [0,1]"
        )
    if 0 in frames.shape:
        raise VideoDecodeError(f"an array of shape {tuple(frames.shape)} holds no frames; give at least one")
    return frames.permute(0, 3, 1, 2) if frames.shape[3] == 3 else frames


def _as_bytes(values: torch.Tensor) -> torch.Tensor:
    low, high = float(values.min()), float(values.max())
    floats = values.is_floating_point()
    if values.dtype == torch.bool or not (low >= 0 and high <= (1 if floats else 255)):
        kind = "floats must lie in [0, 1]" if floats else "whole numbers must lie in [0, 255]"
        raise ValueError(
            f"frames of {values.dtype} reach from {low:g} to {high:g}, and {kind}; give uint8, or frames as they were "
            f"before they were normalised"
        )
    return (values.float() * 255).round().to(torch.uint8) if floats else values.to(torch.uint8)


def _times(count: int, metadata: Mapping, fps: float) -> np.ndarray:
    rate, indices = metadata.get("fps"), metadata.get("frames_indices")
    if indices is None:
        return np.arange(count) / (rate or fps)
    indices = np.asarray(indices, dtype=np.float64)
    if rate is None or len(indices) != count or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"video_metadata has {len(indices)} frames_indices and fps={rate} for {count} frames; give one ascending "
            f"index per frame, and the rate they count at"
        )
    return indices / rate

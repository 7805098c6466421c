"""A decoded frame as the square that a backbone takes, on uint8: the middle cut out, or the whole squeezed into it."""

import torch
import torch.nn.functional as F

FITS, RESAMPLES = ("crop", "stretch"), ("bicubic", "bilinear")
MAX_ASPECT_RATIO = 8  # wider frames are cut to it before resizing, so that a strip of pixels cannot grow without bound


def resize_and_crop(frame: torch.Tensor, size: int, resample: str = "bicubic") -> torch.Tensor:
    """Shorter side to `size` (antialiased, on uint8: within 1/255 of PIL), centre `size` x `size`.

    (3,H,W) uint8 -> (3,size,size) uint8. Frames wider or taller than 8:1 are first cut to that ratio.
    """
    height, width = frame.shape[-2:]
    longest = MAX_ASPECT_RATIO * min(height, width)
    frame = _center_crop(frame, min(height, longest), min(width, longest))
    height, width = frame.shape[-2:]
    short = min(height, width)
    resized = resize(frame, int(size * height / short), int(size * width / short), resample)
    return _center_crop(resized, size, size)


def resize(frame: torch.Tensor, height: int, width: int, resample: str) -> torch.Tensor:
    """(3,H,W) uint8 -> (3,height,width) uint8, whatever that does to the proportions."""
    if frame.shape[-2:] == (height, width):
        return frame
    return F.interpolate(frame[None], (height, width), mode=resample, antialias=True)[0]


def _center_crop(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    top, left = (frame.shape[-2] - height) // 2, (frame.shape[-1] - width) // 2
    return frame[..., top : top + height, left : left + width]

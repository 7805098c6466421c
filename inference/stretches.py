"""Several windows of one file, decoded together: a frame that lies in many of them is decoded once.

An item with `windows` [(start, end), …] is decoded as each of them alone would be. One with `split` too is decoded on
the sampler's grid of times from `start` to `end`, and `split(times, frames)` says which windows that makes in their
place; they remain for a file that is damaged.
"""

from typing import NamedTuple

import numpy as np

from dmae.processing.frames_dmae import DecodedFrames


class Window(NamedTuple):
    """What an item of its own would say: {start, end}, and which frames of the stretch it has, or why it has none."""

    fields: dict
    frames: np.ndarray | None
    error: str | None = None


class Stretch(NamedTuple):
    decoded: DecodedFrames | None
    windows: list[Window]


def decode_stretch(sampler, item: dict, video) -> Stretch:
    """The windows of an item with `windows`; each that could not be read says why."""
    windows = [Window({"start": start, "end": end}, None) for start, end in item["windows"]]
    try:
        if item.get("split") is not None:
            decoded = sampler.decode_grid(video, item["start"], item["end"])
            made = item["split"](decoded.timestamps.numpy(), decoded.frames)
            return Stretch(decoded, [Window({"start": start, "end": end}, frames) for start, end, frames in made])
        decoded, picks = sampler.decode_windows(video, item["windows"])
    except (ValueError, OSError):  # damage in one place: the others may be read alone
        return _one_by_one(sampler, windows, video)
    return Stretch(decoded, [window._replace(frames=frames) for window, frames in zip(windows, picks)])


def _one_by_one(sampler, windows: list[Window], video) -> Stretch:
    parts, read = [], []
    for window in windows:
        try:
            clip = sampler.decode(video, window.fields["start"], window.fields["end"])
        except (ValueError, OSError) as error:
            parts.append(window._replace(error=str(error) or type(error).__name__))
        else:
            first = sum(len(one.frames) for one in read)
            parts.append(window._replace(frames=np.arange(first, first + len(clip.frames))))
            read.append(clip)
    return Stretch(DecodedFrames.joined(read) if read else None, parts)


def as_samples(item: dict, clip, error: str | None) -> list[tuple]:
    """(item, clip, error) of every window, as if each had been an item; `last` stays with the final one."""
    if not isinstance(clip, Stretch):
        return [(item, clip, error)]
    plain = {name: value for name, value in item.items() if name not in ("windows", "split")}
    samples = []
    for number, window in enumerate(clip.windows, start=1):
        mine = {**plain, **window.fields, "last": item.get("last", True) and number == len(clip.windows)}
        frames = None
        if clip.decoded is not None and window.frames is not None:
            frames = clip.decoded.chosen(window.frames)
        samples.append((mine, frames, window.error))
    return samples

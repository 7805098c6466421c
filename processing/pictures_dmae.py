"""How the processor of a backbone's checkpoint prepares its pictures: read from its files, without an image library."""

import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

RESAMPLES: dict[int | None, str] = {2: "bilinear", 3: "bicubic"}  # as image libraries number them
WINDOW_FRAMES = 16  # where a model of videos names no number
# What the processors of models of videos do, whatever their files say.
VIDEO_MODELS: dict[str, dict[str, Any]] = {
    "videoprism": {
        "sampling": "segment_start", "fit": "stretch", "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
    },
    "pe_video": {"sampling": "uniform", "fit": "stretch", "resample": "bilinear"},
}  # fmt: skip


def picture_settings(source: str, hub: dict) -> dict:
    """How a checkpoint's own processor prepares pictures, from whichever JSON file says so; no image library needed.

    Size, mean, std, whether the middle is cut out or the whole squeezed, interpolation; of a model of videos also how
    many frames and which.
    """

    def read(name):
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

    config, processor = read("config.json"), read("processor_config.json")
    images = read("video_preprocessor_config.json") or read("preprocessor_config.json")
    images = images or processor.get("video_processor") or processor.get("image_processor", {})
    tower = config.get("vision_config") or config.get("video_config") or {}
    side = images.get("crop_size") or images.get("size") or tower.get("image_size")
    settings = {
        "size": next(iter(side.values())) if isinstance(side, dict) else side,
        "image_mean": images.get("image_mean"),
        "image_std": images.get("image_std"),
        "fit": "stretch" if _stretches(images) else None,
        "resample": RESAMPLES.get(images.get("resample")),
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if config.get("model_type") not in VIDEO_MODELS:
        return settings
    num_frames = tower.get("num_frames") or images.get("num_frames") or WINDOW_FRAMES
    return {**settings, **VIDEO_MODELS[config["model_type"]], "num_frames": num_frames}


def _stretches(images: dict) -> bool:
    """Whether both sides are named, and nothing is cut off then: SigLIP's and Chinese-CLIP's way."""
    size = images.get("size")
    return isinstance(size, dict) and {"height", "width"} <= size.keys() and not images.get("do_center_crop")

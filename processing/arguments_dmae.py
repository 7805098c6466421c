"""What a processor may be told: each argument acts or is refused by name, and nothing is swallowed."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

TEXT_ARGUMENTS = ("max_length", "padding", "truncation", "paragraphs")
SAMPLER_ARGUMENTS = (
    "num_frames", "size", "sampling", "fps", "image_mean", "image_std", "dtype", "fit", "resample", "key_frames",
)  # fmt: skip
VIDEO_ARGUMENTS = (*SAMPLER_ARGUMENTS, "start", "end", "generator", "video_metadata", "do_sample_frames")
OUTPUT_ARGUMENTS = ("return_tensors", "return_timestamps", "return_metadata")
# What this processor always does: said so it is fine, asked for otherwise it is refused.
ALWAYS = {
    "add_special_tokens": True,
    "return_attention_mask": True,
    "padding_side": "right",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_pad": True,
    "data_format": "channels_first",
}
MODALITIES = {"text_kwargs": TEXT_ARGUMENTS, "videos_kwargs": VIDEO_ARGUMENTS}


def sorted_arguments(given: Mapping[str, Any]) -> tuple[dict, dict, dict]:
    """Call arguments -> (of the text, of the videos, of the output).

    As in transformers, `text_kwargs` and `videos_kwargs` hold one side's, `common_kwargs` anybody's; an argument that
    is given by itself wins, and None is as if not given. Raises TypeError for a name that is none, ValueError for
    what is never done.
    """
    flat: dict[str, Any] = {}
    for name, valid in MODALITIES.items():
        flat |= _mapping(given, name, (*valid, *OUTPUT_ARGUMENTS))
    everything = (*TEXT_ARGUMENTS, *VIDEO_ARGUMENTS, *OUTPUT_ARGUMENTS)
    flat = {**_mapping(given, "common_kwargs", everything), **flat}
    mappings = (*MODALITIES, "common_kwargs")
    flat |= {name: value for name, value in given.items() if name not in mappings and value is not None}
    refuse_unknown(flat, everything, (*everything, *mappings, "text", "videos"))
    parts = (TEXT_ARGUMENTS, VIDEO_ARGUMENTS, OUTPUT_ARGUMENTS)
    text, videos, output = ({name: flat[name] for name in part if flat.get(name) is not None} for part in parts)
    return text, videos, output


def _mapping(given: Mapping[str, Any], name: str, valid: tuple[str, ...]) -> dict:
    inner = given.get(name) or {}
    if not isinstance(inner, Mapping):
        raise TypeError(f"{name}={inner!r}: give a mapping of arguments")
    refuse_unknown(inner, valid, valid, f"{name}: ")
    return dict(inner)


def refuse_unknown(given: Iterable[str], valid: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raises TypeError naming the nearest of `known` for a name that is not in `valid`, ValueError against `ALWAYS`."""
    values = given if isinstance(given, Mapping) else {}
    for name in given:
        if name in ALWAYS:
            value = values.get(name)
            if value is not None and value != ALWAYS[name]:
                raise ValueError(
                    f"{where}{name}={value!r}: this processor always has {name}={ALWAYS[name]!r}; leave it out"
                )
        elif name not in valid and not name.startswith("_"):  # what transformers tells itself: `_from_pipeline`
            near = difflib.get_close_matches(name, list(known), cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"
            raise TypeError(f"{where}unexpected argument {name!r}; {hint}")


def square_side(size: Any) -> int:
    """Side of the square frames: a number, [side, side], {"height", "width"}, {"shortest_edge"}."""
    sides = list(size.values()) if isinstance(size, Mapping) else [*size] if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or isinstance(sides[0], bool):
        raise ValueError(f"size={size!r}: frames are square; give one whole number of pixels")
    return sides[0]

"""Which model it is: hashes of weights and settings, and what this machine remembers of files that it has hashed."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from dmae import files

TRAINING_ONLY = ("text_predictor.", "visual_predictor.", "logit_scale")  # no embedding depends on them
# The settings that embeddings or scores depend on, besides the weights: two models that differ here are two models.
SCORED = (
    "interaction", "similarity_form", "text_granularity", "word_weighting", "textual_attention", "visual_attention",
    "visual_top_k", "visual_scale", "temporal_input", "patches_per_frame", "max_words", "max_frames", "merge_tokens",
)  # fmt: skip
# later fields do not count at the value older models had
LATER, MISSING = {"visual_scale": "printed", "merge_tokens": 0}, object()
# where a processor was saved to or loaded from changes no frame: its code counts as a saved file names it
CODE = {"AutoFeatureExtractor": "frames_dmae.FrameSampler", "AutoProcessor": "processing_dmae.DMAEProcessor"}
TOWER = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")
WEIGHTS_FILE = "model.safetensors"
YOUNG_SECONDS = 2.0  # a file changed again within the clock's tick would look the same
REMEMBERED = 64


def describe_model(model, processor) -> dict:
    """What an index remembers of its model: name, revision, and hashes of the weights and of the frame settings;
    `key_frames` where only those are taken."""
    name = model.config.name_or_path or "(in memory)"
    return {
        "name": str(Path(name).resolve()) if Path(name).is_dir() else name,
        "revision": getattr(model.config, "_commit_hash", None),
        "weights": weights_hash(model),
        "processor": processor_hash(processor),
        **({"key_frames": True} if processor is not None and processor.feature_extractor.key_frames else {}),
    }


def weights_hash(model) -> str:
    """SHA-256 over all in a model that its scores depend on: weights, and the settings that say how they are used.

    Weights count as bfloat16: one value whether loaded in float32 or bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(TRAINING_ONLY):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    config = model.config
    settings = {name: value for name in SCORED if (value := getattr(config, name)) != LATER.get(name, MISSING)}
    for side in ("text_config", "vision_config"):
        settings[side] = {name: getattr(getattr(config, side), name, None) for name in TOWER}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def processor_hash(processor) -> str:
    """SHA-256 over the frame sampler's settings: frames chosen or resized otherwise give other embeddings."""
    settings = processor.feature_extractor.to_dict() | {"auto_map": CODE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_model(manifest: dict, model, processor, path) -> None:
    """Refuse a model or a frame sampler other than the one the index was made with, naming both."""
    built, given = manifest["model"], describe_model(model, processor)
    for name, what in [("weights", "model"), ("processor", "processor settings")]:
        if built[name] != given[name] and (name == "weights" or processor is not None):
            raise ValueError(
                f"{path or 'the index'} was built with {built['name']} ({what} {built[name]}), not with "
                f"{given['name']} ({what} {given[name]}); open it with the first, or index again with the second"
            )


# ---------------------------------------------------------------------- files that were hashed before


def model_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model's folder, or of the Hub's cache; None where it is in neither."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # not a name that the Hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def weights_stamp(name: str, revision: str | None = None) -> str | None:
    """What tells the files of a model from any others that stood or will stand in their place: the place, size, time of
    the last change (which no program can set) and number of each. None where the weights are not one safetensors file.

    Take it before the files are read.
    """
    paths = [model_file(name, file, revision) for file in (WEIGHTS_FILE, "config.json")]
    if None in paths:
        return None
    stats = [(str(path.resolve()), path.stat()) for path in paths if path is not None]
    if time.time() - max(stat.st_ctime for _, stat in stats) < YOUNG_SECONDS:
        return None
    return json.dumps([[place, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for place, stat in stats])


def known_weights(stamp: str | None) -> str | None:
    """The `weights_hash` of the model in these files, if it was computed on this machine."""
    return None if stamp is None else _memory().get(stamp)


def remember_weights(stamp: str | None, weights: str) -> None:
    """Keep what was computed of a model that was just loaded from these files, as it is there."""
    if stamp is not None and known_weights(stamp) != weights:
        kept = dict([*_memory().items(), (stamp, weights)][-REMEMBERED:])
        with suppress(OSError):  # a home that cannot be written: the next search hashes again
            _memory_file().parent.mkdir(parents=True, exist_ok=True)
            files.write_file(_memory_file(), json.dumps(kept, indent=1))


def _memory() -> dict[str, str]:
    try:
        content = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _memory_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmae" / "weights.json"

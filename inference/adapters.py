"""Adapters saved by peft: told by their files, loaded onto the model they were trained on, merged."""

import json
from pathlib import Path
from typing import Any

import torch

# What is not in a CLIP checkpoint, hence saved whole beside the adapters.
NEW_PARTS = ("temporal", "fc_text", "fc_video", "text_predictor", "visual_predictor")
ADAPTER_FILE = "adapter_config.json"


def adapter_settings(name: str | Path, revision: str | None = None) -> dict | None:
    """What peft wrote about an adapter, in a folder or on the Hub; None for a whole model."""
    from transformers.utils.hub import cached_file

    # nothing is raised: who cannot be reached is named when the model itself is asked for
    silent = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    path = cached_file(str(name), ADAPTER_FILE, revision=revision, **silent)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def load_adapter(name: str | Path, revision: str | None = None, **options):
    """The model of an adapter (a folder, or a Hub id), merged: the base it names, its configuration, its weights.

    `options` go to `from_pretrained` of the base (`dtype`, `token`, …). Raises OSError where the base cannot be had.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{name} is an adapter; loading it needs peft: pip install 'dmae[peft]'") from error
    from dmae.modeling_dmae.configuration_dmae import DMAEConfig

    settings = adapter_settings(name, revision)
    if settings is None:
        raise FileNotFoundError(f"{name}: no {ADAPTER_FILE}, so this is no adapter")
    at: dict[str, Any] = {"revision": revision} if revision else {}
    config = DMAEConfig.from_pretrained(name, **at)
    base = _base_model(settings["base_model_name_or_path"], config, options)
    model: Any = PeftModel.from_pretrained(base, str(name), **at).merge_and_unload().eval()
    with torch.no_grad():
        model.logit_scale.fill_(config.logit_scale_init_value)  # it was trained too, and peft has no place for it
    return model


def _base_model(base: str, config, options: dict):
    from transformers import PretrainedConfig

    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

    if PretrainedConfig.get_config_dict(base)[0].get("model_type") == config.model_type:
        return DMAEForTextVideoRetrieval.from_pretrained(base, **options)
    towers = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
    words = {name: getattr(config, name) for name in config.field_names() if name not in towers}
    return DMAEForTextVideoRetrieval.from_clip(base, **options, **words)

"""Adapters saved by peft: told by their files, loaded onto the model they were trained on, merged."""

import json
from pathlib import Path

# What is not in a CLIP checkpoint, hence saved whole beside the adapters.
NEW_PARTS = ("temporal", "fc_text", "fc_video", "text_predictor", "visual_predictor")
ADAPTER_FILE = "adapter_config.json"


def is_adapter(name: str | Path) -> bool:
    """Whether a local folder holds an adapter and not a whole model."""
    return (Path(name) / ADAPTER_FILE).is_file()


def load_adapter(folder: str | Path, **options):
    """The model of an adapter's folder, merged: the base it names, its configuration, its weights.

    `options` go to `from_pretrained` of the base (`dtype`, `token`, …). Raises OSError where the base cannot be had.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{folder} is an adapter; loading it needs peft: pip install 'dmae[peft]'") from error
    base = json.loads((Path(folder) / ADAPTER_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return PeftModel.from_pretrained(_base_model(base, Path(folder), options), str(folder)).merge_and_unload().eval()


def _base_model(base: str, folder: Path, options: dict):
    from transformers import PretrainedConfig

    from dmae.modeling_dmae.configuration_dmae import DMAEConfig
    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

    if PretrainedConfig.get_config_dict(base)[0].get("model_type") == DMAEConfig.model_type:
        return DMAEForTextVideoRetrieval.from_pretrained(base, **options)
    config = DMAEConfig.from_pretrained(folder)
    towers = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
    words = {name: getattr(config, name) for name in DMAEConfig.field_names() if name not in towers}
    return DMAEForTextVideoRetrieval.from_clip(base, **options, **words)

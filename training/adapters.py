"""Low-rank adapters in the towers (LoRA, through peft): h = W x + (alpha / r) B A x, W as the checkpoint brought it.

    add_adapters(model, r=8)                                  # `training.lora` of a recipe does it
    ...                                                       # train
    save_adapter(model, "openai/clip-vit-base-patch32", "adapter/")   # a few MB, `dmae … --model adapter/` loads it
    without_adapters(model).save_pretrained("whole/")         # merged: an ordinary model, which needs no peft

Hu et al. 2021, arXiv:2106.09685.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dmae.inference.adapters import NEW_PARTS
from dmae.training.optimizer import CLIP_PARTS

TOWERS = ("text_model", "vision_model")
TARGET = ("q_proj", "v_proj")


def add_adapters(
    model: nn.Module, r: int = 8, target: Sequence[str] = TARGET, alpha: float | None = None, dropout: float = 0.0
) -> None:
    """Put an A (r, in) and a B (out, r), B = 0, beside every `target` module of both towers, in place.

    Of what the checkpoint brought only the logit scale stays trainable; all that is new is trained whole. alpha: None
    is 2 r. Raises ImportError without peft, ValueError for a target that no module of a tower is called.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("training.lora needs peft; install it: pip install 'dmae[peft]'") from error
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in CLIP_PARTS and name != "logit_scale":
            parameter.requires_grad_(False)
    words = {"r": r, "lora_alpha": alpha or 2 * r, "lora_dropout": dropout}
    for tower in (getattr(model, name) for name in TOWERS):
        names = {name.rsplit(".")[-1] for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
        unknown = set(target) - names
        if unknown:
            raise ValueError(
                f"training.lora.target: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
            )
        inject_adapter_in_model(LoraConfig(target_modules=list(target), **words), tower)


def without_adapters(model: nn.Module) -> nn.Module:
    """A copy with W + (alpha / r) B A in the place of W: an ordinary model, which needs no peft. The original stays."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            owner, _, place = name.rpartition(".")
            setattr(plain.get_submodule(owner), place, layer.get_base_layer())
    for tower in (getattr(plain, name) for name in TOWERS):
        tower.__dict__.pop("peft_config", None)
    return plain


def save_adapter(model: Any, base: str, folder: str | Path) -> None:
    """What was trained, as peft reads it: adapters, the new modules whole, the configuration with the logit scale.

    base: the folder or Hub name of the checkpoint that the frozen weights come from, written into the adapter.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder = Path(folder)
    made = model.text_model.peft_config["default"]
    new = [name for name in NEW_PARTS if any(True for _ in getattr(model, name, nn.Module()).parameters())]
    pattern = rf"({'|'.join(TOWERS)})\..*\.({'|'.join(map(re.escape, sorted(made.target_modules)))})"
    words = {"r": made.r, "lora_alpha": made.lora_alpha, "lora_dropout": made.lora_dropout}
    settings = LoraConfig(target_modules=pattern, modules_to_save=new, base_model_name_or_path=base, **words)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    trained = {
        f"base_model.model.{name.replace('.default.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if ".lora_" in name or name.split(".")[0] in new
    }
    save_file(trained, folder / "adapter_model.safetensors", {"format": "pt"})
    config = copy.deepcopy(model.config)
    config.logit_scale_init_value = model.logit_scale.item()
    config.save_pretrained(folder)


def trainable(model: nn.Module) -> tuple[int, int]:
    """(parameters that receive a gradient, all parameters)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)

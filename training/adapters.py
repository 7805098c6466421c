"""Low-rank adapters in the CLIP towers: h = W x + (alpha / r) B A x, W as CLIP brought it (Hu et al. 2021)."""

import copy

from torch import nn

from dmae.training.config import LoraSection
from dmae.training.optimizer import CLIP_PARTS

TOWERS = ("text_model", "vision_model")


def add_adapters(model: nn.Module, lora: LoraSection) -> None:
    """Put an A (r, in) and a B (out, r), B = 0, beside every `target` module of both towers, in place.

    Of what CLIP brought only the logit scale stays trainable; all that is new is trained whole. Raises ImportError
    without peft, ValueError for a target that no module of a tower is called.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("training.lora needs peft; install it: pip install 'dmae[peft]'") from error
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in CLIP_PARTS and name != "logit_scale":
            parameter.requires_grad_(False)
    words = {"r": lora.r, "lora_alpha": lora.alpha or 2 * lora.r, "lora_dropout": lora.dropout}
    for tower in (getattr(model, name) for name in TOWERS):
        names = {name.rsplit(".")[-1] for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
        unknown = set(lora.target) - names
        if unknown:
            raise ValueError(
                f"training.lora.target: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
            )
        inject_adapter_in_model(LoraConfig(target_modules=lora.target, **words), tower)


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

"""Low-rank adapters (LoRA, through peft) in the two towers: trained, saved small, merged, loaded.

model = with_lora(model, base="openai/clip-vit-base-patch32", r=8)
...                                   # train; only adapters and the new modules receive gradients
save_adapter(model, "adapter/")       # a few MB, loads with `load_adapter` or `dmae … --model adapter/`
merged(model).save_pretrained("whole/")
"""

import os
import re
from collections.abc import Sequence

from dmae.inference.adapters import NEW_PARTS

TARGET = ("q_proj", "v_proj")


def with_lora(
    model, base: str, r: int = 8, target: Sequence[str] = TARGET, alpha: float | None = None, dropout: float = 0.0
):
    """`model` with adapters of rank `r` in the towers' modules whose names end in one of `target`; a `PeftModel`.

    What the checkpoint brought stays frozen; the modules that are new in this project are trained and saved whole.
    base: the folder or Hub name the frozen weights come from, written into the adapter. alpha: None is 2·r.
    Raises ImportError without peft, ValueError where no module of a tower ends in a name of `target`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'dmae[peft]'") from error
    pattern = rf"(text_model|vision_model)\..*\.({'|'.join(map(re.escape, target))})"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        ends = sorted({name.rsplit(".", 1)[-1] for name, part in model.text_model.named_modules() if "proj" in name})
        raise ValueError(f"lora.target={list(target)} names no module of the towers; there are: {', '.join(ends)}")
    own = [name for name in NEW_PARTS if hasattr(model, name) and any(True for _ in getattr(model, name).parameters())]
    model.name_or_path = model.config.name_or_path = base  # peft takes it from there
    settings = LoraConfig(
        r=r,
        lora_alpha=alpha or 2 * r,  # pyright: ignore[reportArgumentType]  (peft divides it by r: any number does)
        lora_dropout=dropout,
        target_modules=pattern,
        modules_to_save=own,
        base_model_name_or_path=base,
    )
    adapted = get_peft_model(model, settings)
    model.logit_scale.requires_grad_(False)  # an adapter cannot carry it
    return adapted


def save_adapter(adapted, folder: str | os.PathLike) -> None:
    """Adapter, new modules and configuration; the frozen weights stay where they came from."""
    adapted.save_pretrained(folder)
    adapted.config.save_pretrained(folder)


def merged(adapted):
    """The plain model with the adapters added to its weights: faster, saved and pushed as any other."""
    return adapted.merge_and_unload()


def trainable(model) -> tuple[int, int]:
    """(parameters that receive a gradient, all parameters)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)

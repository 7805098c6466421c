"""Two learning rates, decay only where it belongs, cosine with warm-up (the CLIP4Clip / DRL lineage's recipe)."""

import torch
from torch import nn
from transformers import get_scheduler

from dmae.training.config import TrainingSection

# What a CLIP checkpoint brings; everything else is new and learns at `learning_rate`.
CLIP_PARTS = ("text_model", "vision_model", "text_projection", "visual_projection", "logit_scale")


def make_optimizer(
    model: nn.Module, options: TrainingSection, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """Adam(W) over four groups: {CLIP, new} x {decayed, not}; biases, norms and other vectors are never decayed.

    On a CPU one kernel steps all parameters, in a fifth of the time. Elsewhere torch chooses: with a fused step the
    scaler of fp16 would no longer tell accelerate which steps it left out.
    """
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((*learning_rate_of(name, options), decay), []).append(parameter)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optim]
    betas = (options.adam_beta1, options.adam_beta2)
    parts = [
        {"params": params, "name": name, "lr": rate, "weight_decay": decay}
        for (name, rate, decay), params in groups.items()
    ]
    fused = True if device is not None and device.type == "cpu" else None
    return kind(parts, lr=options.learning_rate, betas=betas, eps=options.adam_epsilon, fused=fused)


def learning_rate_of(name: str, options: TrainingSection) -> tuple[str, float]:
    """Which option gives a parameter (by its name in the model) its rate, and that rate."""
    if name.split(".")[0] in CLIP_PARTS and ".lora_" not in name and options.clip_learning_rate is not None:
        return "clip_learning_rate", options.clip_learning_rate
    return "learning_rate", options.learning_rate


def current_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates now, by option."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def make_scheduler(optimizer: torch.optim.Optimizer, options: TrainingSection, total_steps: int):
    """The named transformers schedule over optimiser steps, warming up for `warmup_ratio` of them."""
    return get_scheduler(options.lr_scheduler_type, optimizer, int(options.warmup_ratio * total_steps), total_steps)


def freeze(model: nn.Module, prefixes: list[str]) -> None:
    """Do not train parameters whose names begin with one of the prefixes; ValueError for a prefix that names none."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"training.freeze: no parameter begins with {prefix!r}; the model's parts: {parts}")
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)

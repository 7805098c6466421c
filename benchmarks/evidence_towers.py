"""Small CLIP towers for the study: pretrained contrastively on stills, then fine-tuned above a frozen trunk.

The trunk is all of both towers under their last blocks. It is frozen after pretraining and its states are computed once
per world and checkpoint; `UpperVision` and `UpperText` are the rest of the towers and read those states, so everything
else of a run is the model itself, with a step that costs a small part of the whole towers'.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import get_scheduler

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.losses_dmae import info_nce

WIDTH = 64
TOWER_PARTS = ("text_model", "vision_model", "text_projection", "visual_projection")
TEXT_INPUTS = ("input_ids", "attention_mask", "word_mask", "word_weights")


def study_config(size: int, frames: int, words: int, vocabulary: int, **overrides) -> DMAEConfig:
    """Towers 64 wide: 3 blocks over 16 patches, 2 over the words; one temporal block over one token per frame."""
    tower = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=2)
    text = dict(tower, num_hidden_layers=2, vocab_size=vocabulary, max_position_embeddings=words)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    vision = dict(tower, num_hidden_layers=3, image_size=size, patch_size=size // 4)
    rest = dict(projection_dim=WIDTH, max_words=words, max_frames=frames, temporal_layers=1)
    return DMAEConfig(text_config=text, vision_config=vision, **{**rest, **overrides})


class UpperVision(nn.Module):
    """The last block of a CLIP vision tower, for the first token only, over the trunk's states.

    pixel_values (N,1,1+K,H): what `picture_states` gives. Equal to the whole tower's pooled output on the pixels.
    """

    def __init__(self, vision_model):
        super().__init__()
        self.block = vision_model.encoder.layers[-1]
        self.post_layernorm = vision_model.post_layernorm

    def forward(self, pixel_values: torch.Tensor, **no_states) -> SimpleNamespace:
        states = pixel_values[:, 0]
        normed, first = self.block.layer_norm1(states), states[:, :1]
        mixed = attend(self.block.self_attn, normed[:, :1], normed, causal=False)
        first = first + self.block.self_attn.out_proj(mixed)
        first = first + self.block.mlp(self.block.layer_norm2(first))
        return SimpleNamespace(pooler_output=self.post_layernorm(first[:, 0]), hidden_states=None, attentions=None)


class UpperText(nn.Module):
    """The last block of a CLIP text tower over a table of the trunk's states.

    input_ids (B,T) are rows of the table (M,H). Equal to the whole tower on the texts of which the table holds the
    states. Texts are padded at the end, so a causal mask alone keeps padding from every real position.
    """

    def __init__(self, text_model, table: torch.Tensor):
        super().__init__()
        self.block = text_model.encoder.layers[-1]
        self.final_layer_norm = text_model.final_layer_norm
        self.register_buffer("table", table, persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **no_states) -> SimpleNamespace:
        states = self.table[input_ids].float()
        normed = self.block.layer_norm1(states)
        states = states + self.block.self_attn.out_proj(attend(self.block.self_attn, normed, normed, causal=True))
        states = self.final_layer_norm(states + self.block.mlp(self.block.layer_norm2(states)))
        ends = attention_mask.sum(-1) - 1
        pooled = states[torch.arange(len(states), device=states.device), ends]
        return SimpleNamespace(last_hidden_state=states, pooler_output=pooled, hidden_states=None, attentions=None)


def attend(attention, queries: torch.Tensor, states: torch.Tensor, causal: bool) -> torch.Tensor:
    """A CLIP attention layer's heads, joined, before its output projection. (B,Q,H), (B,N,H) -> (B,Q,H)."""
    pairs = ((attention.q_proj, queries), (attention.k_proj, states), (attention.v_proj, states))
    split = [project(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for project, x in pairs]
    return F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(2)


@torch.no_grad()
def picture_states(vision_model, frames: np.ndarray, chunk: int = 512) -> torch.Tensor:
    """uint8 frames (..., size, size, 3) -> the states under the last block, (..., 1, 1+K, H) float16."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    parts = []
    for start in range(0, len(flat), chunk):
        states = vision_model.pre_layrnorm(vision_model.embeddings(as_pixels(flat[start : start + chunk])))
        for block in vision_model.encoder.layers[:-1]:
            states = block(states, None)
        parts.append(states.half())
    return torch.cat(parts).reshape(*frames.shape[:-3], 1, *parts[0].shape[1:])


@torch.no_grad()
def word_states(text_model, input_ids: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """(..., T) token ids -> the states under the last block, (..., T, H) float16."""
    flat, parts = input_ids.reshape(-1, input_ids.shape[-1]), []
    for part in flat.split(chunk):
        states = text_model.embeddings(part)
        for block in text_model.encoder.layers[:-1]:
            normed = block.layer_norm1(states)
            states = states + block.self_attn.out_proj(attend(block.self_attn, normed, normed, causal=True))
            states = states + block.mlp(block.layer_norm2(states))
        parts.append(states.half())
    return torch.cat(parts).reshape(*input_ids.shape, -1)


def as_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 (N,size,size,3) -> float (N,3,size,size) about 0."""
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - 60.0) / 60.0


@dataclass
class Pretraining:
    """How long the towers learn from stills, and how fast."""

    steps: int
    batch: int = 128
    rate: float = 1e-3
    scale_to: float | None = None  # raise the scale to this in the first half; CLIP's ended at its clamp, 100


def pretrain(model, stills: dict[str, np.ndarray], plan: Pretraining, seed: int, log=print) -> None:
    """CLIP on stills, in place: InfoNCE between sentence and picture, the scale learned, or raised as planned."""
    model.train()
    start = model.logit_scale.item()
    others = [p for name, p in model.named_parameters() if name != "logit_scale" and "temporal" not in name]
    groups = [{"params": others, "weight_decay": 0.05}, {"params": [model.logit_scale]}]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = get_scheduler("cosine", optimizer, plan.steps // 10, plan.steps)
    rng, count = np.random.default_rng([seed, 3]), len(stills["frames"])
    order = np.concatenate([rng.permutation(count) for _ in range(1 + plan.steps * plan.batch // count)])
    for step in range(plan.steps):
        text, picture = still_embeddings(model, stills, order[step * plan.batch : (step + 1) * plan.batch])
        loss = info_nce(text @ picture.T, model.logit_scale.exp())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        model.clamp_logit_scale()
        if plan.scale_to:
            share = min(1.0, 2 * (step + 1) / plan.steps)
            model.logit_scale.data.clamp_(min=start + share * (math.log(plan.scale_to) - start))
        if (step + 1) % 50 == 0:
            log(f"  step {step + 1}: loss {loss.item():.3f}, scale {model.logit_scale.exp().item():.0f}")
    model.eval()


def still_embeddings(model, stills: dict[str, np.ndarray], rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit sentence and picture embeddings of some stills, (n,D) each, as CLIP has them."""
    longest = int(stills["attention_mask"][rows].sum(1).max())
    inputs = {name: torch.from_numpy(stills[name][rows, :longest]) for name in TEXT_INPUTS}
    sentence = model.get_text_features(**inputs).sentence_embeds
    picture = model.backbone.frame_tokens(model, as_pixels(stills["frames"][rows]), with_patches=False).pooled
    return sentence, F.normalize(picture, dim=-1)


@torch.no_grad()
def still_quality(model, stills: dict[str, np.ndarray], rows) -> dict[str, float]:
    """R@1 among held-out stills, and the cosines of matches and others: do these towers look like CLIP?"""
    text, picture = still_embeddings(model, stills, rows)
    scores = text @ picture.T
    own = scores.diagonal()
    others = (scores.sum() - own.sum()) / (scores.numel() - len(own))
    return {
        "gallery": len(own),
        "text_to_picture_R@1": round(100 * float((scores.argmax(1) == torch.arange(len(own))).float().mean()), 2),
        "matched_cosine": round(float(own.mean()), 4),
        "other_cosine": round(float(others), 4),
        "scale": round(float(model.logit_scale.exp()), 2),
    }

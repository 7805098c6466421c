"""The temporal encoder: pre-LN transformer blocks over a video's frame (or patch) tokens (docs/method.md §1, R1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .vectors_dmae import unit


class TemporalBlock(GradientCheckpointingLayer):
    """x + attention(LN x), then x + MLP(LN x) with QuickGELU; attention sees valid tokens only."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.layer_norm1 = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        for layer in (*self.projections(), self.out_proj, self.fc1, self.fc2):
            layer.init_std = layer.in_features**-0.5  # CLIP's scale; with 0.02, small widths learn far more slowly

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B,P,D), (B,P) bool -> (B,P,D)."""
        normed = self.layer_norm1(x)
        split = [part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.projections()]
        attended = F.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None, :])
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.layer_norm2(x))
        return x + self.fc2(hidden * torch.sigmoid(1.702 * hidden))

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj


class TemporalEncoder(nn.Module):
    """v_h = unit(y at each frame's first token), y = x + blocks(x + pos), so y = 2x when the blocks add nothing.

    Tokens are frame-major, `config.tokens_per_frame` of them per frame with the frame's CLS first.
    """

    def __init__(self, config):
        super().__init__()
        width = config.projection_dim
        self.tokens_per_frame = config.tokens_per_frame
        self.positions = nn.Embedding(config.temporal_positions, width)
        self.blocks = nn.ModuleList(
            [TemporalBlock(width, config.temporal_heads) for _ in range(config.temporal_layers)]
        )
        if config.temporal_init == "identity":  # then y = 2x, and v_h = unit(frame CLS) exactly
            for module in [self.positions, *(last for block in self.blocks for last in (block.out_proj, block.fc2))]:
                module.starts_at_zero = True

    def forward(self, tokens: Tensor, token_mask: Tensor, positions: Tensor) -> Tensor:
        """(B,P,D) tokens, (B,P) bool, (B,P) int indices of the position table -> video_embeds (B,F,D), unit."""
        x = tokens + self.positions(positions).to(tokens.dtype)
        for block in self.blocks:
            x = block(x, token_mask)
        return unit((tokens + x)[:, :: self.tokens_per_frame])

    @torch.no_grad()
    def copy_text_tower(self, text_model) -> None:
        """Start from CLIP's text blocks and position rows; beyond its 77 rows positions stay random."""
        for block, source in zip(self.blocks, text_model.encoder.layers):
            parts = {
                "layer_norm1": source.layer_norm1,
                "layer_norm2": source.layer_norm2,
                "fc1": source.mlp.fc1,
                "fc2": source.mlp.fc2,
            }
            parts |= {name: getattr(source.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
            for name, module in parts.items():
                getattr(block, name).load_state_dict(module.state_dict())
        rows = text_model.embeddings.position_embedding.weight
        if len(self.positions.weight) <= len(rows):
            self.positions.weight.copy_(rows[: len(self.positions.weight)])


def strongest_patches(patch_embeds: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
    """CLS and the `keep` patches most similar to it, in raster order. (B,F,1+K,D) -> (B,F,1+k,D), (B,F,1+k).

    None keeps all. The second result, the places, indexes the frame's own 1+K tokens, so that positions are gathered
    where the patches really were.
    """
    batch, frames, tokens, _ = patch_embeds.shape
    if keep is None or keep >= tokens - 1:
        places = torch.arange(tokens, device=patch_embeds.device).expand(batch, frames, tokens)
        return patch_embeds, places
    closeness = (patch_embeds[:, :, 1:] @ patch_embeds[:, :, :1].mT)[..., 0].detach()
    best = closeness.sort(dim=-1, descending=True, stable=True).indices[..., :keep].sort(-1).values + 1
    places = torch.cat([best.new_zeros(batch, frames, 1), best], -1)
    return patch_embeds.gather(2, places[..., None].expand(-1, -1, -1, patch_embeds.shape[-1])), places

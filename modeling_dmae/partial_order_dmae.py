"""TPM-CL: which tokens matter, and what a pair must lose without them (Eq. 10-16, 20-21)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings_dmae import PairMasks, PairTokens, TextEmbeddings, VideoEmbeddings
from .losses_dmae import scheduled_margin
from .similarity_dmae import mean_paired_interaction, paired_interaction
from .vectors_dmae import masked_softmax, unit, wide


class TokenWeightPredictor(nn.Module):
    """Weights of one modality's tokens, seen with the other modality (Eq. 10-11, 20-21). Rows sum to 1 over the mask.

    A dense map without bias brings the other modality's `context_rows` to `token_rows` rows; each token and its row go
    through LayerNorm, Linear 2D→D/2, GELU, Linear→1, masked softmax (R7). The last layer has no bias, because a
    softmax does not see it.
    """

    def __init__(self, token_rows: int, context_rows: int, width: int):
        super().__init__()
        self.mix = nn.Linear(context_rows, token_rows, bias=False)
        self.layer_norm = nn.LayerNorm(2 * width)
        self.fc1 = nn.Linear(2 * width, width // 2)
        self.fc2 = nn.Linear(width // 2, 1, bias=False)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B,N,D) tokens, (B,C,D) context, (B,N) bool -> (B,N). `rows` (B,N): each token's dense row."""
        share = self.mix.weight if rows is None else self.mix.weight[rows]
        return token_weights(self.score(tokens, context, share), mask)

    def score(self, tokens: Tensor, context: Tensor, share: Tensor) -> Tensor:
        """fc2(gelu(fc1(LayerNorm([t; m])))), m = share·context; (B,N,D), (B,C,D), (N,C) or (B,N,C) -> (B,N).

        No pair [t; m] is made. With W = fc1's weight times LayerNorm's, W·[t; m] = W_t·t + share·(W_m·context), so
        that fc1 reads the C rows of context in place of N mixed ones, and mean and spread come from sums and squares.
        """
        weight, bias = self.fc1.weight * self.layer_norm.weight, self.fc1.weight @ self.layer_norm.bias + self.fc1.bias
        own, other = weight.split(tokens.shape[-1], 1)
        mean, spread = self._moments(tokens, context, share)
        hidden = F.linear(tokens, own) + share @ F.linear(context, other) - mean * weight.sum(1)
        return self.fc2(F.gelu(hidden / spread + bias).to(self.fc2.weight.dtype))[..., 0]

    def _moments(self, tokens: Tensor, context: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and √(variance + ε) of each pair [t; m], in fp32 or wider. -> two (B,N,1)."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens, context, share = wide(tokens), wide(context), wide(share)
            sums = tokens.sum(-1) + (share @ context.sum(-1, keepdim=True))[..., 0]
            squares = tokens.square().sum(-1) + ((share @ (context @ context.mT)) * share).sum(-1)
            mean, squares = (total[..., None] / (2 * tokens.shape[-1]) for total in (sums, squares))
            return mean, ((squares - mean.square()).clamp_min(0) + self.layer_norm.eps).sqrt()


def token_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """w = softmax over the valid tokens (Eq. 10-11, R7), 0 outside. (B,N), (B,N) bool -> (B,N), fp32 or wider."""
    return masked_softmax(logits, mask)


def select_tokens(weights: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """keep (B,N) bool: False for the heaviest tokens, whose inclusive cumulative weight is below τ (Eq. 14, R8).

    Always at least the top token is masked (R9). Ties go to the lowest index; padding sorts last and is never masked.
    """
    weights = wide(weights.detach())
    order = weights.masked_fill(~mask, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    in_order = torch.where(mask, weights, 0.0).gather(1, order)
    masked = in_order.cumsum(1) < threshold
    masked[..., 0] = True
    masked &= mask.gather(1, order)
    return torch.ones_like(mask).scatter_(1, order, ~masked)


def mask_multiplier(weights: Tensor, keep: Tensor, gradient: str) -> Tensor:
    """b, what each token is multiplied with: 1 kept, 0 masked. (B,N) -> (B,N).

    "straight_through": b = b_hard + (sg(w) − w), so ∂b/∂w = −1 and the predictor learns from its own mask (R11).
    "none", as printed: no gradient, and the visual predictor is never trained.
    """
    hard = keep.to(weights.dtype)
    return hard if gradient == "none" else hard + (weights.detach() - weights)


def weighted_direction(tokens: Tensor, weights: Tensor) -> Tensor:
    """unit(Σ w t), for t_g and, with w·b, for t_g^p (Eq. 15-16, R10: both are normalised). (B,N,D), (B,N) -> (B,D)."""
    return unit(torch.einsum("bn,bnd->bd", weights.to(tokens.dtype), tokens))


class PartialOrder:
    """TPM-CL as a part of the model: its predictors, what they mask, and the triplets of matched pairs."""

    config: Any
    training: bool
    progress: float | None  # fraction of training done
    _temporal: Callable[
        ..., tuple[Tensor, Tensor]
    ]  # visual tokens, their mask and positions, video_mask -> v_h, weights

    def add_predictors(self, config) -> None:
        self.text_predictor = TokenWeightPredictor(config.max_words, config.max_frames, config.projection_dim)
        self.visual_predictor = TokenWeightPredictor(config.temporal_positions, 1, config.projection_dim)
        if config.mask_gradient == "none":
            # As printed, the visual weights only build a hard mask and are never trained (R11). Buffers, because
            # loading makes every parameter anew, to be trained; DDP would then wait for a gradient in vain.
            untrained(self.visual_predictor)

    def partial_order_masks(self, text: TextEmbeddings, tokens: PairTokens) -> PairMasks:
        """Token weights and what is kept of matched pairs (Eq. 10-14)."""
        expected = (self.config.max_words, self.config.max_frames)
        given = (tokens.text_tokens.shape[1], tokens.frame_tokens.shape[1])
        if given != expected:
            raise ValueError(
                f"TPM needs texts padded to max_words={expected[0]} and videos to max_frames={expected[1]}, not "
                f"{given[0]} and {given[1]}; pad them, pass return_loss=False, or set partial_order=False"
            )
        text_weights = self.text_predictor(tokens.text_tokens, tokens.frame_tokens, tokens.text_mask)
        visual_weights = self.visual_predictor(
            tokens.visual_tokens, text.sentence_embeds[:, None], tokens.visual_mask, tokens.positions
        )
        ratio = self.config.mask_ratio
        return PairMasks(
            text_weights=text_weights,
            text_keep=select_tokens(text_weights, tokens.text_mask, ratio),
            visual_weights=visual_weights,
            visual_keep=select_tokens(visual_weights, tokens.visual_mask, ratio),
        )

    def partial_order_terms(
        self, text: TextEmbeddings, video: VideoEmbeddings, tokens: PairTokens, margin: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """relu(S(masked) − S(full) + δ) of the three triplets for every matched pair  (Eq. 17, R12).

        Returns losses (3,B) and valid (3,B) bool: a pair with a single token on the masked side has no triplet (R9).
        Rows: (t_cls,v_h)→(t_cls,v_h^p), (t_g,v_h)→(t_g,v_h^p), (t_g,v_h)→(t_g^p,v_h).
        `margin` overrides what `config` and the progress of training say (δ, `margin_schedule`).
        """
        margin = self.margin() if margin is None else margin
        masks = self.partial_order_masks(text, tokens)
        text_factor = mask_multiplier(masks.text_weights, masks.text_keep, self.config.mask_gradient)
        visual_factor = mask_multiplier(masks.visual_weights, masks.visual_keep, self.config.mask_gradient)
        words = weighted_direction(tokens.text_tokens, masks.text_weights)
        masked_words = weighted_direction(tokens.text_tokens, masks.text_weights * text_factor)
        masked_tokens = tokens.visual_tokens * visual_factor[..., None].to(tokens.visual_tokens.dtype)
        masked = self._temporal(masked_tokens, tokens.visual_mask, tokens.positions, video.video_mask)
        queries, mask = torch.stack([text.sentence_embeds, words, masked_words]), video.video_mask
        full = self._paired(queries, video.video_embeds, video.frame_weights, mask)
        gaps = torch.cat([self._paired(queries[:2], *masked, mask) - full[:2], full[2:] - full[1:2]])
        return (gaps + margin).relu(), tokens.has_triplet

    def margin(self) -> float:
        """δ now. Raises `ValueError` for a schedule in training while nobody has said how far training is."""
        progress = self.progress if self.training else 1.0
        if progress is None and self.config.margin_schedule != "constant":
            raise ValueError(
                f"margin_schedule={self.config.margin_schedule!r} depends on how much of training is done: set "
                f"model.progress, from 0.0 to 1.0, as training goes on; or use margin_schedule='constant'"
            )
        return scheduled_margin(self.config, progress or 0.0)

    def _paired(self, query, embeds, frame_weights, video_mask) -> Tensor:
        if self.config.interaction == "mean":
            return mean_paired_interaction(query, embeds, video_mask)
        return paired_interaction(query, embeds, frame_weights, video_mask)


def untrained(module: nn.Module) -> None:
    """Turn every parameter of `module` into a buffer: saved and loaded under the same names, never trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())

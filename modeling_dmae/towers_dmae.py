"""Backbones by interface: what towers of CLIP's and SigLIP's kind must give, whatever their pooling.

A backbone answers three questions: how the towers are built, what a text's tokens are in the joint space, and what a
frame's are (its pooled token first, then its patches). Those that see a window at once: `video_towers_dmae.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AltCLIPTextModel,
    AltCLIPVisionModel,
    ChineseCLIPTextModel,
    ChineseCLIPVisionModel,
    CLIPTextModel,
    CLIPVisionModel,
    MetaClip2TextModel,
    MetaClip2VisionModel,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
)

from .merging_dmae import merged_blocks
from .tower_tokens_dmae import TowerTokens, first_position, inner_pieces, last_real, states_of
from .video_towers_dmae import PeVideoBackbone, VideoPrismBackbone

SIGLIP_END = 1  # "</s>" of SigLIP's vocabulary and "<eos>" of SigLIP2's


class ClipBackbone:
    """Text pools at EOS, frames at CLS; a bias-free projection takes every token into the joint space."""

    parts = {name: name for name in ("text_model", "vision_model", "text_projection", "visual_projection")}
    text_class, vision_class = CLIPTextModel, CLIPVisionModel

    @staticmethod
    def settings(source: Any) -> dict:
        return dual_settings(source)

    @classmethod
    def build(cls, model: Any, config) -> None:
        model.text_model = cls.text_tower(config.text_config)
        model.vision_model = cls.vision_class._from_config(config.vision_config)
        model.text_projection = nn.Linear(cls.text_width(config.text_config), config.projection_dim, bias=False)
        model.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        for projection in (model.text_projection, model.visual_projection):
            projection.init_std = projection.in_features**-0.5

    @classmethod
    def text_tower(cls, config) -> nn.Module:
        return cls.text_class._from_config(config)

    @staticmethod
    def text_width(config) -> int:
        return config.hidden_size

    @classmethod
    def text_tokens(cls, model: Any, input_ids: Tensor, attention_mask: Tensor, **states) -> TowerTokens:
        """Sentences pooled, their words as tokens. The tower's own final layer norm is already applied."""
        output = model.text_model(input_ids=input_ids, attention_mask=attention_mask, **states)
        project = model.text_projection
        return TowerTokens(project(output.last_hidden_state), project(cls.pooled(output)), states_of(output))

    @staticmethod
    def pooled(output: Any) -> Tensor:
        return output.pooler_output

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        """Where each text's end token stands; one past the last attended piece if it has none. (B,T) ids -> (B,).

        OpenAI's checkpoints say eos_token_id=2, which is a piece of theirs; their end token is the highest id, and
        that is where the tower pools.
        """
        seen = torch.where(attended, input_ids, -1)
        if text_config.eos_token_id == 2:
            return seen.argmax(-1)
        return first_position(seen == text_config.eos_token_id, attended)

    @staticmethod
    def words(input_ids: Tensor, attended: Tensor, ends: Tensor) -> Tensor:
        """The pieces between BOS, which is always first, and the end token. -> (B,T) bool."""
        return inner_pieces(attended, ends)

    @staticmethod
    def frame_tokens(model: Any, pixel_values: Tensor, with_patches: bool, **states) -> TowerTokens:
        """(N,3,H,W) -> (N,1+K,D), or (N,1,D) without patches. Post-layernorm on all tokens, as CLIP has it for CLS."""
        if model.config.merge_tokens:
            return ClipBackbone.merged_tokens(model, pixel_values, with_patches, states)
        output = model.vision_model(pixel_values=pixel_values, **states)
        pooled = model.visual_projection(output.pooler_output)
        tokens = pooled[:, None]
        if with_patches:
            tokens = model.visual_projection(model.vision_model.post_layernorm(output.last_hidden_state))
        return TowerTokens(tokens, pooled, states_of(output))

    @staticmethod
    def merged_tokens(model: Any, pixel_values: Tensor, with_patches: bool, states: dict) -> TowerTokens:
        """`frame_tokens` with `config.merge_tokens`: what a merged token holds stands at all its patches' places."""
        if any(states.values()):
            raise ValueError("a tower that merges tokens has no states of all patches to give; set merge_tokens to 0")
        tower = model.vision_model
        embedded = tower.pre_layrnorm(tower.embeddings(pixel_values))
        merged, owners = merged_blocks(tower.encoder.layers, embedded, model.config.merge_tokens)
        projected = model.visual_projection(tower.post_layernorm(merged))
        pooled = projected[:, 0]
        tokens = projected.take_along_dim(owners[..., None], 1) if with_patches else pooled[:, None]
        return TowerTokens(tokens, pooled, (None, None))


class MetaClip2Backbone(ClipBackbone):
    """MetaCLIP 2: CLIP's towers over 300 languages; its configuration names the tokenizer's true end token (2)."""

    text_class, vision_class = MetaClip2TextModel, MetaClip2VisionModel

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        return first_position(attended & (input_ids == text_config.eos_token_id), attended)


class ChineseClipBackbone(ClipBackbone):
    """Chinese-CLIP: a BERT that pools at its first token; the configuration names the padding, not the end token."""

    text_class, vision_class = ChineseCLIPTextModel, ChineseCLIPVisionModel

    @classmethod
    def text_tower(cls, config) -> nn.Module:
        return cls.text_class._from_config(config, add_pooling_layer=False)

    @staticmethod
    def pooled(output: Any) -> Tensor:
        return output.last_hidden_state[:, 0]

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        """At [SEP]."""
        return last_real(input_ids, attended, text_config.pad_token_id)


class AltClipBackbone(MetaClip2Backbone):
    """AltCLIP: an XLM-R distilled from CLIP's text tower (nine languages), pooled at its first token."""

    text_class, vision_class = AltCLIPTextModel, AltCLIPVisionModel

    @staticmethod
    def text_width(config) -> int:
        return config.project_dim  # its own transformation ends there

    @staticmethod
    def pooled(output: Any) -> Tensor:
        return output.last_hidden_state[:, 0]


class SiglipBackbone:
    """Text pools at the last position (padding included, as it was trained), frames by an attention head with a probe.

    Neither tower has a projection: the pooling heads end in the joint space. A word goes through the text head, a patch
    through the frame head alone (attention over one token), so that both lie where the pooled tokens lie. SigLIP reads
    padding and expects no attention mask; its logit bias has no part in a softmax loss.
    """

    parts = {name: name for name in ("text_model", "vision_model")}
    text_class, vision_class = SiglipTextModel, SiglipVisionModel

    @staticmethod
    def settings(source: Any) -> dict:
        """It reads padding: every text is padded as it was trained."""
        return dual_settings(source) | {"max_words": source.config.text_config.max_position_embeddings}

    @classmethod
    def build(cls, model: Any, config) -> None:
        text, vision = config.text_config, config.vision_config
        if not (text.projection_size == vision.hidden_size == config.projection_dim):
            raise ValueError(
                f"projection_dim={config.projection_dim} must equal text_config.projection_size={text.projection_size} "
                f"and vision_config.hidden_size={vision.hidden_size}: SigLIP's heads end in the joint space"
            )
        model.text_model = cls.text_class._from_config(text)
        model.vision_model = cls.vision_class._from_config(vision)

    @staticmethod
    def text_tokens(model: Any, input_ids: Tensor, attention_mask: Tensor, **states) -> TowerTokens:
        output = model.text_model(input_ids=input_ids, **states)
        return TowerTokens(model.text_model.head(output.last_hidden_state), output.pooler_output, states_of(output))

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        return first_position(attended & (input_ids == SIGLIP_END), attended)

    @staticmethod
    def words(input_ids: Tensor, attended: Tensor, ends: Tensor) -> Tensor:
        """A text has no BOS, and its configuration names CLIP's ids; in both vocabularies 0 pads and 1 ends."""
        return attended & (input_ids > SIGLIP_END)

    @classmethod
    def frame_tokens(cls, model: Any, pixel_values: Tensor, with_patches: bool, **states) -> TowerTokens:
        output = cls.vision_output(model, pixel_values, **states)
        tokens = output.pooler_output[:, None]
        if with_patches:
            patches = output.last_hidden_state
            alone = model.vision_model.head(patches.reshape(-1, 1, patches.shape[-1]))
            tokens = torch.cat([tokens, alone.view_as(patches)], 1)
        return TowerTokens(tokens, output.pooler_output, states_of(output))

    @staticmethod
    def vision_output(model: Any, pixel_values: Tensor, **states):
        return model.vision_model(pixel_values=pixel_values, **states)


class Siglip2Backbone(SiglipBackbone):
    """SigLIP2's NaFlex towers take flattened patches and a grid; its fixed-size checkpoints are of type "siglip"."""

    text_class, vision_class = Siglip2TextModel, Siglip2VisionModel

    @staticmethod
    def vision_output(model: Any, pixel_values: Tensor, **states):
        size = model.config.vision_config.patch_size
        grid = pixel_values.unfold(2, size, size).unfold(3, size, size)  # (N,3,rows,columns,size,size)
        patches = grid.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # channels last, as the tower was trained
        shapes = torch.tensor(grid.shape[2:4], device=pixel_values.device).expand(len(pixel_values), 2)
        seen = torch.ones(patches.shape[:2], dtype=torch.long, device=pixel_values.device)
        return model.vision_model(pixel_values=patches, pixel_attention_mask=seen, spatial_shapes=shapes, **states)


def dual_settings(source: Any) -> dict:
    """What a configuration takes over from a dual encoder of transformers, by the names of `DMAEConfig`."""
    config = source.config
    return dict(
        text_config=config.text_config,
        vision_config=config.vision_config,
        projection_dim=getattr(config, "projection_dim", None) or config.vision_config.hidden_size,
        logit_scale_init_value=source.logit_scale.item(),
    )


# A backbone names the `parts` it takes over from a checkpoint (ours: the checkpoint's) and reads its `settings`.
BACKBONES = {
    "clip": ClipBackbone,
    "metaclip_2": MetaClip2Backbone,
    "chinese_clip": ChineseClipBackbone,
    "altclip": AltClipBackbone,
    "siglip": SiglipBackbone,
    "siglip2": Siglip2Backbone,
    "videoprism": VideoPrismBackbone,
    "pe_video": PeVideoBackbone,
}
TYPES = {(f"{family}_text_model", f"{family}_vision_model"): family for family in BACKBONES}
TYPES[("modernbert", "pe_video_encoder")] = "pe_video"


def backbone_of(config):
    """The backbone whose towers `config` describes. Raises `ValueError` for a family that has no adapter."""
    towers = config.text_config.model_type, config.vision_config.model_type
    if towers not in TYPES:
        raise ValueError(
            f"towers {towers[0]!r} and {towers[1]!r} have no adapter; "
            f"both must be of one family among: {', '.join(BACKBONES)}"
        )
    return BACKBONES[TYPES[towers]]

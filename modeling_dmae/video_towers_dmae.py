"""Backbones that see a window of frames at once and give one vector for it: VideoPrism and PE-Video.

Such a model's frame axis is 1: there is nothing for visual attention, a temporal encoder or the masking of frames to
work on, and a configuration that asks for them is refused. How many frames a window has, and which, is the tower's own.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from .tower_tokens_dmae import TowerTokens, inner_pieces, last_real, states_of

PeVideoContrastiveHead: Any = None
PeVideoEncoder: Any = None
VideoPrismTextModel: Any = None
VideoPrismVideoModel: Any = None
try:
    from transformers import PeVideoEncoder, VideoPrismTextModel, VideoPrismVideoModel
    from transformers.models.pe_video.modeling_pe_video import PeVideoContrastiveHead
except ImportError:  # a transformers that does not have them yet
    pass


class VideoPrismBackbone:
    """VideoPrism's video and text towers; its text pools at a token of its own after the padding.

    It was trained on `num_frames` frames: a window with fewer real ones repeats them evenly, as taking `num_frames`
    evenly spaced moments of it would.
    """

    parts = {"text_model": "text_model", "vision_model": "video_model"}

    @staticmethod
    def settings(source: Any) -> dict:
        config = source.config
        towers = {"text_config": config.text_config, "vision_config": config.vision_config}
        return towers | {"projection_dim": config.vision_config.hidden_size}  # the checkpoint has no temperature

    @staticmethod
    def build(model: Any, config) -> None:
        text, vision = config.text_config, config.vision_config
        if not (text.hidden_size == vision.hidden_size == config.projection_dim):
            raise ValueError(
                f"projection_dim={config.projection_dim} must equal text_config.hidden_size={text.hidden_size} and "
                f"vision_config.hidden_size={vision.hidden_size}: VideoPrism's towers end in the joint space"
            )
        require(VideoPrismTextModel, "VideoPrism")
        model.text_model = VideoPrismTextModel._from_config(text)
        model.vision_model = VideoPrismVideoModel._from_config(vision)

    @staticmethod
    def text_tokens(model: Any, input_ids: Tensor, attention_mask: Tensor, **states) -> TowerTokens:
        output = model.text_model(input_ids=input_ids, attention_mask=attention_mask, **states)
        return TowerTokens(output.last_hidden_state[:, :-1], output.pooler_output, states_of(output))

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        """There is no end token: one past the last piece."""
        return last_real(input_ids, attended, text_config.pad_token_id) + 1

    @staticmethod
    def words(input_ids: Tensor, attended: Tensor, ends: Tensor) -> Tensor:
        """Every piece up to the padding: there is no first token either."""
        return attended & (torch.arange(input_ids.shape[1], device=input_ids.device) < ends[:, None])

    @staticmethod
    def window_tokens(model: Any, pixel_values: Tensor, video_mask: Tensor, **states) -> TowerTokens:
        """(B,F,3,H,W), (B,F) bool -> one token (B,1,D) a window."""
        frames = evenly_repeated(pixel_values, video_mask, model.config.vision_config.num_frames)
        output = model.vision_model(pixel_values_videos=frames, **states)
        return TowerTokens(output.pooler_output, output.pooler_output[:, 0], states_of(output))


class PeVideoBackbone:
    """PE-Video: a frame tower under a transformer over frames, and ModernBERT pooled at its first token."""

    parts = {
        "text_model": "text_model",
        "vision_model": "video_encoder",
        "text_projection": "text_video_head",
        "visual_projection": "video_head",
    }

    @staticmethod
    def settings(source: Any) -> dict:
        config, scale = source.config, source.text_video_logit_scale.item()
        found = {"text_config": config.text_config, "vision_config": config.video_config}
        found["projection_dim"] = config.text_config.hidden_size
        if scale > 0:  # it multiplies as it is; one that was never trained is 0
            found["logit_scale_init_value"] = torch.tensor(scale).log().item()
        return found

    @staticmethod
    def build(model: Any, config) -> None:
        require(PeVideoEncoder, "PE-Video")
        model.text_model = AutoModel.from_config(config.text_config)
        model.vision_model = PeVideoEncoder._from_config(config.vision_config)
        model.text_projection = PeVideoContrastiveHead(config.text_config.hidden_size, config.projection_dim)
        model.visual_projection = PeVideoContrastiveHead(config.vision_config.hidden_size, config.projection_dim)

    @staticmethod
    def text_tokens(model: Any, input_ids: Tensor, attention_mask: Tensor, **states) -> TowerTokens:
        output = model.text_model(input_ids=input_ids, attention_mask=attention_mask, **states)
        tokens = model.text_projection(output.last_hidden_state)
        return TowerTokens(tokens, tokens[:, 0], states_of(output))

    @staticmethod
    def end_positions(text_config, input_ids: Tensor, attended: Tensor) -> Tensor:
        """At [SEP]."""
        return last_real(input_ids, attended, text_config.pad_token_id)

    @staticmethod
    def words(input_ids: Tensor, attended: Tensor, ends: Tensor) -> Tensor:
        """The pieces between [CLS] and [SEP]."""
        return inner_pieces(attended, ends)

    @staticmethod
    def window_tokens(model: Any, pixel_values: Tensor, video_mask: Tensor, **states) -> TowerTokens:
        """(B,F,3,H,W), (B,F) bool -> one token (B,1,D) a window; the tower masks its padding itself."""
        frames = torch.where(video_mask[..., None, None, None], pixel_values, 0.0)
        whole = not torch.compiler.is_compiling() and bool(video_mask.all())
        output = model.vision_model(
            pixel_values_videos=frames, padding_mask_videos=None if whole else video_mask, **states
        )
        pooled = model.visual_projection(output.pooler_output)
        return TowerTokens(pooled[:, None], pooled, states_of(output))


def evenly_repeated(pixel_values: Tensor, video_mask: Tensor, count: int) -> Tensor:
    """`count` frames of each window: its n real ones in order, frame ⌊i·n/count⌋ at place i. -> (B,count,3,H,W).

    With n = count that is the window itself.
    """
    real = video_mask.sum(-1, keepdim=True)  # (B,1)
    wanted = torch.arange(count, device=video_mask.device) * real // count  # (B,count): the how-manieth real frame
    seen = video_mask.cumsum(-1)  # the place of the k-th real frame is how many places have seen at most k of them
    places = (seen[:, None] <= wanted[..., None]).sum(-1)
    return pixel_values.gather(1, places[..., None, None, None].expand(-1, -1, *pixel_values.shape[2:]))


def require(tower: Any, name: str) -> None:
    if tower is None:
        raise ImportError(f"this transformers has no {name}; install transformers 5.23 or later")

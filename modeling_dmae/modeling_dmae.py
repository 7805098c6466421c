"""DMAEForTextVideoRetrieval: two towers, dual-modal attention, NegNCE and TPM-CL, for text-to-video retrieval.

Each equation lives in its own module (attention, similarity, losses, partial order, temporal encoder); here they meet.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .attention_dmae import attended_frames, textual_attention
from .configuration_dmae import DMAEConfig, closest
from .embeddings_dmae import PairTokens, TextEmbeddings, VideoEmbeddings
from .objective_dmae import composed, contrastive_terms, triplet_means
from .outputs_dmae import DMAEOutput
from .partial_order_dmae import PartialOrder
from .similarity_dmae import NO_FRAMES, NO_WORDS, similarity, word_frame_products
from .temporal_dmae import TemporalEncoder, strongest_patches
from .towers_dmae import BACKBONES, backbone_of
from .vectors_dmae import masked_softmax, require_valid_rows, uniform_weights, unit, wide

MAX_LOG_SCALE = math.log(100)
HUB_WORDS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class WeightHead(nn.Module):
    """One logit per token for WTI: Linear, ReLU, Linear; the last layer starts at 0, so WTI = TI at step 0."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, 1, bias=False)  # a softmax does not see a bias
        self.fc2.starts_at_zero = True  # pyright: ignore[reportArgumentType]  (torch: a module holds modules only)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.fc1(tokens).relu())[..., 0]


class DMAEForTextVideoRetrieval(PartialOrder, PreTrainedModel):
    """Scores texts against videos; trains by InfoNCE or NegNCE and TPM-CL, as `config` says.

    A parameter exists only if the configuration uses it, and all that require a gradient receive one, so
    DistributedDataParallel needs no `find_unused_parameters`.

    Example:
        >>> model = DMAEForTextVideoRetrieval.from_clip("openai/clip-vit-base-patch32", max_frames=12)
        >>> model(**processor(text=["a dog runs"], videos=["dog.mp4"], return_tensors="pt")).logits_per_text
    """

    config_class = DMAEConfig
    base_model_prefix = "dmae"
    text_model: Any  # the towers, as `backbone` builds them
    vision_model: Any
    main_input_name = "input_ids"
    input_modalities = ["video", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DMAEConfig):
        super().__init__(config)
        self.backbone = backbone_of(config)
        self.backbone.build(self, config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.temporal = TemporalEncoder(config)
        if config.learns_word_weights:
            self.fc_text = WeightHead(config.projection_dim)
        if config.learns_frame_weights:
            self.fc_video = WeightHead(config.projection_dim)
        if config.partial_order:
            self.add_predictors(config)
        self.progress: float | None = None  # fraction of training done, for margin_schedule; the trainer sets it
        self.post_init()
        if config.temporal_init == "clip":
            self.temporal.copy_text_tower(self.text_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if getattr(module, "starts_at_zero", False):
            for parameter in module.parameters():
                init.zeros_(parameter)
        elif std := getattr(module, "init_std", None):
            init.normal_(module.get_parameter("weight"), std=std)
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    # ------------------------------------------------------------------ from a dual encoder

    @classmethod
    def from_clip(
        cls, name_or_path: str, dtype: torch.dtype = torch.float32, **overrides
    ) -> "DMAEForTextVideoRetrieval":
        """The two towers, projections and logit scale of a CLIP (or SigLIP, SigLIP2) checkpoint; the rest is new.

        Args:
            name_or_path: a Hub name or a folder.
            overrides: fields of [`DMAEConfig`], and the Hub's own `revision`, `token`, `cache_dir`, ….
                With `interaction="mean"` an untrained model is exactly CLIP on the mean frame.
        Raises `ValueError` for an unknown field or a checkpoint that is no dual encoder.
        """
        hub = {name: overrides.pop(name) for name in HUB_WORDS if name in overrides}
        for name in overrides:
            if name not in DMAEConfig.field_names():
                raise ValueError(f"{name!r} is not a field of DMAEConfig; {closest(name, DMAEConfig.field_names())}")
        return cls.from_dual_encoder(AutoModel.from_pretrained(name_or_path, dtype=dtype, **hub), **overrides)

    @classmethod
    def from_dual_encoder(cls, source: PreTrainedModel, **overrides) -> "DMAEForTextVideoRetrieval":
        """As `from_clip`, from one of transformers' models that is loaded already; in its dtype."""
        backbone = BACKBONES.get(source.config.model_type)
        if backbone is None:
            raise ValueError(
                f"{source.name_or_path}: a {type(source).__name__} has no text and vision tower; give a CLIP model"
            )
        settings = backbone.settings(source)
        settings = {"max_words": min(32, settings["text_config"].max_position_embeddings), **settings}
        if "logit_scale_init_value" in settings:
            settings["logit_scale_init_value"] = min(settings["logit_scale_init_value"], MAX_LOG_SCALE)
        model = cls(DMAEConfig(**{**settings, **DMAEConfig.window_settings(settings["vision_config"]), **overrides}))
        model.to(dtype=source.dtype)  # pyright: ignore[reportCallIssue]  (a wrapper in transformers hides `self`)
        for part, theirs in backbone.parts.items():
            getattr(model, part).load_state_dict(getattr(source, theirs).state_dict())
        if model.config.temporal_init == "clip":
            model.temporal.copy_text_tower(model.text_model)
        return model.eval()

    # ------------------------------------------------------------------ publishing

    finish_upload = None  # the installed package puts a function (model, folder, repo_id) here; remote code has none

    def _upload_modified_files(self, working_dir, repo_id, *arguments, **options):
        """What `push_to_hub` ends with; where the package is at hand, card, pipeline and handler join the files."""
        if self.finish_upload is not None:
            self.finish_upload(working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *arguments, **options)

    # ------------------------------------------------------------------ features

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        word_weights: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> TextEmbeddings:
        """Texts -> [`TextEmbeddings`].

        Args:
            input_ids, attention_mask: (B,T) from the tokenizer.
            word_mask: (B,T) bool, word pieces only; by default all attended pieces before the end token but BOS.
            word_weights: (B,T) raw p·q per piece; by default 1 everywhere.
            output_attentions, output_hidden_states: also those of the tower. return_dict: False gives a tuple.
        """
        states = self._states(output_attentions, output_hidden_states)
        return self._encode_text(input_ids, attention_mask, word_mask, word_weights, states)[0]

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values: Tensor | None = None,
        video_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        frame_tokens: Tensor | None = None,
    ) -> VideoEmbeddings:
        """Videos -> [`VideoEmbeddings`].

        pixel_values (or pixel_values_videos, another name for it): (B,F,3,H,W); video_mask: (B,F) bool, by default all
        True. The rest as in `get_text_features`; states are those of the real frames, in order. In the place of pixels,
        frame_tokens: (B,F,1 or 1+K,D) of `get_frame_tokens`, 0 at padding. A tower that sees a window at once
        (`config.sees_windows`) gives embeddings of one frame each, the window.
        """
        if frame_tokens is not None:
            if video_mask is None:
                raise ValueError("frame_tokens without video_mask: give the mask (B,F) of the frames they are of")
            return self._video_of_tokens(frame_tokens, video_mask.bool())[0]
        states = self._states(output_attentions, output_hidden_states)
        return self._encode_video(one_of(pixel_values, pixel_values_videos), video_mask, states)[0]

    def get_frame_tokens(self, pixel_values: Tensor) -> Tensor:
        """Frames (N,3,H,W) -> their unit tokens (N,1 or 1+K,D): a frame that lies in several windows is run once."""
        if self.config.sees_windows:
            raise ValueError(
                f"a {self.config.vision_config.model_type} tower has no tokens of single frames: it sees a window at "
                f"once; call get_video_features with the window's frames"
            )
        alone = torch.ones(len(pixel_values), 1, dtype=torch.bool, device=pixel_values.device)
        return self._frame_tokens(pixel_values[:, None], alone, {})[0][:, 0]

    def _states(self, attentions: bool | None, hidden_states: bool | None) -> dict[str, bool]:
        """What the towers are asked for besides their tokens; by default what the configuration says."""
        attentions = self.config.output_attentions if attentions is None else attentions
        hidden_states = self.config.output_hidden_states if hidden_states is None else hidden_states
        if attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions=True, but attn_implementation={self.config._attn_implementation!r} computes none: "
                f"call model.set_attn_implementation('eager') first"
            )
        return {"output_attentions": bool(attentions), "output_hidden_states": bool(hidden_states)}

    def encode_pairs(
        self,
        input_ids,
        attention_mask=None,
        word_mask=None,
        word_weights=None,
        pixel_values=None,
        video_mask=None,
        video_ids=None,
        caption_ids=None,
    ) -> tuple[TextEmbeddings, VideoEmbeddings, PairTokens | None]:
        """Both sides of a batch, and the tokens TPM-CL needs (None with partial_order off). The ids are ignored."""
        text, text_tokens = self._encode_text(input_ids, attention_mask, word_mask, word_weights)
        video, visual_tokens = self._encode_video(pixel_values, video_mask)
        return text, video, PairTokens(**text_tokens, **visual_tokens) if self.config.partial_order else None

    def _encode_text(self, input_ids, attention_mask, word_mask, word_weights, states=None):
        """-> TextEmbeddings, and the text's fields of `PairTokens`."""
        positions = self.config.text_config.max_position_embeddings
        if input_ids.shape[-1] > positions:
            raise ValueError(
                f"input_ids has {input_ids.shape[-1]} positions, the text tower {positions}; "
                f"truncate to max_words={self.config.max_words}"
            )
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ends = self.backbone.end_positions(self.config.text_config, input_ids, attention_mask.bool())
        if word_mask is None:
            word_mask = self.backbone.words(input_ids, attention_mask.bool(), ends)
        word_mask = word_mask.bool()
        require_same_shape(input_ids, attention_mask=attention_mask, word_mask=word_mask, word_weights=word_weights)
        require_valid_rows(word_mask, "word_mask", NO_WORDS)
        tower = self.backbone.text_tokens(self, input_ids, attention_mask, **(states or {}))
        sentence, words = unit(tower.pooled), unit(tower.tokens)
        raw = torch.ones_like(word_mask, dtype=torch.float32) if word_weights is None else word_weights
        mode = self.config.word_weighting if self.config.textual_attention else "uniform"
        weights = textual_attention(raw, word_mask, mode)
        if self.config.learns_word_weights:
            weights = masked_softmax(weights.log() + wide(self.fc_text(words)), word_mask)
        tpm_mask = word_mask
        if self.config.tpm_includes_eos:
            tpm_mask = word_mask | (torch.arange(word_mask.shape[1], device=ends.device) == ends[:, None])
        tokens = {"text_tokens": torch.where(tpm_mask[..., None], words, 0.0), "text_mask": tpm_mask}
        return TextEmbeddings(sentence, words, weights, word_mask, *tower.states), tokens

    def _encode_video(self, pixel_values, video_mask, states=None):
        """-> VideoEmbeddings, and the video's fields of `PairTokens`."""
        if pixel_values.ndim != 5:
            raise ValueError(f"pixel_values is {tuple(pixel_values.shape)}; give (videos, frames, 3, height, width)")
        batch, frames = pixel_values.shape[:2]
        if frames > self.config.max_frames:
            raise ValueError(f"pixel_values has {frames} frames, max_frames={self.config.max_frames}; sample fewer")
        if video_mask is None:
            video_mask = torch.ones(batch, frames, dtype=torch.bool, device=pixel_values.device)
        video_mask = video_mask.bool()
        if video_mask.shape != (batch, frames):
            raise ValueError(f"video_mask is {tuple(video_mask.shape)}; pixel_values asks for {(batch, frames)}")
        require_valid_rows(video_mask, "video_mask", NO_FRAMES)
        if self.config.sees_windows:
            tower = self.backbone.window_tokens(self, pixel_values.to(self.dtype), video_mask, **(states or {}))
            return self._video_of_tokens(unit(tower.tokens)[:, None], torch.ones_like(video_mask[:, :1]), tower.states)
        tokens, states = self._frame_tokens(pixel_values, video_mask, states or {})
        return self._video_of_tokens(tokens, video_mask, states)

    def _video_of_tokens(self, tokens, video_mask, states=()):
        """As `_encode_video`, from the tokens (B,F,1 or 1+K,D) of every frame, 0 at padding."""
        frames = video_mask.shape[1]
        tokens, places = strongest_patches(tokens, self.config.patches_per_frame)
        per_frame = 1 if self.config.temporal_input == "frame" else 1 + self.config.patches_in_frame
        positions = (places + per_frame * torch.arange(frames, device=places.device)[:, None]).flatten(1)
        visual_mask = video_mask.repeat_interleave(tokens.shape[2], 1)
        visual_tokens = tokens.flatten(1, 2)
        embeds, frame_weights = self._temporal(visual_tokens, visual_mask, positions, video_mask)
        attended = embeds
        if self.config.visual_attention and self.config.interaction != "mean":
            attended = attended_frames(embeds, video_mask, self.config.visual_top_k, self.config.visual_scale)
        visual = {"frame_tokens": tokens[:, :, 0], "visual_tokens": visual_tokens}
        visual |= {"visual_mask": visual_mask, "positions": positions}
        return VideoEmbeddings(embeds, attended, frame_weights, video_mask, *states), visual

    def _frame_tokens(self, pixel_values: Tensor, video_mask: Tensor, states: dict) -> tuple[Tensor, tuple]:
        """Unit joint-space tokens of every frame, 0 at padding, which is not run. -> (B,F,1 or 1+K,D), its states."""
        with_patches = self.config.temporal_input == "patch"
        if torch.compiler.is_compiling():  # how many frames are real is a value, and a graph has none: run them all
            seen = torch.where(video_mask[..., None, None, None], pixel_values, 0.0).flatten(0, 1)
            tower = self.backbone.frame_tokens(self, seen.to(self.dtype), with_patches, **states)
            tokens = unit(tower.tokens).unflatten(0, video_mask.shape)
            return torch.where(video_mask[..., None, None], tokens, 0.0), tower.states
        tower = self.backbone.frame_tokens(self, pixel_values[video_mask].to(self.dtype), with_patches, **states)
        real = unit(tower.tokens)
        tokens = real.new_zeros(*video_mask.shape, *real.shape[1:])
        return tokens.masked_scatter(video_mask[..., None, None], real), tower.states

    def _temporal(self, visual_tokens, visual_mask, positions, video_mask) -> tuple[Tensor, Tensor]:
        """v_h (B,F,D), 0 at padding, and its frame weights c (B,F)."""
        embeds = self.temporal(visual_tokens, visual_mask, positions)
        embeds = torch.where(video_mask[..., None], embeds, 0.0)
        if self.config.learns_frame_weights:
            return embeds, masked_softmax(self.fc_video(embeds), video_mask)
        return embeds, uniform_weights(video_mask)

    # ------------------------------------------------------------------ whole

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the scale at or below 100; call it after each optimiser step (docs/method.md §5)."""
        self.logit_scale.clamp_(max=MAX_LOG_SCALE)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        word_weights: Tensor | None = None,
        pixel_values: Tensor | None = None,
        video_mask: Tensor | None = None,
        video_ids: Tensor | None = None,
        caption_ids: Tensor | None = None,
        return_loss: bool | None = True,
        output_explanation: bool = False,
        pixel_values_videos: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> DMAEOutput:
        """Logits of all Bt x Bv combinations; the losses if row i of both sides is a match.

        Texts alone or videos alone give their embeddings, and neither logits nor losses.

        Args:
            input_ids, attention_mask, word_mask, word_weights: (Bt,T), see `get_text_features`.
            pixel_values (or pixel_values_videos) (Bv,F,3,H,W), video_mask (Bv,F): see `get_video_features`.
            video_ids, caption_ids: (B,) int64; equal ids are no negatives of one another.
            return_loss: by default equal counts are taken for matched pairs, so that `Trainer` evaluates; False: none.
            output_explanation: also return what explains the matches (`DMAEOutput`).
            return_dict: False gives a tuple.
            output_attentions, output_hidden_states: also those of the towers.
        """
        states = self._states(output_attentions, output_hidden_states)
        pixel_values = one_of(pixel_values, pixel_values_videos, required=input_ids is None)
        text = video = None
        if input_ids is not None:
            text, text_tokens = self._encode_text(input_ids, attention_mask, word_mask, word_weights, states)
        if pixel_values is not None:
            video, visual_tokens = self._encode_video(pixel_values, video_mask, states)
        output = {}
        if text is not None and video is not None:
            tokens = PairTokens(**text_tokens, **visual_tokens) if self.config.partial_order else None
            output = self._matched(text, video, tokens, return_loss, video_ids, caption_ids)
            if output_explanation:
                matched = len(text.word_mask) == len(video.video_mask)
                output |= self._explanation(text, video, tokens if matched else None)
        elif output_explanation:
            raise ValueError("output_explanation=True is about texts with videos; give input_ids and pixel_values")
        return DMAEOutput(**output, **fields_of(text, video))

    def _matched(self, text, video, tokens, return_loss, video_ids, caption_ids) -> dict[str, Tensor]:
        """Logits, and losses where there are as many texts as videos and they are not declined."""
        matched = len(text.word_mask) == len(video.video_mask)
        scale = wide(self.logit_scale).exp()
        if matched and return_loss is not False:
            scores, output = self._losses(text, video, tokens, scale, video_ids, caption_ids)
        else:
            scores, output = similarity(text, video, self.config), {}
        return output | {"logits_per_text": scores * scale, "logits_per_video": (scores * scale).T}

    def _losses(self, text, video, tokens, scale, video_ids, caption_ids) -> tuple[Tensor, dict[str, Tensor]]:
        """The (B,B) similarities of matched pairs, and their losses by the names of `DMAEOutput`."""
        terms = contrastive_terms(text, video, scale, self.config, video_ids, caption_ids)
        losses = {"contrastive_loss": terms["contrastive"]}
        if tokens is not None:
            means = triplet_means(*self.partial_order_terms(text, video, tokens))
            losses["partial_order_loss"] = means.sum()
            losses |= dict(zip(("sentence_video_loss", "words_video_loss", "words_masked_loss"), means))
        losses["loss"] = composed(terms["contrastive"], losses.get("partial_order_loss"), self.config)
        return terms["scores"], losses

    def _explanation(self, text, video, tokens) -> dict[str, Tensor]:
        found = {"word_frame_similarities": word_frame_products(text, video)}
        if tokens is not None:
            masks = self.partial_order_masks(text, tokens)
            found |= {"masked_words": ~masks.text_keep, "masked_visual_tokens": ~masks.visual_keep}
        return found


def one_of(pixel_values: Tensor | None, pixel_values_videos: Tensor | None, required: bool = True) -> Tensor | None:
    """The frames, under either of their two names. Raises `ValueError` for both, and for neither where required."""
    if pixel_values is not None and pixel_values_videos is not None:
        raise ValueError("pixel_values and pixel_values_videos are two names of one input; give one of them")
    frames = pixel_values_videos if pixel_values is None else pixel_values
    if frames is None and required:
        raise ValueError("nothing to encode: give input_ids of texts, or pixel_values of videos, or both")
    return frames


def fields_of(text: TextEmbeddings | None, video: VideoEmbeddings | None) -> dict[str, Any]:
    """The embeddings by their names in `DMAEOutput`."""
    found: dict[str, Any] = {}
    for side, tower in ((text, "text_model_output"), (video, "vision_model_output")):
        if side is not None:
            found |= dict(zip(side.names(), side.tensors()))
            if side.hidden_states is not None or side.attentions is not None:
                found[tower] = BaseModelOutput(hidden_states=side.hidden_states, attentions=side.attentions)
    if text is not None:
        found["text_embeds"] = found.pop("sentence_embeds")
    return found


def require_same_shape(reference: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != reference.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, input_ids {tuple(reference.shape)}; they go together")


DMAEForTextVideoRetrieval.register_for_auto_class("AutoModel")

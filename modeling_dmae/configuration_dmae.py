"""DMAEConfig: every switch of the method is a word or a number here, checked when the configuration is made."""

import difflib
import inspect
import math

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

WORDS = {
    "interaction": ("ti", "wti", "mean"),
    "similarity_form": ("tokenwise", "pooled"),
    "text_granularity": ("both", "words", "sentence"),
    "word_weighting": ("softmax", "linear", "uniform"),
    "temporal_input": ("frame", "patch"),
    "temporal_init": ("identity", "clip", "random"),
    "loss": ("info_nce", "neg_nce"),
    "mask_gradient": ("straight_through", "none"),
    "margin_schedule": ("constant", "linear"),
    "visual_scale": ("printed", "halved", "unit"),
}
SWITCHES = ("textual_attention", "visual_attention", "partial_order", "mask_duplicates", "tpm_includes_eos")
COUNTS = {  # name: smallest value allowed
    "projection_dim": 1,
    "visual_top_k": 1,
    "irrelevant_words": 0,
    "temporal_layers": 0,
    "max_words": 1,
    "max_frames": 1,
    "merge_tokens": 0,
}
NUMBERS = {  # name: (lowest, highest), both allowed
    "content_weight": (0.0, float("inf")),
    "positive_weight": (0.0, float("inf")),
    "negative_weight": (0.0, float("inf")),
    "negative_margin": (0.0, 2.0),
    "partial_margin": (0.0, float("inf")),
    "partial_margin_start": (0.0, float("inf")),
    "partial_weight": (0.0, float("inf")),
    "logit_scale_init_value": (float("-inf"), float("inf")),
    "initializer_range": (0.0, float("inf")),
}
# Towers that see a window of frames at once and give one vector for it, and what is then left to nobody.
WINDOW_TOWERS = ("videoprism_vision_model", "pe_video_encoder")
WINDOW_SETTINGS = {
    "visual_attention": False,
    "temporal_layers": 0,
    "partial_order": False,
    "temporal_input": "frame",
    "patches_per_frame": None,
    "merge_tokens": 0,
}
WINDOW_FRAMES = 16  # of a tower that takes any number: what PE-Video's checkpoints of a fixed number were trained on
# The paper contradicts itself, or is bettered, in these; `DMAEConfig.paper()` sets them as printed.
AS_PRINTED = {
    "temporal_init": "random",
    "word_weighting": "softmax",
    "similarity_form": "pooled",
    "mask_duplicates": False,
    "mask_gradient": "none",
}


def closest(word: str, valid) -> str:
    """`valid` as a readable list, led by the nearest spelling if there is one."""
    near = difflib.get_close_matches(str(word), list(valid), n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + "valid: " + ", ".join(map(repr, valid))


class DMAEConfig(PretrainedConfig):
    """Configuration of [`DMAEForTextVideoRetrieval`].

    Backbone:
        text_config, vision_config: the two towers (dict or config object); `model_type` defaults to CLIP's.
            CLIP, MetaCLIP 2, Chinese-CLIP, AltCLIP, SigLIP and SigLIP2 towers fit; VideoPrism's and PE-Video's see a
            window of frames at once and give one vector for it (`sees_windows`).
        projection_dim (D): width of the joint space.
        logit_scale_init_value: ln of the temperature's inverse; CLIP's ln(1/0.07) = 2.6592.
        max_words (T), max_frames (F): text positions (BOS and EOS included) and frames per video; the token weight
            predictor of TPM has dense layers of these sizes.

    Textual attention (Eq. 1): `textual_attention`, `word_weighting`, `content_weight` (η), `irrelevant_words` (k).
        The processor of a model weighs words by these two (`processor_words`).
    Visual attention (Eq. 2): `visual_attention`, `visual_top_k` (the diagonal counted), `visual_scale` ("printed":
        attended frames are about twice as long as frames, and so are scores and logits; "halved"; "unit").
    Temporal encoder: `temporal_input` ("frame": one CLS per frame; "patch": CLS and patches), `temporal_layers`,
        `temporal_init`, `patches_per_frame` (None: all of them).
    Similarity (Eq. 3): `interaction`, `similarity_form`, `text_granularity`.
    Losses: `loss`, `positive_weight` (γ1), `negative_weight` (γ2), `negative_margin` (ξ), `mask_duplicates`.
    TPM-CL (Eq. 10-18): `partial_order` (False: no TPM), `partial_margin` (δ), `mask_ratio` (τ), `partial_weight` (λ),
        `mask_gradient`, `tpm_includes_eos` (the end token may be masked too, as in Fig. 6).

    Beyond the paper, off by default:
        margin_schedule: does a margin that grows help, since early features cannot yet tell a masked pair from a whole
            one? "linear" raises δ from `partial_margin_start` to `partial_margin` over training; the model reads how
            much of it is done from its `progress`.
        merge_tokens: may the vision tower run on fewer tokens? Before each of its blocks but the first, so many of a
            frame's patches join the one most alike (`merging_dmae`); the patches come out at all their places.

    Raises `ValueError` for a value outside its list or range, and for a misspelt name, naming the nearest valid one.

    Example:
        >>> DMAEConfig(interaction="wti", max_frames=8).visual_top_k
        2
    """

    model_type = "dmae"
    is_composition = True
    # what `Trainer` leaves out of its predictions: from the embeddings that stay, a whole split is scored
    keys_to_ignore_at_inference = [
        "contrastive_loss",
        "partial_order_loss",
        "sentence_video_loss",
        "words_video_loss",
        "words_masked_loss",
        "logits_per_text",
        "logits_per_video",
    ]
    # a dict, as in transformers' own models, though its annotation there is that of a property
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        max_words: int = 32,
        max_frames: int = 12,
        interaction: str = "ti",
        similarity_form: str = "tokenwise",
        text_granularity: str = "both",
        word_weighting: str = "softmax",
        textual_attention: bool = True,
        visual_attention: bool = True,
        visual_top_k: int = 2,
        visual_scale: str = "printed",
        content_weight: float = 2.0,
        irrelevant_words: int = 5,
        temporal_input: str = "frame",
        temporal_layers: int = 4,
        temporal_init: str = "identity",
        patches_per_frame: int | None = None,
        loss: str = "neg_nce",
        positive_weight: float = 1.0,
        negative_weight: float = 0.5,
        negative_margin: float = 0.0,
        mask_duplicates: bool = True,
        partial_order: bool = True,
        partial_margin: float = 0.6,
        mask_ratio: float = 0.6,
        partial_weight: float = 1.0,
        mask_gradient: str = "straight_through",
        tpm_includes_eos: bool = False,
        margin_schedule: str = "constant",
        partial_margin_start: float = 0.0,
        merge_tokens: int = 0,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.text_config = _tower_config("text_config", text_config, "clip_text_model")
        self.vision_config = _tower_config("vision_config", vision_config, "clip_vision_model")
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        self.max_words = max_words
        self.max_frames = max_frames
        self.interaction = interaction
        self.similarity_form = similarity_form
        self.text_granularity = text_granularity
        self.word_weighting = word_weighting
        self.textual_attention = textual_attention
        self.visual_attention = visual_attention
        self.visual_top_k = visual_top_k
        self.visual_scale = visual_scale
        self.content_weight = content_weight
        self.irrelevant_words = irrelevant_words
        self.temporal_input = temporal_input
        self.temporal_layers = temporal_layers
        self.temporal_init = temporal_init
        self.patches_per_frame = patches_per_frame
        self.loss = loss
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.negative_margin = negative_margin
        self.mask_duplicates = mask_duplicates
        self.partial_order = partial_order
        self.partial_margin = partial_margin
        self.mask_ratio = mask_ratio
        self.partial_weight = partial_weight
        self.mask_gradient = mask_gradient
        self.tpm_includes_eos = tpm_includes_eos
        self.margin_schedule = margin_schedule
        self.partial_margin_start = partial_margin_start
        self.merge_tokens = merge_tokens
        self.initializer_range = initializer_range
        self.validate_values()
        self.refuse_misspelt(kwargs)
        super().__init__(**kwargs)

    # ------------------------------------------------------------------ making one

    @classmethod
    def paper(cls, **overrides) -> "DMAEConfig":
        """Every choice as printed: random temporal encoder, softmax word weights, pooled Eq. 3, no duplicate
        masking, no gradient through the mask. `overrides` win."""
        return cls(**{**AS_PRINTED, **overrides})

    @classmethod
    def tiny(cls, **overrides) -> "DMAEConfig":
        """A model of some 100 k parameters for tests and small corpora: 64 wide, 2 layers, 32 px in 16 px patches."""
        tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1)
        text = dict(tower, vocab_size=128, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1)
        vision = dict(tower, image_size=32, patch_size=16)
        small = dict(projection_dim=64, max_words=16, max_frames=4, temporal_layers=1)
        return cls(**{"text_config": text, "vision_config": vision, **small, **overrides})

    @classmethod
    def field_names(cls) -> list[str]:
        """The names this class itself defines, in order (what a recipe or `from_clip` may set)."""
        return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "kwargs")]

    # ------------------------------------------------------------------ checks

    def validate_values(self) -> None:
        """Raises `ValueError` naming the field, the value and what is valid."""
        for name, valid in WORDS.items():
            value = getattr(self, name)
            if value not in valid:
                raise ValueError(f"{name}={value!r} is not a choice; {closest(value, valid)}")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")
        for name, lowest in COUNTS.items():
            _check_count(name, getattr(self, name), lowest)
        for name, (lowest, highest) in NUMBERS.items():
            _check_number(name, getattr(self, name), lowest, highest)
        if not (_is_number(self.mask_ratio) and 0 < self.mask_ratio < 1):
            raise ValueError(f"mask_ratio={self.mask_ratio!r} (τ) must lie between 0 and 1, both excluded; try 0.6")
        self._validate_against_towers()

    def _validate_against_towers(self) -> None:
        if self.sees_windows:
            self._validate_windows()
        positions = self.text_config.max_position_embeddings
        if self.max_words > positions:
            raise ValueError(
                f"max_words={self.max_words} exceeds the text tower's {positions} positions; "
                f"set max_words to at most {positions}"
            )
        if self.patches_per_frame is not None:
            _check_count("patches_per_frame", self.patches_per_frame, 1)
            if self.patches_per_frame > self.patches_in_frame:
                raise ValueError(
                    f"patches_per_frame={self.patches_per_frame}, but a frame has {self.patches_in_frame} patches; "
                    f"use None to keep them all"
                )
        if self.merge_tokens and "siglip" in self.vision_config.model_type:
            raise ValueError(
                f"merge_tokens={self.merge_tokens}: {self.vision_config.model_type!r} pools its patches by a head that "
                f"does not know how many a token stands for; set it to 0"
            )
        if self.merge_tokens > self.patches_in_frame // 2:
            raise ValueError(
                f"merge_tokens={self.merge_tokens}, but a frame has {self.patches_in_frame} patches, and at most half "
                f"of them join others at once; set it to {self.patches_in_frame // 2} or less"
            )
        if self.temporal_init == "clip" and self.temporal_layers:
            self._validate_temporal_copy()

    def _validate_windows(self) -> None:
        """What works on several frames is refused over one vector, and another number of frames than was trained."""
        tower = self.vision_config.model_type
        idle = {name: getattr(self, name) for name, value in WINDOW_SETTINGS.items() if getattr(self, name) != value}
        if self.interaction == "wti":
            idle["interaction"] = "wti"
        if idle:
            remedy = {"interaction": "mean", **WINDOW_SETTINGS}
            raise ValueError(
                f"a {tower} tower sees a window of frames at once and gives one vector for it: "
                f"{', '.join(f'{name}={value!r}' for name, value in idle.items())} would have nothing to work on; "
                f"set {', '.join(f'{name}={remedy[name]!r}' for name in idle)}"
            )
        trained = getattr(self.vision_config, "num_frames", None)
        if trained is not None and self.max_frames != trained:
            raise ValueError(
                f"max_frames={self.max_frames}: a {tower} tower takes windows of {trained}; set it to that"
            )

    def _validate_temporal_copy(self) -> None:
        """CLIP's text blocks fit the temporal encoder only when width, heads and depth agree."""
        text, heads = self.text_config, self.temporal_heads
        if text.model_type != "clip_text_model":
            raise ValueError(f"temporal_init='clip' copies a CLIP text tower, not {text.model_type!r}; use 'identity'")
        wrong = [
            f"{name} is {have} and must be {need}"
            for name, have, need in [
                ("text_config.hidden_size", text.hidden_size, self.projection_dim),
                ("text_config.num_attention_heads", text.num_attention_heads, heads),
                ("text_config.intermediate_size", text.intermediate_size, 4 * self.projection_dim),
            ]
            if have != need
        ]
        if self.temporal_layers > text.num_hidden_layers:
            wrong.append(f"temporal_layers is {self.temporal_layers}, the text tower has {text.num_hidden_layers}")
        if wrong:
            raise ValueError(f"temporal_init='clip' cannot copy the text tower: {'; '.join(wrong)}; use 'identity'")

    def refuse_misspelt(self, kwargs: dict) -> None:
        """A name that is one of ours but for a slip would be stored and ignored; refuse it. Other names are the base
        class's (`architectures`, `auto_map`, `dtype`, ...) and pass."""
        for name in kwargs:
            near = difflib.get_close_matches(name, self.field_names(), n=1, cutoff=0.8)
            if near and not hasattr(PretrainedConfig, name):
                raise ValueError(f"unknown configuration name {name!r}; did you mean {near[0]!r}?")

    # ------------------------------------------------------------------ derived sizes

    @property
    def score_scale(self) -> float:
        """The greatest length of a scored frame, 1 without attention: what a fixed temperature is divided by."""
        if not self.visual_attention or self.interaction == "mean" or self.visual_scale == "unit":
            return 1.0
        return self.visual_top_k / (2.0 if self.visual_scale == "halved" else 1.0)

    @classmethod
    def window_settings(cls, vision_config) -> dict:
        """What a tower that sees a window at once leaves no choice of; nothing for any other."""
        if vision_config.model_type not in WINDOW_TOWERS:
            return {}
        return {**WINDOW_SETTINGS, "max_frames": getattr(vision_config, "num_frames", WINDOW_FRAMES)}

    @property
    def sees_windows(self) -> bool:
        """Whether the vision tower gives one vector per window, not one per frame."""
        return self.vision_config.model_type in WINDOW_TOWERS

    @property
    def frame_size(self) -> int:
        """Height and width of a frame in pixels. SigLIP2's tower names a number of patches instead: its square."""
        vision = self.vision_config
        if vision.model_type == "pe_video_encoder":
            return _timm_size(vision.vision_config)
        if isinstance(getattr(vision, "image_size", None), (list, tuple)):
            return vision.image_size[0]
        return getattr(vision, "image_size", None) or math.isqrt(vision.num_patches) * vision.patch_size

    @property
    def patches_in_frame(self) -> int:
        """K, the patches the vision tower makes of one frame; 0 where it gives none of a frame's."""
        if self.sees_windows:
            return 0
        return (self.frame_size // self.vision_config.patch_size) ** 2

    @property
    def tokens_per_frame(self) -> int:
        """Tokens each frame gives the temporal encoder: 1 (frame), 1 + K or 1 + patches_per_frame (patch)."""
        if self.temporal_input == "frame":
            return 1
        return 1 + (self.patches_per_frame or self.patches_in_frame)

    @property
    def temporal_positions(self) -> int:
        """Rows of the temporal position table (and of the visual predictor): all F(1+K), whatever is kept of them."""
        if self.sees_windows:
            return 1
        return self.max_frames * (1 if self.temporal_input == "frame" else 1 + self.patches_in_frame)

    @property
    def temporal_heads(self) -> int:
        return max(1, self.projection_dim // 64)

    @property
    def learns_word_weights(self) -> bool:
        """WTI with words: a head weighs them."""
        return self.interaction == "wti" and self.text_granularity != "sentence"

    @property
    def learns_frame_weights(self) -> bool:
        return self.interaction == "wti"

    def processor_words(self) -> dict:
        """What this model asks of its processor (`DMAEProcessor`): text positions and how words are weighed."""
        return {
            "max_words": self.max_words,
            # without textual attention the model ignores the weights: no tagging, no spaCy
            "word_weighting": self.word_weighting if self.textual_attention else "uniform",
            "content_weight": self.content_weight,
            "irrelevant_words": self.irrelevant_words,
        }


def _tower_config(name: str, value, default_type: str):
    if value is None:
        value = {}
    if not isinstance(value, dict):
        return value
    value = dict(value)
    model_type = value.pop("model_type", default_type) or default_type
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name}: model_type {model_type!r} is unknown to transformers; CLIP's is {default_type!r}")
    return CONFIG_MAPPING[model_type](**value)


def _timm_size(config) -> int:
    """Side of the frames of timm's tower inside PE-Video's: said outright, or by the name of its architecture."""
    given = getattr(config, "image_size", None) or (getattr(config, "model_args", None) or {}).get("img_size")
    return given or int(config.architecture.rsplit("_", 1)[-1])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_count(name: str, value, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {lowest}")


def _check_number(name: str, value, lowest: float, highest: float) -> None:
    if not _is_number(value) or not lowest <= value <= highest:
        raise ValueError(f"{name}={value!r} must be a number between {lowest} and {highest}")


DMAEConfig.register_for_auto_class()

"""DMAEProcessor: fast CLIP tokenizer, frame sampler and word weigher behind one call that gives a model's batch."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import cached_file

from .arguments_dmae import SAMPLER_ARGUMENTS, refuse_unknown, sorted_arguments
from .frames_dmae import FrameSampler, stacked
from .inputs_dmae import listed
from .pictures_dmae import picture_settings
from .words_dmae import WordWeigher, checked_texts, piece_weights

WORD_WEIGHTING = ("softmax", "linear", "uniform")
# What AutoProcessor hands on besides; none of it concerns what a batch holds.
LOADING_ARGUMENTS = ("trust_remote_code", "code_revision", "use_fast", "user_agent", "_from_auto", "_commit_hash")
# A tokenizer's own, handed on to it.
TOKEN_ARGUMENTS = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "cls", "sep", "unk", "mask"))
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
OVERRIDES = ("max_words", "word_weighting")
WEIGHER_WORDS = ("content_weight", "irrelevant_words")


class DMAEProcessor(ProcessorMixin):
    """Turns captions and videos into exactly what `model(**batch)` accepts.

    Args:
        tokenizer: a fast tokenizer with offsets (`CLIPTokenizer`, `PreTrainedTokenizerFast`, …).
        feature_extractor: the `FrameSampler`; default `FrameSampler()`. (`frame_sampler` is accepted for it.)
        word_weigher: the `WordWeigher`; default `WordWeigher()`, the bundled tagger without a TF-IDF table.
        max_words: text positions T, BOS and EOS included, to which every caption is padded or truncated.
        word_weighting: as in `DMAEConfig`; "uniform" weighs every word 1 and does without spaCy.

    Raises ValueError for a tokenizer without offsets or settings out of range, ImportError where word weights are
    wanted and spaCy is missing.
    """

    # on the class: saving would otherwise add it to the instance and change its fingerprint
    auto_map = {"AutoProcessor": "processing_dmae.DMAEProcessor"}

    def __init__(
        self,
        tokenizer,
        feature_extractor=None,
        word_weigher=None,
        max_words=32,
        word_weighting="softmax",
        frame_sampler=None,
    ):
        super().__init__(tokenizer, feature_extractor or frame_sampler or FrameSampler())
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} gives no character offsets: load the fast tokenizer")
        if not 3 <= max_words <= tokenizer.model_max_length:
            raise ValueError(f"max_words={max_words}: must be 3 (BOS, a word, EOS) to {tokenizer.model_max_length}")
        if word_weighting not in WORD_WEIGHTING:
            raise ValueError(f"word_weighting={word_weighting!r}: choose from {', '.join(WORD_WEIGHTING)}")
        self.max_words = max_words
        self.word_weighting = word_weighting
        self.word_weigher = None if word_weighting == "uniform" else word_weigher or WordWeigher()
        # sets padding and truncation, which a tokenizer that another thread is using could not be given any more
        self._encode(["a"])

    def __call__(
        self,
        text: str | list[str] | None = None,
        videos: Any = None,
        paragraphs: str | list[str] | None = None,
        **arguments,
    ) -> BatchFeature:
        """Captions and/or videos -> a batch.

        text: B captions -> `input_ids`, `attention_mask` (B,T) int64, `word_mask` (B,T) bool: word pieces only, and
            `word_weights` (B,T) float, the raw p·q of Algorithm 1, 0 outside the mask.
        videos: anything `FrameSampler` reads, or a list of it -> `pixel_values` (B,F,3,H,W), `video_mask` (B,F);
            with `return_timestamps=True` also `timestamps` (B,F) in seconds, which a model does not accept.
        paragraphs: per caption all captions of its video joined (training): its k lowest TF-IDF words get q = 0.
        arguments: for the text `max_length`, `padding`, `truncation`; for the videos `start` and `end` in seconds,
            `num_frames`, `fps`, `size`, `sampling`, `image_mean`, `image_std`, `dtype`, `do_sample_frames`,
            `video_metadata`, `generator`; for both `return_tensors`; or `text_kwargs`, `videos_kwargs`,
            `common_kwargs` that hold them.

        Raises TypeError for any other argument, ValueError for a value that cannot be.
        """
        text_arguments, video_arguments, output = sorted_arguments({**arguments, "paragraphs": paragraphs})
        if text is None and videos is None:
            raise ValueError("nothing to process: give text=…, videos=… or both")
        batch = {}
        if text is not None:
            batch |= self._texts(text, **text_arguments)
        if videos is not None:
            frames = self._frames(videos, **video_arguments)
            names = ("pixel_values", "video_mask", *(("timestamps",) if output.get("return_timestamps") else ()))
            batch |= {name: frames[name] for name in names}
        return BatchFeature(batch, tensor_type=output.get("return_tensors"))

    def _frames(self, videos, **arguments) -> BatchFeature:
        """With a leading axis, one video too."""
        changed = {name: arguments.pop(name) for name in SAMPLER_ARGUMENTS if name in arguments}
        sampler = self.feature_extractor.replaced(**changed) if changed else self.feature_extractor
        videos, _ = listed(videos)
        return stacked(sampler.rows(videos, **arguments))

    def _texts(self, text, paragraphs=None, max_length=None, padding="max_length", truncation=True) -> dict[str, list]:
        texts = checked_texts([text] if isinstance(text, str) else text)
        if not texts:
            raise ValueError("text is an empty list: give at least one caption")
        if max_length is not None and not 3 <= max_length <= self.tokenizer.model_max_length:
            raise ValueError(
                f"max_length={max_length}: must be 3 (BOS, a word, EOS) to {self.tokenizer.model_max_length}"
            )
        encoded = self._encode(texts, max_length, padding, truncation)
        masks = [[not special for special in row] for row in encoded["special_tokens_mask"]]
        for i, mask in enumerate(masks):
            if not any(mask):
                raise ValueError(f"text {i} has no words: {texts[i]!r:.80}; leave it out or give it at least one word")
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "word_mask": masks,
            "word_weights": self._word_weights(texts, paragraphs, encoded["offset_mapping"], masks),
        }

    def _encode(self, texts: list[str], max_length: int | None = None, padding="max_length", truncation=True):
        """max_length: positions to pad or cut to. Other than by default, not while another thread encodes."""
        max_length = max_length or self.max_words
        encoded = self.tokenizer(
            texts,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            split_special_tokens=True,  # a caption that spells "<|endoftext|>" must not end the sentence there
        )
        for i, row in enumerate(encoded["input_ids"]):
            if len(row) > max_length:
                raise ValueError(
                    f"text {i} has {len(row)} pieces and max_length={max_length}; shorten it or leave truncation on"
                )
        return encoded

    def _word_weights(self, texts, paragraphs, offsets, masks) -> list[list[float]]:
        if self.word_weigher is None:
            return [[float(real) for real in mask] for mask in masks]
        words = self.word_weigher.weights(texts, [paragraphs] if isinstance(paragraphs, str) else paragraphs)
        return [
            [weight * real for weight, real in zip(piece_weights(spans, weighed), mask)]
            for spans, weighed, mask in zip(offsets, words, masks)
        ]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "word_mask", "word_weights", "pixel_values", "video_mask"]

    def to_dict(self) -> dict:
        settings = {
            "processor_class": type(self).__name__,
            "max_words": self.max_words,
            "word_weighting": self.word_weighting,
            "feature_extractor": self.feature_extractor.to_dict(),
            "auto_map": self.auto_map,
            "word_weigher": self.word_weigher and self.word_weigher.to_dict(),
        }
        return {name: value for name, value in settings.items() if value is not None}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Writes tokenizer, settings, tagger and TF-IDF table: all that `from_pretrained` needs, with no download."""
        written = super().save_pretrained(save_directory)
        if self.word_weigher is not None:
            self.word_weigher.save_pretrained(save_directory)
        if push_to_hub:  # not by super, which would upload before the tagger is there
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return written

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "DMAEProcessor":
        """From a folder or a Hub repository that `save_pretrained` wrote; takes the Hub arguments of transformers.

        `max_words`, `word_weighting`, `content_weight`, `irrelevant_words` and every setting of the `FrameSampler`
        (`num_frames`, `size`, …) override the saved ones. `content_weight` and `irrelevant_words` are the model's
        (`DMAEConfig`): beside a model they are read from its config.json. Raises TypeError for any other argument.
        """
        sampler, own = tuple(FrameSampler.field_names()), (*OVERRIDES, *WEIGHER_WORDS)
        valid = (*own, *sampler, *TOKEN_ARGUMENTS, *HUB_ARGUMENTS, *LOADING_ARGUMENTS)
        refuse_unknown(kwargs, valid, (*own, *sampler), "from_pretrained: ")
        if kwargs.get("dtype") == "auto":  # `pipeline` hands the processor what it tells the model
            del kwargs["dtype"]
        source, hub = str(pretrained_model_name_or_path), _chosen(kwargs, HUB_ARGUMENTS)
        settings, _ = cls.get_processor_dict(source, **hub)
        if "feature_extractor" not in settings:
            raise OSError(f"{source}: no DMAE processor here; for a plain CLIP checkpoint use DMAEProcessor.from_clip")
        settings |= _chosen(kwargs, OVERRIDES)
        weigher = None
        if settings["word_weighting"] != "uniform":
            fetch = partial(cached_file, source, _raise_exceptions_for_missing_entries=False, **hub)
            words = {**settings.get("word_weigher", {}), **model_words(fetch), **_chosen(kwargs, WEIGHER_WORDS)}
            weigher = WordWeigher.from_files(fetch, words)
        return cls(
            # a plain configuration: the model's own would make AutoTokenizer ask whether to run this folder's code
            AutoTokenizer.from_pretrained(source, config=PreTrainedConfig(), **hub, **_chosen(kwargs, TOKEN_ARGUMENTS)),
            FrameSampler(**{**settings["feature_extractor"], **_chosen(kwargs, sampler)}),
            weigher,
            max_words=settings["max_words"],
            word_weighting=settings["word_weighting"],
        )

    @classmethod
    def from_clip(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        word_weigher=None,
        max_words=32,
        word_weighting="softmax",
        content_weight=2.0,
        irrelevant_words=5,
        hub: dict | None = None,
        **sampler,
    ) -> "DMAEProcessor":
        """A processor for a CLIP checkpoint: its tokenizer, how it prepares pictures, and the bundled tagger.

        `max_words` to `irrelevant_words` are `config.processor_words()` of the model it is for (the last two make the
        word weigher, if none is given); `sampler` goes to `FrameSampler` (`num_frames`, `sampling`, …), `hub` to the
        Hub (`revision`, `token`, …).
        """
        source, hub = str(pretrained_model_name_or_path), hub or {}
        images = picture_settings(source, hub)
        if word_weigher is None and word_weighting != "uniform":
            word_weigher = WordWeigher(content_weight, irrelevant_words)
        return cls(
            AutoTokenizer.from_pretrained(source, **hub),
            FrameSampler(**(images | sampler)),
            word_weigher,
            max_words=max_words,
            word_weighting=word_weighting,
        )


def _chosen(given: dict, names: tuple[str, ...]) -> dict:
    return {name: given[name] for name in names if name in given}


def model_words(fetch) -> dict:
    """η and k of the DMAE model that lies beside the processor; nothing where there is none."""
    path = fetch("config.json")
    config = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return _chosen(config, WEIGHER_WORDS) if config.get("model_type") == "dmae" else {}


DMAEProcessor.register_for_auto_class()

"""DMAEProcessor: fast CLIP tokenizer, frame sampler and word weigher behind one call that gives a model's batch."""

import json
import os
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import cached_file

from .frames_dmae import FrameSampler
from .words_dmae import WordWeigher, checked_texts, piece_weights

WORD_WEIGHTING = ("softmax", "linear", "uniform")
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
        videos=None,
        paragraphs: str | list[str] | None = None,
        return_tensors: str | None = None,
        return_timestamps: bool = False,
        **window,
    ) -> BatchFeature:
        """Captions and/or videos -> a batch.

        text: B captions -> `input_ids`, `attention_mask` (B,T) int64, `word_mask` (B,T) bool: word pieces only, and
            `word_weights` (B,T) float, the raw p·q of Algorithm 1, 0 outside the mask.
        videos: anything `FrameSampler` reads, or a list of it -> `pixel_values` (B,F,3,H,W), `video_mask` (B,F);
            with `return_timestamps` also `timestamps` (B,F) in seconds, which a model does not accept.
        paragraphs: per caption all captions of its video joined (training): its k lowest TF-IDF words get q = 0.
        window: `start` and `end` in seconds, handed to the frame sampler.
        """
        if text is None and videos is None:
            raise ValueError("nothing to process: give text=…, videos=… or both")
        batch = {}
        if text is not None:
            batch |= self._texts(text, paragraphs)
        if videos is not None:
            frames = self.feature_extractor(list(videos) if isinstance(videos, (list, tuple)) else [videos], **window)
            names = ("pixel_values", "video_mask", "timestamps")[: 3 if return_timestamps else 2]
            batch |= {name: frames[name] for name in names}
        return BatchFeature(batch, tensor_type=return_tensors)

    def _texts(self, text, paragraphs) -> dict[str, list]:
        texts = checked_texts([text] if isinstance(text, str) else text)
        if not texts:
            raise ValueError("text is an empty list: give at least one caption")
        encoded = self._encode(texts)
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

    def _encode(self, texts: list[str]):
        return self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.max_words,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            split_special_tokens=True,  # a caption that spells "<|endoftext|>" must not end the sentence there
        )

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

        `max_words`, `word_weighting`, `content_weight` and `irrelevant_words` override the saved ones. The last two
        are the model's (`DMAEConfig`): beside a model they are read from its config.json.
        """
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
            AutoTokenizer.from_pretrained(source, config=PreTrainedConfig(), **hub),
            FrameSampler.from_dict(settings["feature_extractor"]),
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
        """A processor for a CLIP checkpoint: its tokenizer, its image size, mean and std, and the bundled tagger.

        `max_words` to `irrelevant_words` are `config.processor_words()` of the model it is for (the last two make the
        word weigher, if none is given); `sampler` goes to `FrameSampler` (`num_frames`, `sampling`, …), `hub` to the
        Hub (`revision`, `token`, …).
        """
        source, hub = str(pretrained_model_name_or_path), hub or {}
        images = clip_image_settings(source, hub)
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


def clip_image_settings(source: str, hub: dict) -> dict:
    """Size, mean and std of a CLIP checkpoint's images, from whichever JSON file it has; no image library needed."""

    def read(name):
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

    images = read("preprocessor_config.json") or read("processor_config.json").get("image_processor", {})
    vision = read("config.json").get("vision_config", {})
    side = images.get("crop_size") or images.get("size") or vision.get("image_size")
    if isinstance(side, dict):
        side = side.get("height") or side.get("shortest_edge")
    settings = {"size": side, "image_mean": images.get("image_mean"), "image_std": images.get("image_std")}
    return {name: value for name, value in settings.items() if value is not None}


DMAEProcessor.register_for_auto_class()

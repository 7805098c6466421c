"""What a run needs before its first step: splits, processor, model; each from its section of the configuration."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from transformers import PretrainedConfig

from dmae.data.clips import LoadedSplit
from dmae.data.mixing import mixed
from dmae.data.registry import load_dataset
from dmae.inference.loading import damage_named
from dmae.inference.presets import check_name
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.pictures_dmae import VIDEO_MODELS
from dmae.processing.processing_dmae import DMAEProcessor
from dmae.processing.sources_dmae import file_holding
from dmae.processing.words_dmae import WordWeigher
from dmae.training.adapters import add_adapters
from dmae.training.config import RunConfig
from dmae.training.sampler import Schedule
from dmae.training.tokenizer import train_bpe_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Training rows, and the validation rows that select the best model (None: the last one is taken)."""

    train: LoadedSplit
    validation: LoadedSplit | None


def load_splits(config: RunConfig) -> Splits:
    """Read the splits that `data:` names. Refuses a validation split that shares videos with training."""
    data = config.data
    source = {"annotations": data.annotations, "videos": data.videos, "holdout": data.holdout}
    train = load_dataset(data.name, split=data.train_split, **source)
    others = [load_dataset(item.name, item.annotations, item.videos, item.split) for item in data.mix]
    if others:
        train = mixed(train, others)
    if data.validation_split is None:
        return Splits(train, None)
    validation = load_dataset(data.name, split=data.validation_split, **source)
    shared = set(train.dataset["video_id"]) & set(validation.dataset["video_id"])
    files = set(train.dataset["video"]) & set(validation.dataset["video"]) if others else set()
    if shared or files:
        raise ValueError(
            f"{len(shared or files)} videos, e.g. {min(shared or files)!r}, are in both training and "
            f"{data.validation_split}: a model selected on its own training videos says nothing: separate the splits "
            "or set data.holdout"
        )
    return Splits(train, validation)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Precision, accumulation and trackers from the configuration; devices and processes from `accelerate launch`."""
    options = config.training
    output = Path(options.output_dir)
    unknown = set(options.report_to) - {str(tracker) for tracker in get_available_trackers()}
    if unknown:
        raise ValueError(f"training.report_to: {', '.join(sorted(unknown))} is unknown to Accelerate or not installed")
    refuse_other_parallelism()
    AcceleratorState._reset_state()  # a process that trains twice may change its precision
    accelerator = Accelerator(
        # None: whatever `accelerate launch --mixed_precision` or its config file says
        mixed_precision="bf16" if options.bf16 else "fp16" if options.fp16 else None,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=[*options.report_to] or None,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "tensorboard")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )
    refuse_sharded(accelerator.distributed_type)
    return accelerator


def refuse_sharded(kind: DistributedType) -> None:
    """ValueError for what keeps a model's parameters in pieces: models are saved whole, and the loss is DDP's."""
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{kind.value} keeps parameters in pieces, which is not supported: start with plain data parallelism "
            "(accelerate launch --multi_gpu, or torchrun); training.gradient_cache_chunk makes large batches fit"
        )


def refuse_other_parallelism() -> None:
    """ValueError where the launcher asks, by Accelerate's variables, for tensor, context or sharded parallelism."""
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return
    for name in ("TP", "CP", "SP", "DP_SHARD"):
        variable = f"PARALLELISM_CONFIG_{name}_SIZE"
        if os.environ.get(variable, "1") != "1":
            raise ValueError(
                f"{variable}={os.environ[variable]}: only plain data parallelism is supported, every process with the "
                "whole model; leave that size at 1 (`accelerate launch --multi_gpu`, or torchrun)"
            )


def global_batch_size(config: RunConfig, world: int) -> int:
    """Pairs per micro-batch over all processes: how many each pair is told apart from."""
    options = config.training
    size = options.train_batch_size or world * (options.per_device_train_batch_size or 0)
    if size < max(2, world):
        raise ValueError(
            f"a global batch of {size} on {world} processes: a contrastive loss needs 2 pairs, every process 1"
        )
    return size


def make_schedule(config: RunConfig, rows: list[dict], world: int) -> Schedule:
    """Which pairs each step sees, from seed, captions, batch size and world size.

    Raises ValueError for a batch that never comes: one larger than the number of videos.
    """
    size = global_batch_size(config, world)
    if size > len(rows):
        raise ValueError(
            f"a batch of {size} pairs needs as many videos, as it holds none twice, and there are {len(rows)}; "
            f"set training.train_batch_size to {len(rows)} or less"
        )
    sets, at_once = [config.data, *config.data.mix], config.data.shards_at_once
    return Schedule(
        [len(row["captions"]) for row in rows],
        weights=[sets[row.get("set", 0)].weight for row in rows] if config.data.mix else None,
        shards=_shards(rows) if at_once else None,
        shards_at_once=at_once,
        batch_size=size,
        seed=config.training.seed,
        captions=config.data.captions_per_epoch,
        drop_last=config.training.dataloader_drop_last,
        accumulation=config.training.gradient_accumulation_steps,
        world=world,
    )


def _shards(rows: list[dict]) -> list[int]:
    """Which tar each row lies in, by number."""
    held = [file_holding(row["video"]) for row in rows]
    alone = next((row["video"] for row, file in zip(rows, held) if row["video"] == file), None)
    if alone is not None:
        raise ValueError(f"data.shards_at_once: {alone} lies in no tar; the word is for webdataset corpora")
    numbers = {file: number for number, file in enumerate(dict.fromkeys(held))}
    return [numbers[file] for file in held]


def build_processor(config: RunConfig, splits: Splits) -> DMAEProcessor:
    """The processor of the checkpoint the model starts from, or one made for from-scratch towers; word table fitted."""
    model, options = config.model, config.processor
    words = {name: model[name] for name in ("max_words", "word_weighting") if name in model}
    frames = {"sampling": options.sampling, "num_frames": model.get("max_frames", _default("max_frames"))}
    for name in filter(None, (model.get("from_pretrained"), model.get("from_clip"))):
        check_name(name)  # a mistyped folder would be looked for on the Hub
    if not model.get("textual_attention", True):
        words["word_weighting"] = "uniform"  # the model would ignore the weights: no tagging, no spaCy
    if model.get("from_pretrained"):
        return DMAEProcessor.from_pretrained(model["from_pretrained"], **words, **_weigher_words(model))
    weigher = None if words.get("word_weighting") == "uniform" else _word_weigher(config, splits)
    if model.get("from_clip"):
        if PretrainedConfig.get_config_dict(model["from_clip"])[0].get("model_type") in VIDEO_MODELS:
            frames = {}  # how many frames a window has, and which, is the tower's own
        return DMAEProcessor.from_clip(model["from_clip"], word_weigher=weigher, **words, **frames)
    if "vision_config" not in model or options.vocab_size is None:
        raise ValueError(
            "model: set from_clip (a CLIP checkpoint), from_pretrained (a DMAE folder), or text_config and "
            "vision_config with processor.vocab_size for a model from random weights"
        )
    captions = (caption for captions in splits.train.dataset["captions"] for caption in captions)
    words.setdefault("max_words", _default("max_words"))
    tokenizer = train_bpe_tokenizer(captions, options.vocab_size, words["max_words"])
    sampler = FrameSampler(size=model["vision_config"].get("image_size", 224), **frames)
    return DMAEProcessor(tokenizer, sampler, weigher, **words)


def _weigher_words(model: dict) -> dict:
    return {name: model[name] for name in ("content_weight", "irrelevant_words") if name in model}


def _word_weigher(config: RunConfig, splits: Splits) -> WordWeigher:
    if config.processor.words is not None:
        return _prepared_weigher(Path(config.processor.words), _weigher_words(config.model), len(splits.train.dataset))
    weigher = WordWeigher(tagger=config.processor.tagger, **_weigher_words(config.model))
    return weigher.fit(splits.train.paragraphs()) if config.processor.fit_words else weigher


def _prepared_weigher(folder: Path, settings: dict, videos: int) -> WordWeigher:
    """Tagger and word table as `dmae prepare` left them in `folder`, or in the folder `words` there."""
    folder = folder / "words" if (folder / "words").is_dir() else folder
    try:
        weigher = WordWeigher.from_files(lambda name: _existing(folder / name), settings)
    except FileNotFoundError:
        raise FileNotFoundError(f"processor.words: {folder} holds no word table; `dmae prepare` makes one") from None
    if not weigher.paragraphs:
        raise ValueError(f"processor.words: {folder} has a tagger and no word table; run `dmae prepare` with --words")
    if weigher.paragraphs != videos:
        logger.warning("%s: words were counted over %d videos, training has %d", folder, weigher.paragraphs, videos)
    return weigher


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def build_model(config: RunConfig, processor: DMAEProcessor) -> DMAEForTextVideoRetrieval:
    """The model that `model:` describes, in training mode, with frozen parameters still trainable."""
    words = dict(config.model)
    clip, pretrained = words.pop("from_clip", None), words.pop("from_pretrained", None)
    attention = {"attn_implementation": words.pop("attn_implementation", None) or "sdpa"}
    with damage_named(clip or pretrained):
        if clip:
            model = DMAEForTextVideoRetrieval.from_clip(clip, **words)
        elif pretrained:
            model = DMAEForTextVideoRetrieval.from_pretrained(pretrained, **attention, **words)
        else:
            model = DMAEForTextVideoRetrieval(DMAEConfig(**_with_vocabulary(words, processor)))
    model.set_attn_implementation(attention["attn_implementation"])
    if config.training.lora:
        add_adapters(model, **config.training.lora.model_dump())
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.training.torch_compile:
        for tower in (model.text_model, model.vision_model, model.temporal):
            tower.compile()  # in place: the names of the weights stay
    return model.train()


def _with_vocabulary(words: dict, processor: DMAEProcessor) -> dict:
    """The text tower's vocabulary is its tokenizer's; positions default to the longest caption."""
    tokenizer = processor.tokenizer
    vocabulary = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": processor.max_words,
    }
    return {**words, "text_config": {**vocabulary, **words.get("text_config", {})}}


def _default(name: str):
    return getattr(DMAEConfig(), name)

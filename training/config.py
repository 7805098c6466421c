"""A run's configuration, checked: sections model, processor, data, training; every unknown word is refused."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from dmae.data.registry import DatasetLocation
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.training.recipe_file import SECTIONS, check_words, find_recipe, nearest, read_recipe, recipes_folder

__all__ = ["RunConfig", "config_from_dict", "dataset_location", "load_config", "recipes_folder"]

# Where the weights come from; all other words of `model:` are DMAEConfig's.
MODEL_SOURCES = ("from_clip", "from_pretrained", "attn_implementation")
MODEL_WORDS = {*MODEL_SOURCES, *inspect.signature(DMAEConfig.__init__).parameters} - {"self", "kwargs"}
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal[
    "text_to_video_rsum", "text_to_video_R@1", "text_to_video_R@5", "text_to_video_R@10",
    "video_to_text_rsum", "video_to_text_R@1", "video_to_text_R@5", "video_to_text_R@10",
]  # fmt: skip


class Section(BaseModel):
    """Words with a type and a range each; a value of another type is refused, not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ProcessorSection(Section):
    """What turns a clip and a caption into tensors; lengths and image size are the model's."""

    sampling: str = "fps"
    vocab_size: PositiveInt | None = None  # with from-scratch towers: train a BPE tokenizer on the captions
    words: str | None = None  # a folder with a word table, as `dmae prepare` makes it; None: made from the captions
    fit_words: bool = True  # fit the TF-IDF table on the training captions; False: q = 1 for every word
    tagger: str | None = None  # a spaCy pipeline instead of the bundled tagger


class MixedSection(Section):
    """A further training set beside the first; it adds nothing to validation."""

    name: str
    annotations: str | None = None
    videos: str | None = None
    split: str = "train"
    weight: PositiveFloat = 1.0  # how often each of its pairs comes in an epoch; 0.5: in every second


class DataSection(Section):
    """Which videos and captions, and how they are read."""

    name: str = "videofolder"
    annotations: str | None = None
    videos: str | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"  # selects the best model; never the test split
    holdout: Annotated[int, Field(ge=0)] = 0  # so many training videos validate, where no split for it is published
    mix: list[MixedSection] = []
    weight: PositiveFloat = 1.0  # of this set, where there are others
    shards_at_once: PositiveInt | None = None  # webdataset: pairs are mixed within so many tars; None: within all
    captions_per_epoch: Literal["all", "one"] = "all"  # every caption once, or every video once with a drawn caption
    cache_frames: str = "none"  # none | memory | a folder made by `dmae prepare`
    max_skipped_share: Share = 0.05  # stop when more than this share of the listed videos is missing or undecodable
    num_workers: Annotated[int, Field(ge=0)] = 2


class LoraSection(Section):
    """Low-rank adapters (peft) in the CLIP towers; what CLIP brought stays frozen, what is new is trained whole."""

    r: PositiveInt
    target: list[str] = ["q_proj", "v_proj"]  # modules by the end of their names
    alpha: PositiveFloat | None = None  # None: 2 r
    dropout: Decay = 0.0


class TrainingSection(Section):
    """The Trainer's spellings, where the Trainer has the option."""

    output_dir: str = "outputs/run"
    overwrite_output_dir: bool = False
    seed: int = 42
    num_train_epochs: PositiveInt = 5
    max_steps: int = -1
    train_batch_size: PositiveInt | None = None  # global: divided by the number of processes
    per_device_train_batch_size: PositiveInt | None = None  # instead of train_batch_size
    per_device_eval_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    gradient_cache_chunk: PositiveInt | None = None
    dataloader_drop_last: bool = False
    learning_rate: PositiveFloat = 1e-4
    clip_learning_rate: Annotated[float, Field(ge=0)] | None = 1e-7  # None: the same as learning_rate
    freeze: list[str] = []  # prefixes of parameter names, e.g. text_model.embeddings
    lora: LoraSection | None = None
    ema: Decay | None = None  # validate and save a running mean of the weights with this decay per step
    optim: Literal["adamw", "adam"] = "adamw"  # adamw: decoupled decay; adam: decay added to the gradient
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.98
    adam_epsilon: PositiveFloat = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    max_grad_norm: PositiveFloat = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_ratio: Share = 0.1
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt | None = None  # besides the end of each epoch
    save_total_limit: PositiveInt = 2
    metric_for_best_model: Metric = "text_to_video_rsum"
    report_to: list[str] = ["tensorboard"]
    resume_from_checkpoint: str | None = None  # a checkpoint folder, or "last"


class RunConfig(Section):
    """Everything a run depends on. `model` holds DMAEConfig's words, and from_clip or from_pretrained if any."""

    model: dict[str, Any] = {}
    processor: ProcessorSection = ProcessorSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    variant: str | None = None
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    @model_validator(mode="after")
    def _together(self) -> "RunConfig":
        training = self.training
        if (training.train_batch_size is None) == (training.per_device_train_batch_size is None):
            raise ValueError("set one of training.train_batch_size (global) and training.per_device_train_batch_size")
        if training.bf16 and training.fp16:
            raise ValueError("training.bf16 and training.fp16 are both true; choose one")
        if training.gradient_cache_chunk and training.gradient_accumulation_steps > 1:
            raise ValueError(
                "gradient_cache_chunk already splits the batch in memory-sized pieces with all its negatives; "
                "set gradient_accumulation_steps to 1"
            )
        if self.processor.words is not None and self.model.get("from_pretrained") is not None:
            raise ValueError("processor.words: model.from_pretrained brings its own word table; leave it out")
        if self.model.get("from_clip") is not None and self.model.get("from_pretrained") is not None:
            raise ValueError("model.from_clip and model.from_pretrained are both set; choose one")
        return self


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe, by its path or its name among those that come along, with `section.key=value` over it."""
    path = find_recipe(path)
    return config_from_dict(read_recipe(path, overrides), source=str(path))


def config_from_dict(raw: dict[str, Any], source: str | None = None) -> RunConfig:
    """Check every word and value of a resolved configuration. ValueError names each wrong one, and what is right."""
    where = source or "config"
    words: dict[str, Any] = {key: {} if value is None and key in SECTIONS else value for key, value in raw.items()}
    words = {key: value for key, value in words.items() if key not in ("base", "variants")} | {"source": source}
    if isinstance(words.get("model"), dict):
        check_words(words["model"], MODEL_WORDS, f"{where}: model")
    try:
        return RunConfig.model_validate(words)
    except ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(map(_said, error.errors()))}") from None


def _said(problem: ErrorDetails) -> str:
    """One of pydantic's findings: the word, what was given, what is right."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        owner = RunConfig if len(problem["loc"]) == 1 else _section_of(problem["loc"])
        return f"{name}: unknown key {problem['loc'][-1]!r}{nearest(str(problem['loc'][-1]), list(owner.model_fields))}"
    if problem["type"] == "value_error":
        return str(problem.get("ctx", {})["error"])
    if problem["type"] == "model_type":
        return f"{name} is {problem['input']!r}, expected a mapping of names to values"
    return f"{name} is {problem['input']!r}: {problem['msg'].replace('Input should be', 'expected')}"


def _section_of(place: tuple) -> type[BaseModel]:
    if "lora" in place:
        return LoraSection
    return {"processor": ProcessorSection, "data": DataSection, "training": TrainingSection}[place[0]]


def dataset_location(dataset: str, annotations: str | None = None, videos: str | None = None) -> DatasetLocation:
    """Where a dataset is, given as a registry name, one's own folder, or a recipe with a `data:` section."""
    if Path(dataset).suffix not in (".yaml", ".yml"):
        return DatasetLocation(dataset, annotations, videos)
    data = load_config(dataset).data
    return DatasetLocation(data.name, annotations or data.annotations, videos or data.videos, data.holdout)

"""A run's configuration: one YAML file with sections model, processor, data, training; every unknown word is refused.

A file may inherit from another (`base: other.yaml`, relative to itself) and offer named `variants:`, of which
`variant:` picks one. Order of precedence, weakest first: base, file, variant, `--set section.key=value`.
"""

import dataclasses
import difflib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmae.data.registry import DatasetLocation

SECTIONS = ("model", "processor", "data", "training")
# Top-level words of a recipe besides its sections.
FILE_WORDS = ("base", "variant", "variants", *SECTIONS)
# Where the weights come from; all other words of `model:` are DMAEConfig's.
MODEL_SOURCES = ("from_clip", "from_pretrained", "attn_implementation")


@dataclass
class ProcessorSection:
    """What turns a clip and a caption into tensors; lengths and image size are the model's."""

    sampling: str = "fps"
    vocab_size: int | None = None  # with from-scratch towers: train a BPE tokenizer of this size on the captions
    fit_words: bool = True  # fit the TF-IDF table on the training captions; False: q = 1 for every word
    tagger: str | None = None  # a spaCy pipeline instead of the bundled tagger


@dataclass
class DataSection:
    """Which videos and captions, and how they are read."""

    name: str = "videofolder"
    annotations: str | None = None
    videos: str | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"  # selects the best model; never the test split
    holdout: int = 0  # where no validation split is published: this many training videos become it
    captions_per_epoch: str = "all"  # all: every caption once per epoch; one: every video once, one drawn caption
    cache_frames: str = "none"  # none | memory | a folder made by `dmae prepare`
    max_skipped_share: float = 0.05  # stop when more than this share of the videos seen cannot be decoded
    num_workers: int = 2


@dataclass
class TrainingSection:
    """The Trainer's spellings, where the Trainer has the option."""

    output_dir: str = "outputs/run"
    overwrite_output_dir: bool = False
    seed: int = 42
    num_train_epochs: int = 5
    max_steps: int = -1
    train_batch_size: int | None = None  # global: divided by the number of processes
    per_device_train_batch_size: int | None = None  # instead of train_batch_size
    per_device_eval_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    gradient_cache_chunk: int | None = None
    dataloader_drop_last: bool = False
    learning_rate: float = 1e-4
    clip_learning_rate: float | None = 1e-7  # None: the same as learning_rate
    freeze: list[str] = field(default_factory=list)  # prefixes of parameter names, e.g. text_model.embeddings
    optim: str = "adamw"  # adamw: decoupled decay; adam: decay added to the gradient
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.2
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    logging_steps: int = 10
    save_steps: int | None = None  # besides the end of each epoch
    save_total_limit: int = 2
    metric_for_best_model: str = "text_to_video_rsum"
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    resume_from_checkpoint: str | None = None  # a checkpoint folder, or "last"


@dataclass
class RunConfig:
    """Everything a run depends on. `model` holds DMAEConfig's words, and from_clip or from_pretrained if any."""

    model: dict[str, Any] = field(default_factory=dict)
    processor: ProcessorSection = field(default_factory=ProcessorSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    variant: str | None = None
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe and apply `section.key=value` overrides (values are YAML). ValueError names what is wrong."""
    path = Path(path)
    raw = _read_with_base(path, seen=())
    changes = [_parse_override(text) for text in overrides]
    for keys, value in changes:
        if keys == ["variant"]:
            raw["variant"] = value
    raw = _apply_variant(raw, path)
    for keys, value in changes:
        if keys != ["variant"]:
            _merge(raw, _nested(keys, value))
    return config_from_dict(raw, source=str(path))


def config_from_dict(raw: dict[str, Any], source: str | None = None) -> RunConfig:
    """Check every word and value of a resolved configuration and build the RunConfig."""
    where = source or "config"
    raw = {key: value for key, value in raw.items() if key not in ("base", "variants", "source")}
    _check_words(raw, (*SECTIONS, "variant"), where)
    for section in SECTIONS:
        if not isinstance(raw.get(section) or {}, dict):
            raise ValueError(f"{where}: `{section}` is {raw[section]!r}, expected a mapping of names to values")
    model = dict(raw.get("model") or {})
    _check_words(model, (*MODEL_SOURCES, *_model_words()), f"{where}: model")
    built = {
        name: _build_section(cls, raw.get(name) or {}, f"{where}: {name}")
        for name, cls in [("processor", ProcessorSection), ("data", DataSection), ("training", TrainingSection)]
    }
    config = RunConfig(model=model, variant=raw.get("variant"), source=source, **built)
    _check_values(config, where)
    return config


def _read_with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; the ones that come along are in {recipes_folder()}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a recipe is a mapping with the words {', '.join(FILE_WORDS)}")
    _check_words(raw, FILE_WORDS, str(path))
    if raw.get("base") is None:
        return raw
    base = (path.parent / raw["base"]).resolve()
    if base in seen:
        raise ValueError(f"{path}: `base` goes round in a circle through {base}")
    return _merge(_read_with_base(base, (*seen, base)), raw)


def dataset_location(dataset: str, annotations: str | None = None, videos: str | None = None) -> DatasetLocation:
    """Where a dataset is, given as a registry name, one's own folder, or a recipe with a `data:` section."""
    if Path(dataset).suffix not in (".yaml", ".yml"):
        return DatasetLocation(dataset, annotations, videos)
    data = load_config(dataset).data
    return DatasetLocation(data.name, annotations or data.annotations, videos or data.videos, data.holdout)


def recipes_folder() -> Path:
    return Path(__file__).resolve().parent / "recipes"


def _apply_variant(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Lay the chosen variant's words over the file's."""
    chosen, offered = raw.get("variant"), raw.pop("variants", None) or {}
    if chosen is None:
        return raw
    if chosen not in offered:
        raise ValueError(f"{path}: no variant {chosen!r}{_nearest(str(chosen), list(offered))}")
    _check_words(offered[chosen], SECTIONS, f"{path}: variant {chosen}")
    return _merge(raw, offered[chosen])


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Lay `high` over `low` in place, mappings word by word; everything else replaces."""
    for key, value in high.items():
        if isinstance(value, dict) and isinstance(low.get(key), dict):
            _merge(low[key], value)
        else:
            low[key] = value
    return low


def _parse_override(text: str) -> tuple[list[str], Any]:
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or (keys != ["variant"] and (len(keys) < 2 or keys[0] not in SECTIONS)):
        raise ValueError(
            f"--set {text}: write section.key=value, e.g. --set training.num_train_epochs=1; "
            f"sections: {', '.join(SECTIONS)}, and variant=NAME"
        )
    return keys, yaml.load(value, Loader=_Loader)


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _check_words(given: dict[str, Any], valid: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in valid:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(str(key), list(valid))}")


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"


def _model_words() -> tuple[str, ...]:
    from dmae.modeling_dmae.configuration_dmae import DMAEConfig

    return tuple(name for name in inspect.signature(DMAEConfig.__init__).parameters if name not in ("self", "kwargs"))


def _build_section(cls: type, given: dict[str, Any], where: str):
    fields = {item.name: item for item in dataclasses.fields(cls)}
    _check_words(given, tuple(fields), where)
    return cls(**{key: _typed(value, str(fields[key].type), f"{where}.{key}") for key, value in given.items()})


# What YAML may give for an annotation: whole numbers are fine for fractions, true and false never count as numbers.
_ACCEPTS = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list[str]": (list,),
    "None": (type(None),),
}


def _typed(value: Any, annotation: str, where: str) -> Any:
    annotation = annotation.replace("<class '", "").replace("'>", "")
    options = [option.strip() for option in annotation.split("|")]
    allowed = tuple(kind for option in options for kind in _ACCEPTS[option])
    if not isinstance(value, allowed) or (isinstance(value, bool) and "bool" not in options):
        raise ValueError(f"{where}: {value!r} is {type(value).__name__}, expected {annotation}")
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: {value!r}, expected a list of words")
    return float(value) if "float" in options and isinstance(value, int) else value


_CHOICES = {
    "data.captions_per_epoch": ("all", "one"),
    "training.optim": ("adamw", "adam"),
    "training.metric_for_best_model": tuple(
        f"{side}_{name}" for side in ("text_to_video", "video_to_text") for name in ("rsum", "R@1", "R@5", "R@10")
    ),
}
_POSITIVE = [
    "num_train_epochs",
    "train_batch_size",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_cache_chunk",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "learning_rate",
    "max_grad_norm",
]


def _check_values(config: RunConfig, where: str) -> None:
    training = config.training
    for name, valid in _CHOICES.items():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if value not in valid:
            raise ValueError(f"{where}: {name} is {value!r}; valid: {', '.join(valid)}")
    for name in _POSITIVE:
        value = getattr(training, name)
        if value is not None and not value > 0:
            raise ValueError(f"{where}: training.{name} is {value}, expected more than 0")
    if (training.train_batch_size is None) == (training.per_device_train_batch_size is None):
        raise ValueError(
            f"{where}: set one of training.train_batch_size (global) and training.per_device_train_batch_size"
        )
    if training.bf16 and training.fp16:
        raise ValueError(f"{where}: training.bf16 and training.fp16 are both true; choose one")
    if training.gradient_cache_chunk and training.gradient_accumulation_steps > 1:
        raise ValueError(
            f"{where}: gradient_cache_chunk already splits the batch in memory-sized pieces with all its negatives; "
            "set gradient_accumulation_steps to 1"
        )
    if not 0 <= config.data.max_skipped_share <= 1:
        raise ValueError(f"{where}: data.max_skipped_share is {config.data.max_skipped_share}, expected 0 to 1")
    if sum(config.model.get(key) is not None for key in ("from_clip", "from_pretrained")) > 1:
        raise ValueError(f"{where}: model.from_clip and model.from_pretrained are both set; choose one")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a word; recipes mean the number. A key given twice is an error, not the last one."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        double = {key for key in keys if keys.count(key) > 1}
        if double:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {sorted(double)}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9]+$"),
    list("-+.0123456789"),
)

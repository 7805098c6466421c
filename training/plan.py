"""`--dry-run`: what a recipe would do, before anything is trained."""

import math

from dmae.training.build import build_model, build_processor, load_splits, make_accelerator, make_schedule
from dmae.training.config import RunConfig
from dmae.training.memory import Memory, estimate
from dmae.training.optimizer import freeze, learning_rate_of
from dmae.training.watch import SkipLimit

GIB = 2**30
# The paper's settings (its section 4.1) by word; the short captions of MSR-VTT and MSVD, the paragraphs of the others.
PAPER = {
    "model.loss": "neg_nce",
    "model.positive_weight": 1.0,
    "model.negative_weight": 0.5,
    "model.partial_margin": 0.6,
    "model.mask_ratio": 0.6,
    "training.learning_rate": 1e-4,
    "training.clip_learning_rate": 1e-7,
    "training.lr_scheduler_type": "cosine",
    "training.lora": None,
    "training.ema": None,
    "training.freeze": [],
    "data.holdout": 0,
}
SHORT = {"model.max_words": 32, "model.max_frames": 12, "model.temporal_input": "patch"}
LONG = {"model.max_words": 64, "model.max_frames": 64, "model.temporal_input": "frame"}
PAPER_SIZES = {
    "msrvtt-9k": SHORT | {"global batch": 128},
    "msvd": SHORT | {"global batch": 128},
    "didemo": LONG | {"global batch": 64},
    "activitynet": LONG | {"global batch": 64},
}


def describe(config: RunConfig) -> str:
    """Splits, model, steps, memory and negatives of a run, as text. Reads annotations and weights, decodes nothing."""
    accelerator = make_accelerator(config)
    splits = load_splits(config)
    processor = build_processor(config, splits)
    eager = config.training.model_copy(update={"torch_compile": False})
    model = build_model(config.model_copy(update={"training": eager}), processor)
    freeze(model, config.training.freeze)
    world = accelerator.num_processes
    schedule = make_schedule(config, splits.train.dataset.to_list(), world)
    steps = schedule.total_steps(config.training.num_train_epochs, config.training.max_steps)
    lines = [f"recipe      {config.source}" + (f", variant {config.variant}" if config.variant else "")]
    for name, split in vars(splits).items():
        lines.append(f"{name:<12}" + (_describe_split(split.report) if split else "none: the last model is taken"))
        lines += _describe_lost(split, config.data.max_skipped_share) if split else []
    lines += _describe_parameters(model, config)
    accumulation = config.training.gradient_accumulation_steps
    lines += [
        f"batches     {schedule.batch_size} pairs over {world} processes",
        f"negatives   {schedule.batch_size - 1} for each pair in each direction"
        + (f"; the {accumulation} batches of a step do not add to them" if accumulation > 1 else ""),
        f"steps       {steps} over {config.training.num_train_epochs} epochs of {schedule.pairs_per_epoch} pairs",
        f"output      {config.training.output_dir}",
    ]
    pairs = math.ceil(schedule.batch_size / world)
    memory = estimate(model, processor.feature_extractor, accelerator, config.training, pairs, world)
    lines.append(_describe_memory(memory, config, pairs))
    return "\n".join([*lines, *differences_from_paper(config, model.config, schedule.batch_size)])


def _describe_lost(split, share: float) -> list[str]:
    """The first missing videos by name, and whether the run would be refused for them."""
    lines = [f"  missing   {item['video_id']}: {item['reason']}" for item in split.missing[:3]]
    if len(split.missing) > 3:
        lines.append(f"  missing   {len(split.missing) - 3} more; `dmae prepare` names them all")
    try:
        SkipLimit.of(split, share).check({})
    except ValueError as error:
        lines.append(f"  REFUSED   {error}")
    return lines


def differences_from_paper(config: RunConfig, model_config, batch_size: int) -> list[str]:
    """One line per setting that is another than the paper's, on the datasets for which it gives them."""
    if config.data.name not in PAPER_SIZES:
        return [f"paper       has no results on {config.data.name}; nothing to differ from"]
    given = {"global batch": batch_size, **{f"model.{name}": value for name, value in model_config.to_dict().items()}}
    for section in ("data", "training"):
        given |= {f"{section}.{name}": value for name, value in config.to_dict()[section].items()}
    wanted = PAPER | PAPER_SIZES[config.data.name]
    different = [
        f"differs     {name} {given[name]} (paper: {value})" for name, value in wanted.items() if given[name] != value
    ]
    return different or ["differs     from the paper in nothing that it states"]


def _describe_split(report: dict) -> str:
    published = report["published_videos"]
    expected = f" (published: {' or '.join(map(str, published))})" if published else ""
    missing = f", {report['missing_videos']} missing" if report["missing_videos"] else ""
    return f"{report['videos']} videos, {report['captions']} captions{missing}{expected}"


def _describe_parameters(model, config: RunConfig) -> list[str]:
    groups: dict[tuple[str, float], int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = learning_rate_of(name, config.training)
            groups[key] = groups.get(key, 0) + parameter.numel()
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    parts = [f"{count / 1e6:.2f} M at {name} {rate:g}" for (name, rate), count in groups.items()]
    return ["parameters  " + ", ".join(parts + ([f"{frozen / 1e6:.2f} M frozen"] if frozen else []))]


def _describe_memory(memory: Memory, config: RunConfig, pairs: int) -> str:
    at_once = min(pairs, config.training.gradient_cache_chunk or pairs)
    parts = {"weights": memory.weights, "moments": memory.moments, "gradients": memory.gradients}
    said = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return (
        f"memory      about {memory.peak / GIB:.2f} GiB per process at its peak, beside the program itself: {said}, "
        f"and at the highest {memory.step / GIB:.2f} for inputs, activations of {at_once} pairs and gradients"
        + ("; torch.compile may change that" if config.training.torch_compile else "")
    )

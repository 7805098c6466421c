"""A model and its processor by name: a DMAE folder or Hub id as it is, any CLIP checkpoint zero-shot."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from dmae.inference.adapters import adapter_settings, load_adapter
from dmae.inference.presets import DEFAULT as DEFAULT_MODEL
from dmae.inference.presets import FAMILIES, check_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model_and_processor(
    name_or_path: str | Path = DEFAULT_MODEL, device="auto", dtype="auto", revision=None, **config_overrides
):
    """-> (DMAEForTextVideoRetrieval in eval mode, DMAEProcessor).

    name_or_path: folder or Hub id. `model_type` "dmae" loads both as saved; a dual encoder is scored zero-shot with
    interaction="mean", which is exactly CLIP (or its like) on mean-pooled frames. device "auto": cuda if there is one.
    dtype "auto": bfloat16 on a GPU and on a CPU that computes it natively, else float32; scores are float32 either way.

    Raises OSError when it can neither be found nor reached, ValueError for another kind of model and damaged weights.
    """
    name = str(name_or_path)
    device, dtype = resolve_device(device), dtype_of(dtype, resolve_device(device))
    values = _config_values(name, revision)
    kind = values.get("model_type")
    if kind != "dmae" and kind not in FAMILIES:
        families = ", ".join(FAMILIES)
        raise ValueError(
            f"{name} is a {kind!r} model; give a DMAE model or a dual encoder ({families}): see `dmae models`"
        )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # loading takes a second; the bar would stay on the screen
    try:
        with damage_named(name):
            model, processor = (_load_dmae if kind == "dmae" else _load_clip)(name, revision, config_overrides)
    except OSError as error:
        raise OSError(f"{_unreachable(name)} ({error})") from error
    model.config.name_or_path, model.config._commit_hash = name, values.get("_commit_hash") or revision
    model.eval().to(device=device, dtype=dtype)  # pyright: ignore[reportCallIssue]  (transformers' wrapper hides `self`)
    return model, processor


@contextmanager
def damage_named(model: str | Path) -> Iterator[None]:
    """Weights that cannot be read become a ValueError that names the model: safetensors says what, and not where."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{model}: its weights are damaged ({error}); fetch or save the model again") from error


def _config_values(name: str, revision: str | None) -> dict:
    from transformers import PretrainedConfig

    check_name(name)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries would bury the one line that says what to do
    try:
        return PretrainedConfig.get_config_dict(name, revision=revision)[0]
    except OSError as error:
        raise OSError(_unreachable(name)) from error
    finally:
        hub.setLevel(level)


def _load_dmae(name, revision, overrides):
    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

    if adapter_settings(name, revision):
        model = load_adapter(name, revision, dtype=torch.float32)
    else:
        model = DMAEForTextVideoRetrieval.from_pretrained(name, revision=revision, dtype=torch.float32, **overrides)
    return model, _saved_processor(name, revision)


def _load_clip(name, revision, overrides):
    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

    hub = {} if revision is None else {"revision": revision}
    # without training the temporal encoder adds nothing and TPM is not used: leaving them out makes two loads equal
    zero_shot = {"interaction": "mean", "temporal_layers": 0, "partial_order": False}
    model = DMAEForTextVideoRetrieval.from_clip(name, **{**zero_shot, **overrides}, **hub)
    return model, _clip_processor(name, revision, model.config)


def load_processor(name: str, revision: str | None, config, **words):
    """The processor that `load_model_and_processor` gives beside a model of this configuration; `words` override how
    words are weighed."""
    if _config_values(name, revision).get("model_type") == "dmae":
        return _saved_processor(name, revision, **words)
    return _clip_processor(name, revision, config, **words)


def _saved_processor(name, revision, **words):
    from dmae.processing.processing_dmae import DMAEProcessor

    return DMAEProcessor.from_pretrained(name, revision=revision, **words)


def _clip_processor(name, revision, config, **words):
    from dmae.processing.processing_dmae import DMAEProcessor

    hub, words = {} if revision is None else {"revision": revision}, {**config.processor_words(), **words}
    return DMAEProcessor.from_clip(name, hub=hub, num_frames=config.max_frames, **words)


def _unreachable(name: str) -> str:
    return (
        f"model {name!r} is neither a folder here nor a model that could be read from the Hub or its cache; "
        f"check the name and the network, or give a local folder with --model"
    )


def resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not usable here ({str(error).splitlines()[0]}); try cpu") from error
    return device


def dtype_of(dtype: str, device: str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") or computes_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not a choice; valid: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def computes_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16, AMX, ARM's bf16): about 3x as fast as float32 there.

    Elsewhere it is emulated and slower than float32, hence False where nothing is known.
    """
    try:
        words = set(Path(cpuinfo).read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def in_8_bits(model) -> None:
    """Compute the products of the vision tower in 8 bits from now on, in place: torch's dynamic quantisation, weights
    with a scale per channel, activations as they come. Where a CPU has VNNI and no bfloat16, that is what it does best.

    ValueError on another device. Describe the model before: its weights are no longer what they were.
    """
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic  # slow to import, rarely wanted

    if next(model.parameters()).device.type != "cpu":
        raise ValueError("int8 is computed on a CPU; add --device cpu, or choose bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moves to another package; until then it is here
        model.vision_model = quantize_dynamic(model.vision_model, {torch.nn.Linear: per_channel_dynamic_qconfig})


def with_key_frames(processor):
    """The processor, from now on with key frames only."""
    processor.feature_extractor = processor.feature_extractor.replaced(key_frames=True)
    return processor


def named(model: str | None, built: dict | None, fast: bool = False) -> dict:
    """The description of the model that is asked for by name, else of that which an index was `built` with, else of the
    default; with the index's frames."""
    frames = {"key_frames": fast or bool(built and built.get("key_frames"))}
    if model or not built:
        return {"name": model or DEFAULT_MODEL, "revision": None} | frames
    return built


def load_described(described: dict, **options):
    """`load_model_and_processor` of what `describe_model` said of a model."""
    model, processor = load_model_and_processor(described["name"], revision=described["revision"], **options)
    return model, with_key_frames(processor) if described.get("key_frames") else processor

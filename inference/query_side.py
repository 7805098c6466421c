"""The half of a model that reads queries: what a search needs, without the vision tower and without reading it."""

from pathlib import Path

from dmae.inference.identity import WEIGHTS_FILE, known_weights, model_file, processor_hash, weights_stamp
from dmae.inference.loading import dtype_of, load_processor, resolve_device, with_key_frames

FRAMES_ONLY = ("vision_model", "visual_projection", "temporal", "fc_video", "text_predictor", "visual_predictor")


def load_query_side(described: dict, config, device: str = "auto", dtype: str = "auto") -> tuple | None:
    """(model, processor) that embed texts as the whole model does, bit for bit; its weights are mapped, not read.

    described, config: the index's own model, as its manifest has them. None where that cannot be had: the files were
    never hashed on this machine, or have changed since, or are not one safetensors file with these names. Then the
    whole model has to be loaded and checked.
    """
    name, revision = described["name"], described.get("revision")
    stamp = weights_stamp(name, revision)
    if stamp is None or known_weights(stamp) != described["weights"]:
        return None
    # a score by the mean of frames reads the sentence alone: then nothing has to be tagged
    words = {"word_weighting": "uniform"} if config.interaction == "mean" else {}
    processor = load_processor(name, revision, config, **words)
    if described.get("key_frames"):
        processor = with_key_frames(processor)
    if processor_hash(processor) != described["processor"]:
        return None
    weights = model_file(name, WEIGHTS_FILE, revision)
    model = None if weights is None else _text_half(config, weights)
    if model is None:
        return None
    device = resolve_device(device)
    model.config.name_or_path = name
    model.to(device=device, dtype=dtype_of(dtype, device))  # pyright: ignore[reportCallIssue]  (a wrapper hides `self`)
    return model, processor


def _text_half(config, file: Path):
    """The model without what only frames pass through; None where the file lacks a tensor of it."""
    from safetensors import safe_open
    from transformers.initialization import no_init_weights

    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

    with no_init_weights():  # memory that is never touched costs nothing
        model = DMAEForTextVideoRetrieval(config)
    for part in FRAMES_ONLY:
        if hasattr(model, part):
            delattr(model, part)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    with safe_open(file, "pt") as stored:
        names = set(stored.keys())
        if any(name not in names or stored.get_slice(name).get_shape() != shape for name, shape in shapes.items()):
            return None
        model.load_state_dict({name: stored.get_tensor(name) for name in shapes}, assign=True)
    return model.eval()

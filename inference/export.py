"""Both towers as graphs: torch.export programs, or ONNX files that score as the model does.

    export_towers(model, "exported/", form="onnx")   # text.onnx, video.onnx, similarity.json

The text graph takes input_ids, attention_mask, word_mask, word_weights (B,T), the video graph pixel_values (B,F,3,H,W)
and video_mask (B,F); what they give are `TextEmbeddings` and `VideoEmbeddings`, named as `Embeddings.flat` names them
(`text.sentence_embeds`, …). B is free, T and F are the model's. What a checked model refuses (a text without words, a
video without frames) a graph does not see.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings

FORMS = ("torch", "onnx")


class TextTower(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_mask: Tensor, word_weights: Tensor):
        # copies: what goes in (word_mask) and comes out again needs two names in a graph
        found = self.model.get_text_features(input_ids, attention_mask, word_mask, word_weights)
        return tuple(tensor.clone() for tensor in found.tensors())


class VideoTower(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, video_mask: Tensor):
        # copies: without visual attention two outputs would be one tensor, which a graph cannot return twice
        return tuple(tensor.clone() for tensor in self.model.get_video_features(pixel_values, video_mask).tensors())


def example_inputs(config, batch: int = 2) -> dict[str, dict[str, Tensor]]:
    """Inputs of the right shapes for the two graphs: {"text": …, "video": …}."""
    words, frames, size = config.max_words, config.max_frames, config.frame_size
    last = (config.text_config.eos_token_id or 1) if isinstance(config.text_config.eos_token_id, int) else 1
    input_ids = torch.full((batch, words), min(last, config.text_config.vocab_size - 1))
    word_mask = torch.zeros(batch, words, dtype=torch.bool)
    word_mask[:, 1:-1] = True
    input_ids[:, 1:-1] = 3
    text = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "word_mask": word_mask,
        "word_weights": word_mask.float(),
    }
    pixel_values = torch.zeros(batch, frames, 3, size, size)
    return {"text": text, "video": {"pixel_values": pixel_values, "video_mask": torch.ones(batch, frames).bool()}}


def export_towers(model, folder: str | Path, form: str = "onnx") -> list[Path]:
    """Write both towers and what their scores need (`similarity.json`); returns the files. Turns the model to float32.

    Raises ValueError for an unknown form, ImportError where ONNX's tools are missing.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not a choice; valid: {', '.join(FORMS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.float().eval()
    written = []
    for side, tower in (("text", TextTower(model)), ("video", VideoTower(model))):
        inputs = example_inputs(model.config)[side]
        written.append((_to_onnx if form == "onnx" else _to_torch)(tower, side, inputs, folder))
    words = ("interaction", "similarity_form", "text_granularity", "max_words", "max_frames", "frame_size")
    about = {name: getattr(model.config, name) for name in words} | {"logit_scale": model.logit_scale.item()}
    (folder / "similarity.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return [*written, folder / "similarity.json"]


def exported_program(tower: nn.Module, inputs: dict[str, Tensor]):
    """torch.export of a tower, any number of rows."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        return torch.export.export(
            tower, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False
        )


def _to_torch(tower: nn.Module, side: str, inputs: dict[str, Tensor], folder: Path) -> Path:
    path = folder / f"{side}.pt2"
    torch.export.save(exported_program(tower, inputs), path)
    return path


def _to_onnx(tower: nn.Module, side: str, inputs: dict[str, Tensor], folder: Path) -> Path:
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("ONNX files need their tools: pip install 'dmae[export]'") from error
    names = [f"{side}.{name}" for name in (TextEmbeddings if side == "text" else VideoEmbeddings).names()]
    path = folder / f"{side}.onnx"
    program = exported_program(tower, inputs)
    torch.onnx.export(program, f=path, input_names=list(inputs), output_names=names, dynamo=True, verbose=False)
    return path

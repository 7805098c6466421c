"""Embeddings of a split kept on disk, so that another protocol, post-processing or comparison encodes nothing again."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dmae import files
from dmae.evaluation.scoring import EncodedSplit, encode_split
from dmae.inference.identity import processor_hash, weights_hash
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.processing.sources_dmae import file_holding


def default_cache() -> Path:
    """`$DMAE_CACHE/evaluate`, else `~/.cache/dmae/evaluate`."""
    return Path(os.environ.get("DMAE_CACHE") or Path.home() / ".cache" / "dmae") / "evaluate"


def cached_encode_split(accelerator: Accelerator, cache: Path | None, model, processor, rows, *arguments) -> Any:
    """`encode_split`, or what an earlier call with the same model, videos, captions and settings kept in `cache`."""
    rows = list(rows)
    if cache is None:
        return encode_split(accelerator, model, processor, rows, *arguments)
    path = cache / f"{cache_key(model, processor, rows)}.safetensors"
    found = _read(path) if accelerator.is_main_process else None
    if broadcast_object_list([found is not None])[0]:
        return found
    split = encode_split(accelerator, model, processor, rows, *arguments)
    if split is not None:  # the main process has it whole
        _write(path, split)
    return split


def cache_key(model, processor, rows: Sequence[dict]) -> str:
    """A hash of all an embedding depends on: weights, settings, dtype, captions, and the videos' sizes and times."""
    words = None
    if processor.word_weigher is not None:
        words = processor.word_weigher.to_dict()
    settings = [
        weights_hash(model),
        {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")},
        processor_hash(processor),
        [
            processor.max_words,
            processor.word_weighting,
            words,
            hash_text(processor.tokenizer.backend_tokenizer.to_str()),
        ],
        str(next(model.parameters()).dtype),
        [[row, *_file_state(row["video"])] for row in rows],
    ]
    return hash_text(json.dumps(settings, sort_keys=True, default=str))[:32]


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_state(path: str) -> tuple:
    try:
        state = os.stat(file_holding(path))
    except OSError:
        return ("missing",)
    return state.st_size, state.st_mtime_ns


def _write(path: Path, split: EncodedSplit) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"gold": torch.from_numpy(split.gold)}
    for side, embeddings in (("texts", split.texts), ("videos", split.videos)):
        # one tensor may stand under two names (no visual attention), which safetensors refuses
        tensors |= {name: tensor.clone() for name, tensor in embeddings.flat(side).items()}
    with files.new_file(path) as partial:
        save_file(tensors, partial, {"video_ids": json.dumps(split.video_ids), "skipped": json.dumps(split.skipped)})


def _read(path: Path) -> EncodedSplit | None:
    """A kept split; None where there is none, or where the file is damaged (it is then written anew)."""
    with suppress(FileNotFoundError, SafetensorError, KeyError, ValueError), safe_open(path, "pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return EncodedSplit(
            TextEmbeddings.from_flat(tensors, "texts"),
            VideoEmbeddings.from_flat(tensors, "videos"),
            tensors["gold"].numpy(),
            json.loads(notes["video_ids"]),
            json.loads(notes["skipped"]),
        )
    return None

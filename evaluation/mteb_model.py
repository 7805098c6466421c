"""DMAE in mteb: retrieval by the model's own score (`SearchProtocol`), other tasks by single vectors (`AbsEncoder`).

    model = load_mteb_model("your-name/your-model")
    mteb.evaluate(model, mteb.get_tasks(tasks=["MSRVTTT2V"]))

Videos are read by this package's sampler over the whole clip, not by mteb's collator; torchcodec is not needed.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Video
from mteb.models.abs_encoder import AbsEncoder  # pyright: ignore[reportMissingImports]
from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]

from dmae.evaluation.scoring import similarity_matrix
from dmae.inference.embedding import encode_texts, encode_videos
from dmae.inference.loading import load_model_and_processor
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings

logger = logging.getLogger(__name__)


class MTEBModel(AbsEncoder):
    """A DMAE model (or CLIP, zero-shot) as mteb calls it; a task's rows have either a text or a video."""

    def __init__(self, model, processor, meta: ModelMeta, batch_size: int = 16, num_workers: int | None = None):
        self.model, self.processor, self.mteb_model_meta = model, processor, meta
        self.batch_size, self.num_workers = batch_size, num_workers

    # ------------------------------------------------------------------ SearchProtocol: exact

    def index(self, corpus: Dataset, **task) -> None:
        """Embed the documents; videos that cannot be read are named and rank below all others."""
        self._ids, self._documents = self._embed(corpus, "document")

    def search(self, queries: Dataset, *, top_k: int, top_ranked=None, **task) -> dict[str, dict[str, float]]:
        """{query: {document: score}} of the best `top_k`, or of the documents that `top_ranked` gives a query.

        Raises ValueError for a query that cannot be read (left out, the mean would hide it), and for text against text.
        """
        ids, embedded = self._embed(queries, "query")
        if len(ids) < len(queries):
            lost = sorted(set(map(str, queries["id"])) - set(ids))
            raise ValueError(f"{len(lost)} queries cannot be read: {', '.join(lost[:5])}; repair the task's data")
        scores = self._scores(embedded)
        places = {document: place for place, document in enumerate(self._ids)}
        found = {}
        for query, row in zip(ids, scores):
            allowed = [places[d] for d in top_ranked[query] if d in places] if top_ranked else range(len(row))
            best = sorted(allowed, key=lambda place: -row[place])[:top_k]
            found[query] = {self._ids[place]: float(row[place]) for place in best}
        return found

    def _scores(self, queries: TextEmbeddings | VideoEmbeddings) -> np.ndarray:
        config, device, documents = self.model.config, self.model.device, self._documents
        if isinstance(queries, TextEmbeddings) and isinstance(documents, VideoEmbeddings):
            return similarity_matrix(queries, documents, config, device)
        if isinstance(queries, VideoEmbeddings) and isinstance(documents, TextEmbeddings):
            return similarity_matrix(documents, queries, config, device).T
        raise ValueError("this model scores texts against videos; this task has one of them on both sides")

    # ------------------------------------------------------------------ AbsEncoder: pooled

    def encode(self, inputs, **task) -> np.ndarray:
        """(rows, D) unit vectors: the sentence's, or the mean frame's direction. Coarser than the model's score."""
        ids, embedded = self._embed(inputs.dataset, "row")
        if len(ids) < len(inputs.dataset):
            raise ValueError(f"{len(inputs.dataset) - len(ids)} of {len(inputs.dataset)} videos cannot be read")
        if isinstance(embedded, TextEmbeddings):
            pooled = embedded.sentence_embeds
        else:
            pooled = (embedded.video_embeds * embedded.video_mask[..., None]).sum(1)
        return torch.nn.functional.normalize(pooled.float(), dim=-1).numpy()

    # ------------------------------------------------------------------ both

    def _embed(self, rows: Dataset, what: str) -> tuple[list[str], TextEmbeddings | VideoEmbeddings]:
        ids = list(map(str, rows["id"])) if "id" in rows.column_names else list(map(str, range(len(rows))))
        if "video" not in rows.column_names:
            if "text" not in rows.column_names:
                raise ValueError(f"a {what} has the columns {', '.join(rows.column_names)}; texts and videos are read")
            return ids, encode_texts(self.model, self.processor, list(rows["text"]))
        rows = rows.cast_column("video", Video(decode=False))
        items = ({"video_id": name, "video": video} for name, video in zip(ids, rows["video"]))
        encoded = encode_videos(self.model, self.processor, items, self.batch_size, self.num_workers)
        for lost in encoded.skipped:
            logger.warning("%s %s cannot be read: %s", what, lost["video_id"], lost["error"])
        return encoded.video_ids, encoded.embeddings


def load_mteb_model(name_or_path: str, revision: str | None = None, device: str | None = None, **options) -> MTEBModel:
    """By Hub id or folder, as `ModelMeta.loader` is called; `options` are those of `MTEBModel`."""
    model, processor = load_model_and_processor(name_or_path, device or "auto", revision=revision)
    return MTEBModel(model, processor, model_meta(model, str(name_or_path), revision), **options)


def model_meta(model, name: str, revision: str | None = None) -> ModelMeta:
    """What is known of the model; a folder is named local/FOLDER."""
    parameters = sum(weight.numel() for weight in model.parameters())
    local = Path(name).exists()
    facts = {
        "loader": partial(load_mteb_model, name),
        "name": f"local/{Path(name).resolve().name}" if local else name,
        "revision": revision or getattr(model.config, "_commit_hash", None) or "no_revision_available",
        "languages": ["eng-Latn"],
        "n_parameters": parameters,
        "memory_usage_mb": round(parameters * 4 / 2**20),
        "max_tokens": model.config.max_words,
        "embed_dim": model.config.projection_dim,
        "framework": ["PyTorch", "Transformers"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "modalities": ["text", "video"],
        "open_weights": not local,
    }
    return ModelMeta.create_empty(overwrites=facts)


def find_tasks(name: str) -> Sequence:
    """The tasks of a benchmark such as "MVEB(text, video, v1)", or the task of that name; ValueError for neither."""
    import mteb  # pyright: ignore[reportMissingImports]

    if name in {benchmark.name for benchmark in mteb.get_benchmarks()}:
        return list(mteb.get_benchmark(name).tasks)
    try:
        return list(mteb.get_tasks(tasks=[name]))
    except KeyError as error:
        raise ValueError(f"mteb knows no task and no benchmark {name!r} ({error})") from error

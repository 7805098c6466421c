"""DMAE / TPM-CL text-to-video retrieval: the public names, imported on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names for type checkers and editors, which run nothing
    from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics as retrieval_metrics
    from dmae.modeling_dmae.configuration_dmae import DMAEConfig as DMAEConfig
    from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval as DMAEForTextVideoRetrieval
    from dmae.processing.frames_dmae import FrameSampler as FrameSampler
    from dmae.processing.frames_dmae import VideoDecodeError as VideoDecodeError
    from dmae.processing.processing_dmae import DMAEProcessor as DMAEProcessor
    from dmae.processing.words_dmae import WordWeigher as WordWeigher
    from dmae.retrieval.corpus import embed_corpus as embed_corpus
    from dmae.retrieval.index import SearchResult as SearchResult
    from dmae.retrieval.index import VideoIndex as VideoIndex

__version__ = "0.1.0"

_PUBLIC = {
    "DMAEConfig": "dmae.modeling_dmae.configuration_dmae",
    "DMAEForTextVideoRetrieval": "dmae.modeling_dmae.modeling_dmae",
    "DMAEProcessor": "dmae.processing.processing_dmae",
    "FrameSampler": "dmae.processing.frames_dmae",
    "VideoDecodeError": "dmae.processing.frames_dmae",
    "WordWeigher": "dmae.processing.words_dmae",
    "VideoIndex": "dmae.retrieval.index",
    "SearchResult": "dmae.retrieval.index",
    "embed_corpus": "dmae.retrieval.corpus",
    "retrieval_metrics": "dmae.metrics.text_video_retrieval.retrieval_metrics",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dmae' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    if name == "DMAEForTextVideoRetrieval":
        value.finish_upload = _finish_upload
    globals()[name] = value
    return value


def _finish_upload(model, folder, repo_id) -> None:
    """`model.push_to_hub` gives the whole card, pipeline and handler."""
    from dmae.hub_cards.staging import finish_upload

    finish_upload(model, folder, repo_id)


def __dir__():
    return sorted(__all__)

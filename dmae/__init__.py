"""DMAE / TPM-CL text-to-video retrieval: the public names, imported on first use."""

import importlib

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

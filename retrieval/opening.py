"""The index that a run of `dmae index` works on: the one that is there, checked against what is asked of it, or a new
one."""

import copy
from dataclasses import dataclass
from pathlib import Path

from dmae.inference.identity import check_model, remember_weights, weights_stamp
from dmae.inference.loading import in_8_bits, load_described, named, with_key_frames
from dmae.retrieval import storage
from dmae.retrieval.asking import require_free
from dmae.retrieval.backends import choose_backend
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import check_kind
from dmae.retrieval.repair import repair
from dmae.retrieval.windows import WindowPlan


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an index is laid out when it is made. None leaves the choice to us; one that exists stays as it was made."""

    window: WindowPlan | None
    backend: str | None
    frames: str | None
    fast: bool

    def __post_init__(self):
        """Raises ValueError for a word that is no choice, before a model is loaded."""
        if self.backend is not None:
            choose_backend(self.backend, rows=0)
        if self.frames is not None:
            check_kind(self.frames)

    @property
    def cut(self) -> list | None:
        """The window as a manifest has it."""
        return [self.window.window, self.window.stride] if self.window else None

    def check(self, manifest: dict, output: Path) -> None:
        """Raises ValueError where the index of this manifest was laid out in another way than is asked for."""
        if self.fast and not manifest["model"].get("key_frames"):
            raise ValueError(f"{output} was built with all frames, not with key frames; choose another folder")
        for option, asked in [("window", self.cut), ("backend", self.backend), ("frames", self.frames)]:
            has = manifest.get(option, "float16" if option == "frames" else None)
            if asked is not None and asked != has:
                built, asked = (_in_words(option, value) for value in (has, asked))
                raise ValueError(
                    f"{output} was built with {built}, not {asked}; leave the option out, or choose another folder"
                )


def open_or_new(
    output: Path, model: str | tuple | None, layout: Layout, device: str, dtype: str
) -> tuple[VideoIndex, list[str]]:
    """An index with its model, and the videos whose rows were damaged and are out of it now.

    A new one is empty, and its first commit will make the folder. model, dtype: as in `index_videos`.
    """
    manifest = storage.read_manifest(output) if (output / storage.MANIFEST).exists() else None
    if manifest:
        layout.check(manifest, output)
    require_free(output)
    network, processor, stamp = _loaded(model, manifest and manifest["model"], layout.fast, device, dtype)
    damaged = []
    if manifest:
        check_model(manifest, network, processor, output)
        damaged = repair(output)
        index = VideoIndex.open(output, network, processor)
    else:
        how = {"window": layout.cut or [None, None], "frames": layout.frames or "float16"}
        index = VideoIndex.empty(network, processor, layout.backend or "auto", output, **how)
    remember_weights(stamp, index.manifest["model"]["weights"])
    if dtype == "int8":  # after its weights were hashed
        in_8_bits(network)
    return index, damaged


def _loaded(model: str | tuple | None, built: dict | None, fast: bool, device: str, dtype: str) -> tuple:
    """(model, processor, stamp of the files it came from); one that came loaded has no stamp."""
    if isinstance(model, tuple):
        network, processor = model
        return network, with_key_frames(copy.copy(processor)) if fast else processor, None
    described = named(model, built, fast)
    stamp = weights_stamp(described["name"], described["revision"])
    return *load_described(described, device=device, dtype="float32" if dtype == "int8" else dtype), stamp


def _in_words(option: str, value) -> str:
    if option != "window":
        return f"{option} {value}"
    window, stride = value or (None, None)
    if window is None:
        return "automatic windows"
    return f"windows of {window:g} s" + (f" every {stride:g} s" if stride else "") if window else "whole videos"

"""What the generated corpora share: presets, a folder that is whole or not there, clips drawn by several processes."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmae.files import partial_name
from dmae.inference.progress import progress

# Without macroblock trees: they make x264's choices depend on memory alignment, so equal frames gave unequal files.
X264 = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0:rc-lookahead=0"}
TRIES = 10_000  # draws for different texts; a scene has hundreds of wordings


def with_overrides(corpus: str, presets: Mapping[str, Any], preset: str, overrides: dict[str, Any]) -> Any:
    """The preset's parameters with some changed; ValueError names an unknown preset or field."""
    if preset not in presets:
        raise ValueError(f"{corpus} has no preset {preset!r}; choose one of {', '.join(presets)}")
    names = [field.name for field in fields(presets[preset])]
    if unknown := sorted(set(overrides) - set(names)):
        raise ValueError(f"{corpus} has no parameter {unknown[0]!r}; it has {', '.join(names)}")
    return replace(presets[preset], **overrides)


def rendered_folder(folder: Path, manifest: dict, card: str, fill: Callable[[Path], None]) -> Path:
    """`fill` a folder with a corpus and give it its card and manifest; one of the same manifest is left as it is.

    Raises ValueError where `folder` holds anything else, OSError for a full disk: nothing is left that looks whole.
    """
    manifest = json.loads(json.dumps(manifest))  # as it is read again: no tuples
    if folder.exists():
        _check_same(folder, manifest)
        return folder
    partial = partial_name(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        fill(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        (partial / "corpus.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_same(folder: Path, manifest: dict) -> None:
    path = folder / "corpus.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if found != manifest:
        what = f"another {manifest['name']} corpus" if found else "something else"
        raise ValueError(f"{folder} already holds {what}; remove it or choose another folder")


def draw_clips(render: Callable[[Any], None], jobs: list, workers: int | None) -> None:
    """`render(job)` for all jobs in `workers` processes, one per core by default; the first error ends it all."""
    with progress(len(jobs), "rendering", "clips") as advance, ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            for _ in pool.map(render, jobs, chunksize=16):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def encode_clip(path: Path, frames: np.ndarray, fps: int) -> None:
    """(N,H,W,3) uint8 -> H.264 in an mp4."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = frames.shape[2], frames.shape[1], "yuv420p", 12
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """`count` different texts of `draw`, in the order of their first draw; ValueError after TRIES draws."""
    found: dict[str, None] = {}
    for _ in range(TRIES):
        if len(found) == count:
            return list(found)
        found.setdefault(draw())
    raise ValueError(f"{TRIES:,} draws gave {len(found)} of {count} different captions; ask for fewer")

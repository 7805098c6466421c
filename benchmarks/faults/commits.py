"""Seeded scripts of commits to an index, and whether what stands there is what some of them leave."""

import zlib
from pathlib import Path

import numpy as np
import torch

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.retrieval import storage, stored_index
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.repair import repair

FRAMES, DIM, OPERATIONS = 2, 16, 8
CONFIG = DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES)
MODEL = {"name": "random", "revision": None, "weights": "0", "processor": "0"}
stored_index.SEGMENT_ROWS = 12  # so that a few videos are worth merging


def frames_of(video: str, version: int) -> np.ndarray:
    """The stored frames of a version of a video: nothing else has them."""
    rng = np.random.default_rng([zlib.crc32(video.encode()), version])
    return rng.standard_normal((FRAMES, DIM)).astype(np.float16)


def encoded(versions: dict[str, int]) -> EncodedVideos:
    frames = torch.from_numpy(np.stack([frames_of(*item) for item in versions.items()])).float()
    mask = torch.ones(len(frames), FRAMES, dtype=torch.bool)
    items = [{"video_id": v, "path": f"/{v}.mp4", "metadata": {"version": n}} for v, n in versions.items()]
    return EncodedVideos(VideoEmbeddings(frames, frames, mask / FRAMES, mask), items, torch.zeros(mask.shape), [])


def script(seed: int, content: dict[str, int]) -> list[tuple]:
    """A seeded list of operations, the first of which always adds."""
    rng, operations = np.random.default_rng(seed), []
    for number in range(OPERATIONS):
        kind = "add" if number == 0 else rng.choice(["add", "replace", "delete", "compact", "save", "plan", "repair"])
        known = sorted(content)
        kind = "add" if len(known) < 2 else kind
        if kind == "add":
            argument = {f"v{seed}-{number}-{n}": 0 for n in range(rng.integers(1, 5))}
        elif kind == "replace":
            argument = {str(v): content[str(v)] + 1 for v in rng.choice(known, 2, replace=False)}
        else:
            argument = [str(v) for v in rng.choice(known, 2, replace=False)] if kind == "delete" else None
        operations.append((str(kind), argument))
        content = after(content, operations[-1])
    return operations


def after(content: dict[str, int], operation: tuple) -> dict[str, int]:
    kind, argument = operation
    if kind in ("add", "replace"):
        return {**content, **argument}
    return {v: n for v, n in content.items() if kind != "delete" or v not in argument}


def run(index: VideoIndex, operation: tuple) -> None:
    kind, argument = operation
    if kind in ("add", "replace"):
        index.add(encoded(argument))
    elif kind == "delete":
        index.delete(argument)
    elif kind == "compact":
        index.compact()
    elif kind == "save":
        index.save_backend()
    elif kind == "plan":
        with index.writing():
            index._commit(index.snapshot.segments, index.manifest["next_id"], plan={"candidates": 7})
    else:
        repair(index.path)
        index.refresh()


def new_index(folder: Path, backend: str) -> VideoIndex:
    return VideoIndex(storage.new_manifest(model=MODEL, config=CONFIG.to_dict(), backend=backend), [], folder)


def open_index(folder: Path, backend: str) -> VideoIndex:
    there = (folder / storage.MANIFEST).exists()
    return VideoIndex.open(folder) if there else new_index(folder, backend)


def make_base(folder: Path, backend: str) -> dict[str, int]:
    """Nine small commits and a few holes: the next compaction has work to do."""
    index, content = new_index(folder, backend), {}
    for number in range(9):
        operation = ("add", {f"b{number}-{n}": 0 for n in range(3)})
        run(index, operation)
        content = after(content, operation)
    run(index, ("delete", ["b0-0"]))
    return after(content, ("delete", ["b0-0"]))


def found_in(folder: Path) -> dict[str, int]:
    """{video: version} of an index, every row checked; AssertionError where a row is of two minds."""
    if not (folder / storage.MANIFEST).exists():
        return {}
    index = VideoIndex.open(folder)
    content = {row["video_id"]: row["metadata"]["version"] for row in index.rows()}
    assert len(content) == len(index), "a video stands there twice"
    stored = index.snapshot.tensor("frames", np.arange(len(index))).numpy() if content else []
    for row, frames in zip(index.rows(), stored):
        expected = frames_of(row["video_id"], row["metadata"]["version"])
        assert np.array_equal(frames, expected), f"{row['video_id']} has the frames of another"
    text = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))
    query = TextEmbeddings(text, text[:, None], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    hits = index.search_embeddings(query, top_k=5)[0] if content else []
    assert len(hits) == min(5, len(content)) and all(hit.video_id in content for hit in hits), "the search is wrong"
    return content


def verdict(folder: Path, allowed: list[dict[str, int]], backend: str, index: VideoIndex | None = None) -> str:
    """ "ok", or what is wrong after a fault. `allowed`: the contents that the acknowledged commits leave open; `index`:
    the object that met the fault, where its process goes on."""
    try:
        content = found_in(folder)
    except AssertionError as error:
        return f"mixed: {error}"
    except Exception as error:  # whatever it is, the index does not open
        return f"not opened: {type(error).__name__}: {error}"
    if content not in allowed:
        lost = any(content.get(video) != version for video, version in allowed[0].items())
        return "lost: an acknowledged commit" if lost else "mixed: part of a commit"
    try:
        (index or open_index(folder, backend)).add(encoded({"last": 1}))
        if found_in(folder) != {**content, "last": 1}:
            return "stuck: the next commit is not there"
    except Exception as error:
        return f"stuck: {type(error).__name__}: {error}"
    manifest = storage.read_manifest(folder)
    named = {entry["file"] for entry in manifest["segments"]}
    named |= {storage.MANIFEST, ".lock", (manifest.get("faiss") or {}).get("file")}
    left = {path.name for path in folder.iterdir()} - named
    return f"left over: {sorted(left)}" if left else "ok"

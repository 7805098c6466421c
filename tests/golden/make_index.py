"""Makes `index-N/`: an index as this version writes it, in format N, for every later version to open.

    python tests/golden/make_index.py

Run it when the format gets a new number, and leave those of the earlier numbers as they are: they stand for what people
have saved. (index-1 was made by the last version that wrote format 1; it has neither an identity nor checksums.) Beside
the index stands `expected.json`: embedded queries and what an exact search answered.
"""

import json
import shutil
from pathlib import Path

import torch

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex

HERE = Path(__file__).resolve().parent
FRAMES, DIM, WORDS = 3, 8, 4
NAMES = ["plain", "two windows", "two windows", "Holiday [dQw4w9WgXcQ]", "line\u2028separator", "über", "-dash", "gone"]
MODEL = {"name": "random", "revision": None, "weights": "0123456789abcdef", "processor": "fedcba9876543210"}


def videos() -> EncodedVideos:
    rng = torch.Generator().manual_seed(0)
    frames = torch.randn(len(NAMES), FRAMES, DIM, generator=rng).half().float()
    mask = torch.ones(len(NAMES), FRAMES, dtype=torch.bool)
    mask[0, 2] = False
    weights = torch.rand(len(NAMES), FRAMES, generator=rng) * mask
    embeddings = VideoEmbeddings(frames, frames, weights / weights.sum(1, keepdim=True), mask)
    items = [
        {"video_id": name, "path": f"/videos/{name}.mp4", "metadata": {"n": str(n)}} for n, name in enumerate(NAMES)
    ]
    items[1] |= {"start": 0.0, "end": 10.0}
    items[2] |= {"start": 5.0, "end": 15.0}
    return EncodedVideos(embeddings, items, torch.arange(FRAMES).float().expand(len(NAMES), -1), [])


def queries() -> TextEmbeddings:
    rng = torch.Generator().manual_seed(1)
    mask = torch.ones(2, WORDS, dtype=torch.bool)
    words = torch.randn(2, WORDS, DIM, generator=rng)
    return TextEmbeddings(torch.randn(2, DIM, generator=rng), words, mask / WORDS, mask)


def make(index: VideoIndex, folder: Path) -> None:
    """Two commits and a deletion, a plan, a FAISS file, and the answers."""
    first, second = videos().split(lambda video_id: video_id != "über")
    index.add(first)
    index.add(second)
    index.delete(["gone"])
    with index.writing():
        index._commit(index.snapshot.segments, index.manifest["next_id"], plan={"candidates": 300})
    index.save_backend()
    hits = index.search_embeddings(queries(), top_k=5, exact=True, hits_per_video=2)
    answers = [
        [[hit.video_id, round(hit.score, 4), hit.start, hit.end, hit.metadata] for hit in found] for found in hits
    ]
    text = {name: getattr(queries(), name).tolist() for name in TextEmbeddings.names()}
    (folder.parent / f"{folder.name}.json").write_text(json.dumps({"queries": text, "answers": answers}) + "\n")


def main() -> None:
    config = DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES)
    folder = HERE / f"index-{storage.FORMAT}"
    shutil.rmtree(folder, ignore_errors=True)
    values = {"config": config.to_dict(), "backend": "faiss", "window": [None, None], "frames": "float16"}
    manifest = storage.new_manifest(model=MODEL, **values)
    make(VideoIndex(manifest, [], folder), folder)
    (folder / ".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()

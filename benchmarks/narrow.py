"""What fewer bytes a frame cost: exact search's top 10 over frames stored as int8 and merged, against float16.

    python benchmarks/narrow.py [--index NAME=my.index=metadata.jsonl …]      # writes benchmarks/results/narrow.json

Beside merging neighbours: as many centroids of each video's frames by k-means, of which no index is made, at their
means' length and at unit length. On both generators of search_corpus.py, and on any index of a trained model with its
captions; all rows are scored, so that the figures are of the storing alone.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from search_corpus import DIM, FRAMES, KINDS, make_queries, make_videos, topics

from dmae.inference.embedding import encode_texts
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import KINDS as STORED
from dmae.retrieval.narrow import stored_frames

RESULTS = Path(__file__).parent / "results" / "narrow.json"


def generated(kind: str, rows: int, queries: int):
    config, rng, subjects = (
        DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES),
        torch.Generator().manual_seed(7),
        topics(),
    )
    parts = [make_videos(kind, 500, rng, subjects) for _ in range(rows // 500)]
    videos, told = VideoEmbeddings.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    chosen = torch.from_numpy(np.random.default_rng(1).choice(rows, queries, replace=False))
    return make_queries(kind, told[chosen], 5), videos, config


def of_index(path: Path, captions: Path, queries: int):
    index = VideoIndex.open(path)
    lines = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    chosen = np.random.default_rng(1).permutation(len(lines))[:queries]
    texts = encode_texts(index.model, index.processor, [lines[n]["captions"][0] for n in chosen])
    return texts, index.snapshot.gather(np.arange(len(index))), index.config


def stored(videos: VideoEmbeddings, kind: str) -> tuple[VideoEmbeddings, int]:
    """The frames as they come back from an index, and their bytes a row."""
    arrays = stored_frames(videos, torch.zeros(videos.video_mask.shape), kind)
    frames, scales = arrays["frames"], arrays.get("frame_scales")
    frames = frames.astype(np.float16) if scales is None else frames
    size = frames[0].nbytes + (0 if scales is None else scales[0].nbytes)
    wide = torch.from_numpy(frames.astype(np.float32))
    wide = wide if scales is None else wide * torch.from_numpy(scales)[..., None]
    weights, mask = (torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in ("frame_weights", "video_mask"))
    return VideoEmbeddings(wide, wide, weights, mask), size


def centroids(video: VideoEmbeddings, rounds: int = 8) -> VideoEmbeddings:
    """A third of the frames, by spherical k-means of each video's own: weighted means of like frames, whenever seen."""
    frames, weights = video.attended_embeds.float(), video.frame_weights
    number = -(-frames.shape[1] // 3)
    chosen = torch.linspace(0, frames.shape[1] - 1, number).round().long()
    means = frames[:, chosen]
    for _ in range(rounds):
        nearest = (frames @ unit(means).mT).argmax(2)
        parts = torch.nn.functional.one_hot(nearest, number).to(frames.dtype) * weights[..., None]
        total = parts.sum(1)
        found = parts.mT @ frames / total.clamp(min=1e-12)[..., None]
        means = torch.where((total > 0)[..., None], found, means)
    return VideoEmbeddings(means, means, total, total > 0)


def compared(name: str, texts: TextEmbeddings, videos: VideoEmbeddings, config) -> dict:
    found, sizes = {}, {}
    for kind in STORED:
        narrow, sizes[kind] = stored(videos, kind)
        found[kind] = similarity(texts, narrow, config).topk(10).indices.numpy()
    few = centroids(videos)
    for kind, vectors in {"centroids": few.attended_embeds, "unit centroids": unit(few.attended_embeds)}.items():
        narrow = VideoEmbeddings(vectors, vectors, few.frame_weights, few.video_mask)
        found[kind], sizes[kind] = similarity(texts, narrow, config).topk(10).indices.numpy(), sizes["merged"]
    row = {"name": name, "rows": len(videos.video_mask), "queries": len(texts.word_mask)}
    for kind, ids in found.items():
        shares = [np.isin(true, mine).mean() for true, mine in zip(found["float16"], ids)]
        first = float((ids[:, 0] == found["float16"][:, 0]).mean())
        row[kind] = {"bytes_per_row": sizes[kind], "recall@10": float(np.mean(shares)), "same_first": first}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--index", action="append", default=[], metavar="NAME=INDEX=CAPTIONS")
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpora = [compared(kind, *generated(kind, args.rows, args.queries)) for kind in KINDS]
    for given in args.index:
        name, path, captions = given.split("=")
        corpora.append(compared(name, *of_index(Path(path), Path(captions), args.queries)))
    record = {"corpora": corpora, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

"""What fewer bytes a frame cost: exact search's top 10 over frames stored as int8 and merged, against float16.

    python benchmarks/narrow.py [--index NAME=my.index=metadata.jsonl …]      # writes benchmarks/results/narrow.json

On both generators of search_corpus.py, and on any index of a trained model with its captions; all rows are scored, so
that the figures are of the storing alone.
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


def compared(name: str, texts: TextEmbeddings, videos: VideoEmbeddings, config) -> dict:
    found, sizes = {}, {}
    for kind in STORED:
        narrow, sizes[kind] = stored(videos, kind)
        found[kind] = similarity(texts, narrow, config).topk(10).indices.numpy()
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

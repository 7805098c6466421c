"""Embed a corpus too large for one run: shards of a manifest, each one Parquet file, done once by whoever comes first.

A shard is `shard_size` rows in the order of the source. Its file is written aside and renamed, and one that is there is
skipped, so processes, restarts and machines on one file system share the work without a coordinator.
"""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dmae import files
from dmae.data.sources import find_videos
from dmae.inference.embedding import EncodedVideos, concatenate_encoded, iter_videos
from dmae.inference.identity import describe_model
from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.processing.sources_dmae import DecodeLimits
from dmae.retrieval.bound import coarse_vectors
from dmae.retrieval.timeline import read_timelines, windows_of
from dmae.retrieval.windows import WindowPlan

RUNNERS = ("local", "accelerate", "ray")
PLAN = "corpus.json"
PLAIN_COLUMNS = ("video_id", "path", "start", "end", "span", "signature")


def embed_corpus(
    model,
    processor,
    source: str | Path,
    output: str | Path,
    runner: str = "local",
    shard_size: int = 10_000,
    window: WindowPlan | None = None,
    batch_size: int = 16,
    num_workers: int | None = None,
) -> list[Path]:
    """Embed the videos of a folder or metadata file into Parquet shards; returns the shards that are complete.

    Columns: video_id, path, start, end, frames (float16, F·D), frame_weights, video_mask, timestamps (F), pooled
    (float16, D), metadata (JSON), names (JSON: video_id and path as they are; those columns show the bytes of a name
    that is no UTF-8 written out). Beside each shard, its unreadable files in a .skipped.jsonl.
    runner: "local" does all shards; "accelerate" every world-size-th one, by the RANK and WORLD_SIZE of `accelerate
    launch`; "ray" hands them to actors of a Ray cluster. `VideoIndex.build(read_corpus(output), …)` indexes them.

    Raises ValueError if `output` holds shards of another model, source or shard size.
    """
    if runner not in RUNNERS:
        raise ValueError(f"unknown runner {runner!r}; valid: {', '.join(RUNNERS)}")
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} must be at least 1")
    output = Path(output)
    items = corpus_items(source, window or WindowPlan())
    shards = [items[start : start + shard_size] for start in range(0, len(items), shard_size)]
    _write_plan(output, describe_model(model, processor), source, shard_size, len(items))
    todo = [(number, shard) for number, shard in enumerate(shards) if not shard_path(output, number).is_file()]
    options = {"batch_size": batch_size, "num_workers": num_workers}
    if runner == "ray":
        _run_on_ray(model, processor, todo, output, options)
    else:
        if runner == "accelerate":
            rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            todo = [(number, shard) for number, shard in todo if number % world == rank]
        for number, shard in todo:
            embed_shard(model, processor, shard, shard_path(output, number), **options)
    return [path for path in (shard_path(output, number) for number in range(len(shards))) if path.is_file()]


def shard_path(output: Path, number: int) -> Path:
    return output / f"shard-{number:06d}.parquet"


def corpus_items(source: str | Path, window: WindowPlan) -> list[dict]:
    """One item per video, window or unreadable file, in a fixed order: every process cuts the same shards."""
    videos, unreadable = find_videos(source)
    timelines = read_timelines([video.path for video in videos], DecodeLimits())
    items = []
    for video, (timeline, error) in zip(videos, timelines):
        item = {"video_id": video.video_id, "path": video.path, "error": error}
        item |= {"signature": list(video.signature), "metadata": video.metadata, "clip": video.clip}
        items += windows_of(item, timeline, window)
    return items + unreadable  # they are named beside the last shard


def embed_shard(model, processor, items: list[dict], path: Path, batch_size: int = 16, num_workers=None) -> None:
    """Embed one shard and rename it into place. A shard of which nothing decodes is written empty: it is done."""
    encoded = concatenate_encoded(list(iter_videos(model, processor, items, batch_size, num_workers, path.stem)))
    lines = "".join(json.dumps(entry) + "\n" for entry in encoded.skipped)
    files.write_file(path.with_suffix(".skipped.jsonl"), lines)
    table = _table(encoded, model.config)
    import pyarrow.parquet as parquet

    with files.new_file(path) as partial:
        parquet.write_table(table, partial)


def read_corpus(output: str | Path) -> EncodedVideos:
    """All shards of a folder as one EncodedVideos. Raises FileNotFoundError where there are none."""
    import pyarrow.parquet as parquet

    paths = sorted(Path(output).glob("shard-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{output} holds no shards; make them with embed_corpus")
    return concatenate_encoded([part for path in paths for part in _parts(parquet.read_table(path))])


def _table(encoded: EncodedVideos, config):
    import pyarrow as pa

    if encoded.embeddings is None:
        return pa.table({"video_id": pa.array([], pa.string())})
    _, frames, weights, mask = encoded.embeddings
    return pa.table(
        {
            **{name: [_storable(item[name]) for item in encoded.items] for name in ("video_id", "path")},
            **{name: [item.get(name) for item in encoded.items] for name in ("start", "end", "span")},
            "names": [json.dumps({name: item[name] for name in ("video_id", "path")}) for item in encoded.items],
            "signature": [item["signature"] for item in encoded.items],
            "metadata": [json.dumps(item["metadata"]) for item in encoded.items],
            "frames": list(frames.flatten(1).half().numpy()),
            "frame_weights": list(weights.numpy()),
            "video_mask": list(mask.numpy()),
            "timestamps": list(encoded.timestamps.numpy()),
            "pooled": list(coarse_vectors(encoded.embeddings, config).half().numpy()),
        }
    )


def _storable(name: str) -> str:
    """Parquet holds UTF-8 only; one odd name must not cost its shard."""
    return name.encode("utf-8", "backslashreplace").decode()


def _parts(table) -> Iterator[EncodedVideos]:
    if not len(table):
        return
    stored = ("video_mask", "frames", "frame_weights", "timestamps")
    mask, frames, weights, times = (torch.from_numpy(np.stack(table[name].to_numpy())) for name in stored)
    frames = frames.float().view(*mask.shape, -1)
    names = (*PLAIN_COLUMNS, "metadata")
    items = [dict(zip(names, values)) for values in zip(*(table[name].to_pylist() for name in names))]
    exact = table["names"].to_pylist() if "names" in table.column_names else ["{}"] * len(items)
    items = [
        {**item, "metadata": json.loads(item["metadata"]), **json.loads(names)} for item, names in zip(items, exact)
    ]
    yield EncodedVideos(VideoEmbeddings(frames, frames, weights, mask), items, times, skipped=[])


def _write_plan(output: Path, model: dict, source, shard_size: int, items: int) -> None:
    """The first process states what is embedded; later ones must want the same, or shards would not fit together."""
    plan = {"model": model, "source": str(Path(source).resolve()), "shard_size": shard_size, "items": items}
    output.mkdir(parents=True, exist_ok=True)
    path = output / PLAN
    if not path.is_file():
        files.write_file(path, json.dumps(plan, indent=1))
        return
    existing = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in plan if plan[name] != existing.get(name)]
    if different:
        told = "; ".join(f"{name} was {existing.get(name)!r} and is {plan[name]!r}" for name in different)
        raise ValueError(f"{output} holds shards of another run ({told}); choose another folder")


def _run_on_ray(model, processor, todo: list, output: Path, options: dict) -> None:
    """Ray Data: actors that hold the model take one shard after the other, and no more shards are sent out than they
    can take. The model is put into Ray's object store once. Needs the extra `dmae[ray]`."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("runner='ray' needs Ray; install it: pip install 'dmae[ray]'") from error
    if not todo:
        return
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        most = max(1, min(len(todo), gpus or int(resources.get("CPU", 1))))
        # a shard is one row of one block, in bytes: Arrow would change the types inside an item
        rows = [{"number": number, "items": pickle.dumps(shard)} for number, shard in todo]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _ShardEmbedder,
            fn_constructor_args=(ray.put((model, processor)), str(output), {**options, "num_workers": 0}),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
        for _ in done.iter_rows():
            pass
    finally:
        if started_here:
            ray.shutdown()


class _ShardEmbedder:
    """An actor of Ray Data. Its rows come back as their numbers: the embeddings are in the shards' files."""

    def __init__(self, loaded, output: str, options: dict):
        import ray  # pyright: ignore[reportMissingImports]

        self.model, self.processor = ray.get(loaded)
        if torch.cuda.is_available():
            self.model.to("cuda")
        self.output, self.options = Path(output), options

    def __call__(self, batch: dict) -> dict:
        for number, items in zip(batch["number"].tolist(), batch["items"]):
            path = shard_path(self.output, number)
            if not path.is_file():  # done already, if Ray asks again after an actor was lost
                embed_shard(self.model, self.processor, pickle.loads(items), path, **self.options)
        return {"number": batch["number"]}

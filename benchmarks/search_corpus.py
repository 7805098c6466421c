"""Synthetic corpora, captions of them, and what exact search finds, for benchmarks/search.py. Made in pieces: a run
that was stopped goes on where it was.

"cal": a video has one meaning, its frames scatter around it, a caption is a noisy view of it. "hard": a video has three
unlike shots and the caption tells of one.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dmae import files
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import storage
from dmae.retrieval.bound import coarse_queries, coarse_vectors
from dmae.retrieval.calibration import exact_top
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import stored_frames
from dmae.retrieval.segments import segment_arrays, write_segment

FRAMES, DIM, WORDS, TOPICS = 12, 512, 16, 2_000
SEGMENT = 20_000
BLOCK = 500  # videos drawn at a time: new memory for more would cost more than the numbers
DEPTH = 20_000  # rows with the best lower bound among which the exact top 10 is looked for
CHECKED = 32  # queries for which all rows are scored besides, up to 200,000 rows; fewer beyond, but 8
KINDS = {  # frame noise, shots, shot noise, caption noise, word noise; a noise of 1 is as long as the signal
    "cal": (0.6, 1, 0.0, 4.5, 1.0),
    "hard": (1.0, 3, 1.0, 4.5, 2.5),
}


class Budget:
    """Minutes that this run may take; between two pieces it stops when they are over."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def check(self, done: str) -> None:
        if self.end is not None and time.monotonic() > self.end:
            sys.exit(f"{done}; the time is over, run the same command again and it goes on from here")


def noise(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng) / shape[-1] ** 0.5


def topics() -> torch.Tensor:
    return unit(noise(torch.Generator().manual_seed(0), TOPICS, DIM))


def make_videos(kind: str, rows: int, rng: torch.Generator, subjects: torch.Tensor):
    """Videos, and for each the meaning that a caption of it would tell."""
    frame_noise, shots, shot_noise, _, _ = KINDS[kind]
    meaning = unit(subjects[torch.randint(TOPICS, (rows,), generator=rng)] + 0.8 * noise(rng, rows, DIM))
    shot = unit(meaning[:, None] + shot_noise * noise(rng, rows, shots, DIM))
    frames = unit(shot.repeat_interleave(FRAMES // shots, 1) + frame_noise * noise(rng, rows, FRAMES, DIM))
    mask = torch.ones(rows, FRAMES, dtype=torch.bool)
    return VideoEmbeddings(frames, frames, mask / FRAMES, mask), shot[:, 0]


def make_queries(kind: str, told: torch.Tensor, seed: int) -> TextEmbeddings:
    *_, caption_noise, word_noise = KINDS[kind]
    rng = torch.Generator().manual_seed(seed)
    sentence = unit(told + caption_noise * noise(rng, len(told), DIM))
    words = unit(sentence[:, None] + word_noise * noise(rng, len(told), WORDS, DIM))
    mask = torch.ones(len(told), WORDS, dtype=torch.bool)
    return TextEmbeddings(sentence, words, mask / WORDS, mask)


def synthetic(kind: str, rows: int, folder: Path, queries: int, stored_as: str, budget: Budget):
    """Write an index folder of synthetic videos; the meanings that captions of some would tell, and their rows."""
    chosen = np.random.default_rng(1).choice(rows, min(queries, rows), replace=False)
    told = write_corpus(kind, rows, folder, stored_as, budget)
    return torch.from_numpy(told[chosen].astype(np.float32)), chosen


def write_corpus(kind: str, rows: int, folder: Path, stored_as: str, budget: Budget) -> np.ndarray:
    """The index, segment by segment, and the meanings of all rows (float16) beside it."""
    config = DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES)
    folder.mkdir(parents=True, exist_ok=True)
    entries, told = [], []
    for start in range(0, rows, SEGMENT):
        part, count = beside(folder, f"part{start}.npz"), min(SEGMENT, rows - start)
        if not part.exists():
            budget.check(f"{start:,} of {rows:,} rows are written")
            entry, meaning = write_rows(kind, start, count, folder, stored_as, config)
            with files.new_file(part) as partial, partial.open("wb") as stream:
                np.savez(stream, entry=json.dumps(entry), told=meaning)
        stored = np.load(part)
        entries.append(json.loads(str(stored["entry"])))
        told.append(stored["told"])
    if not (folder / storage.MANIFEST).exists():
        model = {"name": "synthetic", "revision": None, "weights": "", "processor": ""}
        manifest = storage.new_manifest(generation=1, next_id=rows, model=model, backend="auto", frames=stored_as)
        manifest |= {"config": config.to_dict(), "window": None, "segments": entries}
        storage.write_manifest(folder, manifest)
    return np.concatenate(told)


def write_rows(kind: str, start: int, count: int, folder: Path, stored_as: str, config) -> tuple[dict, np.ndarray]:
    rng, subjects, parts, told = torch.Generator().manual_seed(1 + start), topics(), [], []
    for first in range(0, count, BLOCK):
        videos, meaning = make_videos(kind, min(BLOCK, count - first), rng, subjects)
        arrays = stored_frames(videos, torch.zeros(videos.video_mask.shape), stored_as)
        if stored_as == "float16":
            arrays["frames"] = videos.attended_embeds.half().numpy()  # torch converts ten times as fast as NumPy
        parts.append({**arrays, "coarse": coarse_vectors(videos, config).half().numpy()})
        told.append(meaning.half().numpy())
    ids = np.arange(start, start + count)
    lines = [{"video_id": str(i), "path": f"{i}.mp4", "start": 0.0, "end": 12.0} for i in ids]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return write_segment(folder, segment_arrays(ids=ids, rows=lines, **arrays)).manifest_entry(), np.concatenate(told)


def beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.{name}")


def exact_answers(index: VideoIndex, texts: TextEmbeddings, folder: Path, budget: Budget) -> tuple[np.ndarray, dict]:
    """Ids of the exact top 10 of every query (Q,10), and how they were found: among the DEPTH rows with the best lower
    bound; for CHECKED queries all rows are scored besides, and how often that finds another top 10 is said."""
    total, queries = len(index), coarse_queries(texts, index.config)
    if total <= DEPTH:
        return exact_top(index.snapshot, index.config, texts, 10), {"exact_among": total}
    coarse, found = None, []
    for start in range(0, len(queries), CHECKED):
        part = beside(folder, f"exact{len(queries)}_{start}.npy")
        if not part.exists():
            budget.check(f"exact answers of {start} of {len(queries)} queries are there")
            coarse = index.snapshot.tensor("coarse", np.arange(total)) if coarse is None else coarse
            places = deepest(coarse, queries[start : start + CHECKED])
            best = [deep_top(index, texts[start + n : start + n + 1], rows) for n, rows in enumerate(places)]
            np.save(part, np.stack(best))
        found.append(np.load(part))
    ids, whole = np.concatenate(found), beside(folder, f"checked{len(queries)}.npy")
    checked = min(CHECKED, max(8, CHECKED * 200_000 // total))
    if not whole.exists():
        budget.check("exact answers are there, not yet checked")
        np.save(whole, exact_top(index.snapshot, index.config, texts[:checked], 10))
    same = [len(np.intersect1d(a, b)) for a, b in zip(ids, np.load(whole))]
    return ids, {"exact_among": DEPTH, "checked_queries": len(same), "checked_found": sum(same) / (10 * len(same))}


def deepest(coarse: torch.Tensor, queries: torch.Tensor) -> np.ndarray:
    """Rows with the best lower bound for each query, ascending. -> (Q,DEPTH)"""
    blocks = [queries @ coarse[start : start + SEGMENT].float().T for start in range(0, len(coarse), SEGMENT)]
    return np.sort(torch.cat(blocks, 1).topk(DEPTH, sorted=False).indices.numpy(), 1)


def deep_top(index: VideoIndex, text: TextEmbeddings, rows: np.ndarray) -> np.ndarray:
    scores = index.state.score(text, rows)
    return index.snapshot.ids[rows[np.argsort(-scores, kind="stable")[:10]]]

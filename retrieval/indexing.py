"""`dmae index`: bring an index up to date with a folder; only new and changed files are embedded, commit by commit."""

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmae import files
from dmae.data.listing import clip_id
from dmae.data.sources import SourceVideo, find_videos
from dmae.inference.embedding import EncodedVideos, concatenate_encoded, default_workers, iter_videos
from dmae.inference.loading import DEFAULT_MODEL, check_model, load_model_and_processor
from dmae.retrieval import storage
from dmae.retrieval.index import SEGMENT_ROWS, VideoIndex
from dmae.retrieval.query_bank import refresh_query_bank
from dmae.retrieval.repair import repair
from dmae.retrieval.results import read_lines
from dmae.retrieval.timeline import read_timelines, windows_of
from dmae.retrieval.windows import WindowPlan

COMMIT_SECONDS = 10.0  # a kill loses at most this much work
SKIPPED = "skipped.jsonl"


@dataclass
class IndexSummary:
    """What a run of `index_videos` did. `skipped`: {video_id, path, error}, those known from earlier runs included;
    `damaged`: the videos whose stored rows were damaged, and which were embedded again where their files are there."""

    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    gone: int = 0
    videos: int = 0
    rows: int = 0
    seconds: float = 0.0
    skipped: list[dict] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def index_videos(
    source: str | Path,
    output: str | Path,
    model: str | None = None,
    window: WindowPlan | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    num_workers: int | None = None,
    backend: str | None = None,
    prune: bool = False,
    retry: bool = False,
    query_bank: str | Path | None = None,
) -> IndexSummary:
    """Index a folder (or a metadata file) into `output`, new or existing, and say what was done.

    Nothing is written before the source, the model and the existing index have been checked. A file is unchanged while
    its path, size and modification time are; one that could not be read is tried again when it changes, or by `retry`.
    prune: also forget videos whose files are gone. query_bank: a file of training captions, one per line, stored with
    the index for QB-Norm; the bank follows the videos in later runs.

    Raises ValueError when no file at all could be indexed.
    """
    started, output = time.monotonic(), Path(output)
    videos, missing = find_videos(source)
    captions = None if query_bank is None else read_lines(query_bank, "captions")
    summary = IndexSummary()
    index = _open_or_new(output, model, window, device, dtype, backend, summary)
    with index.writing():
        skipped = {} if retry else _read_skipped(output)
        todo = _to_embed(index, videos, skipped, summary)
        _embed(index, todo, batch_size, num_workers, summary)
        summary.skipped += missing
        if not len(index):
            storage.remove_if_new(output)
            raise ValueError(f"none of {len(videos)} files could be indexed; {_first_reason(summary)}")
        _forget_missing(index, prune, summary)
        index.compact()
        index.save_backend()
        refresh_query_bank(index, captions)
        lines = [json.dumps(entry) + "\n" for entry in summary.skipped]  # ASCII: a name need not be valid Unicode
        files.write_file(output / SKIPPED, "".join(lines))
    summary.videos, summary.rows = len(index.video_ids), len(index)
    summary.seconds = time.monotonic() - started
    return summary


def _open_or_new(output: Path, model, window: WindowPlan | None, device, dtype, backend, summary) -> VideoIndex:
    """The existing index, checked against the wishes and rid of damaged rows, or an empty one that its first commit
    will write."""
    exists = (output / storage.MANIFEST).exists()
    manifest = storage.read_manifest(output) if exists else {}
    name = model or (manifest["model"]["name"] if exists else DEFAULT_MODEL)
    revision = manifest["model"]["revision"] if exists and not model else None
    cut = [window.window, window.stride] if window else None
    if exists:
        for option, asked in [("window", cut), ("backend", backend)]:
            if asked is not None and asked != manifest.get(option):
                built, asked = (_in_words(option, value) for value in (manifest.get(option), asked))
                raise ValueError(
                    f"{output} was built with {built}, not {asked}; leave the option out, or choose another folder"
                )
    elif output.exists() and any(path.name != ".lock" for path in output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no index; choose another folder")
    model, processor = load_model_and_processor(name, device=device, dtype=dtype, revision=revision)
    if exists:
        check_model(manifest, model, processor, output)
        summary.damaged = repair(output)
        return VideoIndex.open(output, model, processor)
    return VideoIndex.empty(model, processor, backend or "auto", output, cut or [None, None])


def _in_words(option: str, value) -> str:
    if option != "window":
        return f"{option} {value}"
    window, stride = value or (None, None)
    if window is None:
        return "automatic windows"
    return f"windows of {window:g} s" + (f" every {stride:g} s" if stride else "") if window else "whole videos"


def _to_embed(index: VideoIndex, videos: list[SourceVideo], skipped: dict, summary: IndexSummary) -> list[SourceVideo]:
    """New and changed files. Ids that belong to another file in the index are made unique by the path."""
    known, owner = {}, {}
    for row in index.rows():
        known[(row["path"], *row.get("clip", ()))] = tuple(row.get("signature", ()))
        owner[row["video_id"]] = row["path"]
    todo = []
    for video in videos:
        if known.get((video.path, *(video.clip or ()))) == video.signature:
            summary.unchanged += 1
        elif skipped.get(video.path, {}).get("signature") == list(video.signature):
            summary.skipped.append(skipped[video.path])
        else:
            other = owner.get(video.video_id, video.path)
            taken = other != video.path and not _is_gone(other)  # a moved file takes its id along
            todo.append(replace(video, video_id=clip_id(video.path, *(video.clip or (None, None)))) if taken else video)
    return todo


def _items(index: VideoIndex, videos: list[SourceVideo], num_workers: int | None) -> Iterator[dict]:
    """One item per window, as they are asked for; `last` marks the end of a video, where a commit may cut."""
    plan = WindowPlan(*(index.manifest["window"] or (None, None)))
    limits = index.processor.feature_extractor.limits
    timelines = read_timelines([video.path for video in videos], limits, in_process=num_workers == 0)
    for video, (timeline, error) in zip(videos, timelines):
        item = {"video_id": video.video_id, "path": video.path, "error": error}
        item |= {"signature": list(video.signature), "metadata": video.metadata, "clip": video.clip}
        yield from windows_of(item, timeline, plan)


def _embed(index: VideoIndex, videos: list[SourceVideo], batch_size: int, num_workers, summary: IndexSummary) -> None:
    """Embed and commit every COMMIT_SECONDS, cutting only between videos; Ctrl-C commits the whole videos in hand."""
    if not videos:
        return
    workers = default_workers(len(videos)) if num_workers is None else num_workers
    ahead: deque[dict] = deque()
    items = _noted(_items(index, videos, num_workers), ahead)
    pending, committed = [], time.monotonic()
    try:
        batches = iter_videos(index.model, index.processor, items, batch_size, workers, "indexing", len(videos))
        for batch in batches:
            pending.append(batch)
            newest = [ahead.popleft() for _ in range(len(batch.items) + len(batch.skipped))][-1]
            rows = sum(len(part.items) for part in pending)
            if time.monotonic() - committed >= COMMIT_SECONDS or rows >= SEGMENT_ROWS:
                pending = _commit_whole_videos(index, pending, newest, summary)
                committed = time.monotonic()
    finally:
        if pending:
            _commit_whole_videos(index, pending, newest, summary)


def _noted(items: Iterator[dict], ahead: deque) -> Iterator[dict]:
    for item in items:
        ahead.append(item)
        yield item


def _commit_whole_videos(index, pending: list[EncodedVideos], newest: dict, summary) -> list[EncodedVideos]:
    """Commit all but a video whose windows are not all embedded yet; give back what waits."""
    whole = concatenate_encoded(pending)
    open_id = None if newest["last"] else newest["video_id"]
    ready, waiting = whole.split(lambda video_id: video_id != open_id)
    decoded = set(ready.video_ids)
    stale = {row["video_id"] for row in index.rows()} & {entry["video_id"] for entry in ready.skipped} - decoded
    if ready.embeddings is not None:
        index.add(ready, also_delete=stale)
    elif stale:
        index.delete(stale)
    summary.embedded += len(decoded)
    summary.skipped += _one_per_file(ready.skipped, decoded)
    return [waiting] if waiting.items or waiting.skipped else []


def _one_per_file(skipped: list[dict], decoded: set[str]) -> list[dict]:
    """One entry for all windows of a file that failed; a file of which other windows decoded is in the index too."""
    by_path: dict[str, list[dict]] = {}
    for entry in skipped:
        by_path.setdefault(entry["path"], []).append(entry)
    entries = []
    for path, (first, *others) in by_path.items():
        partly = f"{1 + len(others)} of its moments left out; " if first["video_id"] in decoded else ""
        entries.append({**first, "error": partly + first["error"], "signature": _signature(path)})
    return entries


def _signature(path: str) -> list[int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _forget_missing(index: VideoIndex, prune: bool, summary: IndexSummary) -> None:
    gone = {row["video_id"] for row in index.rows() if _is_gone(row["path"])}
    if prune and gone:
        summary.removed = index.delete(gone)
    else:
        summary.gone = len(gone)


def _is_gone(path: str) -> bool:
    """There is no such file; one that cannot be reached just now is not gone."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _read_skipped(output: Path) -> dict[str, dict]:
    """The files that earlier runs could not read, by path."""
    path = output / SKIPPED
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")  # names may hold what `splitlines` takes for the end of one
    return {entry["path"]: entry for entry in map(json.loads, filter(None, lines))}


def _first_reason(summary: IndexSummary) -> str:
    return f"the first: {summary.skipped[0]['error']}" if summary.skipped else "there is nothing to embed"

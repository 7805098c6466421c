"""`dmae index`: bring an index up to date with a folder; only new and changed files are embedded, commit by commit."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from dmae.data.sources import SourceVideo, find_videos
from dmae.inference.embedding import EncodedVideos, concatenate_encoded, iter_videos
from dmae.inference.loading import DEFAULT_MODEL, load_model_and_processor
from dmae.retrieval import storage
from dmae.retrieval.index import SEGMENT_ROWS, VideoIndex
from dmae.retrieval.query_bank import refresh_query_bank
from dmae.retrieval.results import read_lines
from dmae.retrieval.windows import WindowPlan, video_span

COMMIT_SECONDS = 10.0  # a kill loses at most this much work
SKIPPED = "skipped.jsonl"


@dataclass
class IndexSummary:
    """What a run of `index_videos` did. `skipped`: {video_id, path, error}, those known from earlier runs included."""

    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    gone: int = 0
    videos: int = 0
    rows: int = 0
    seconds: float = 0.0
    skipped: list[dict] = field(default_factory=list)


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
    index = _open_or_new(output, model, window, device, dtype, backend)
    with index.writing():
        summary, skipped = IndexSummary(), {} if retry else _read_skipped(output)
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
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in summary.skipped]
        storage.write_text(output / SKIPPED, "".join(lines))
    summary.videos, summary.rows = len(index.video_ids), len(index)
    summary.seconds = time.monotonic() - started
    return summary


def _open_or_new(output: Path, model, window: WindowPlan | None, device, dtype, backend) -> VideoIndex:
    """The existing index, checked against the wishes, or an empty one that its first commit will write."""
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
        known[row["path"]] = tuple(row.get("signature", ()))
        owner[row["video_id"]] = row["path"]
    todo = []
    for video in videos:
        if known.get(video.path) == video.signature:
            summary.unchanged += 1
        elif skipped.get(video.path, {}).get("signature") == list(video.signature):
            summary.skipped.append(skipped[video.path])
        else:
            other = owner.get(video.video_id, video.path)
            taken = other != video.path and Path(other).exists()  # a moved file takes its id along
            todo.append(SourceVideo(video.path, video.path, video.signature, video.metadata) if taken else video)
    return todo


def _items(index: VideoIndex, videos: list[SourceVideo]) -> list[dict]:
    """One item per window; `last` marks the end of a video, where a commit may cut."""
    plan = WindowPlan(*(index.manifest["window"] or (None, None)))
    items = []
    for video in videos:
        span = video_span(video.path)
        windows = plan.cut(span)
        for number, (start, end) in enumerate(windows):
            items.append(
                {
                    "video_id": video.video_id,
                    "path": video.path,
                    "start": start,
                    "end": end,
                    "span": span,
                    "signature": list(video.signature),
                    "metadata": video.metadata,
                    "last": number == len(windows) - 1,
                }
            )
    return items


def _embed(index: VideoIndex, videos: list[SourceVideo], batch_size: int, num_workers, summary: IndexSummary) -> None:
    """Embed and commit every COMMIT_SECONDS, cutting only between videos; Ctrl-C commits the whole videos in hand."""
    items = _items(index, videos)
    if not items:
        return
    pending, done, committed = [], 0, time.monotonic()
    try:
        for batch in iter_videos(index.model, index.processor, items, batch_size, num_workers, "indexing"):
            pending.append(batch)
            done += len(batch.items) + len(batch.skipped)
            rows = sum(len(part.items) for part in pending)
            if time.monotonic() - committed >= COMMIT_SECONDS or rows >= SEGMENT_ROWS:
                pending = _commit_whole_videos(index, pending, items[done - 1], summary)
                committed = time.monotonic()
    finally:
        if pending:
            _commit_whole_videos(index, pending, items[done - 1], summary)


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
    summary.skipped += [{**entry, "signature": _signature(entry["path"])} for entry in ready.skipped]
    return [waiting] if waiting.items or waiting.skipped else []


def _signature(path: str) -> list[int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _forget_missing(index: VideoIndex, prune: bool, summary: IndexSummary) -> None:
    gone = {row["video_id"] for row in index.rows() if not Path(row["path"]).exists()}
    if prune and gone:
        summary.removed = index.delete(gone)
    else:
        summary.gone = len(gone)


def _read_skipped(output: Path) -> dict[str, dict]:
    """The files that earlier runs could not read, by path."""
    path = output / SKIPPED
    if not path.is_file():
        return {}
    return {entry["path"]: entry for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def _first_reason(summary: IndexSummary) -> str:
    return f"the first: {summary.skipped[0]['error']}" if summary.skipped else "there is nothing to embed"

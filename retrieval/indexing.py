"""`dmae index`: bring an index up to date with a folder; only new and changed files are embedded, commit by commit."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmae import files
from dmae.data.sources import find_videos
from dmae.inference.embedding import EncodedVideos, concatenate_encoded, default_workers, iter_videos
from dmae.retrieval import storage
from dmae.retrieval.asking import read_lines
from dmae.retrieval.changes import find_changes
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.opening import Layout, open_or_new
from dmae.retrieval.places import files_of, is_gone, remapped, with_root
from dmae.retrieval.query_bank import refresh_query_bank
from dmae.retrieval.stored_index import SEGMENT_ROWS
from dmae.retrieval.stretching import stretches_of
from dmae.retrieval.text_search import refresh_texts
from dmae.retrieval.timeline import read_timelines
from dmae.retrieval.transcripts import transcribe as hear_all
from dmae.retrieval.windows import WindowPlan

COMMIT_SECONDS = 10.0  # a kill loses at most this much work
CLIP_MB = 4  # of a film that are as much work as a clip
SKIPPED = "skipped.jsonl"


@dataclass
class IndexSummary:
    """What a run of `index_videos` did. `skipped`: {video_id, path, error}, those known from earlier runs included,
    whose paths are in `known`; `damaged`: the videos whose stored rows were damaged, and which were embedded again
    where their files are there."""

    embedded: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    gone: int = 0
    videos: int = 0
    rows: int = 0
    seconds: float = 0.0
    skipped: list[dict] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    excluded: tuple[str, ...] = ()
    damaged: list[str] = field(default_factory=list)


def index_videos(
    source: str | Path,
    output: str | Path,
    model: str | tuple | None = None,
    window: WindowPlan | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    num_workers: int | None = None,
    backend: str | None = None,
    frames: str | None = None,
    prune: bool = False,
    retry: bool = False,
    query_bank: str | Path | None = None,
    exclude: Sequence[str] | None = None,
    roots: Sequence[str] = (),
    transcribe: str | None = None,
    fast: bool = False,
) -> IndexSummary:
    """Index a folder (or a metadata file) into `output`, new or existing, and say what was done.

    Nothing is written before the source, the model and the existing index have been checked. A file is its content: one
    that was moved or renamed is not embedded again, one that is there twice is one video with a copy. A file that could
    not be read is tried again when it changes, or by `retry`.
    model: a name or folder, or a loaded (model, processor). dtype: "auto", "float32", "bfloat16", or "int8", which
    changes a loaded model too (`in_8_bits`). frames: "float16", "int8" or "merged", how a new index
    stores them. prune: also forget videos whose files are gone. query_bank: a file of training captions, one per line,
    stored with the index for QB-Norm; the bank follows the videos in later runs. exclude: patterns of file and folder
    names to leave out; None: those of the run before, which the index keeps. roots: "old=new" pairs, where a folder is
    now. transcribe: a Whisper model that hears what is said in videos without subtitles. fast: a new index
    takes key frames only; an existing one goes on as it began.

    Raises ValueError when no file at all could be indexed.
    """
    started, output = time.monotonic(), Path(output)
    summary = IndexSummary(excluded=_kept_patterns(output) if exclude is None else tuple(exclude))
    videos, missing = find_videos(source, summary.excluded)
    captions = None if query_bank is None else read_lines(query_bank, "captions")
    layout = Layout(window=window, backend=backend, frames=frames, fast=fast)
    index, summary.damaged = open_or_new(output, model, layout, device, dtype)
    with index.writing():
        _keep_places(index, source, roots, summary)
        before = {} if retry else _read_skipped(output)
        changes = find_changes(index.rows(), videos, before)
        index.rewrite(changes.rewrites)
        summary.unchanged, summary.moved = changes.unchanged, changes.moved
        summary.skipped += changes.skipped
        summary.known = {entry["path"] for entry in changes.skipped if before.get(entry["path"]) == entry}
        _embed(index, changes.todo, batch_size, num_workers, summary)
        summary.skipped += missing
        if not len(index):
            storage.remove_if_new(output)
            raise ValueError(f"none of {len(videos)} files could be indexed; {_first_reason(summary)}")
        _forget_missing(index, prune, summary)
        index.compact()
        index.save_backend()
        refresh_query_bank(index, captions)
        if transcribe:
            summary.skipped += hear_all(output, index.rows(), transcribe, device, in_process=num_workers == 0)
        refresh_texts(output, index.rows(), in_process=num_workers == 0)
        _write_skipped(output, summary.skipped)
    summary.videos, summary.rows = len(index.video_ids), len(index)
    summary.seconds = time.monotonic() - started
    return summary


def _keep_places(index: VideoIndex, source: str | Path, roots: Sequence[str], summary: IndexSummary) -> None:
    """Write down where the videos are, and what is left out of there."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    index.keep(roots=with_root(remapped(index.roots, roots), folder))
    if list(summary.excluded) != index.manifest.get("exclude", []):
        index.keep(exclude=list(summary.excluded))


def _kept_patterns(output: Path) -> tuple[str, ...]:
    """What the run before left out: it would come in now, unasked."""
    manifest = storage.read_manifest(output) if (output / storage.MANIFEST).exists() else {}
    return tuple(map(str, manifest.get("exclude") or ()))


def _items(todo: list[dict], plan: WindowPlan, sampler, num_workers: int | None) -> Iterator[dict]:
    """Stretches of the videos, as they are asked for; windows that an interrupted run has embedded are left out."""
    timelines = read_timelines([item["path"] for item in todo], sampler.limits, in_process=num_workers == 0)
    for item, (timeline, error) in zip(todo, timelines):
        done = {tuple(window) for window in item.pop("done", ())}
        facts = {} if timeline is None else timeline.facts
        yield from stretches_of({**item, "error": error, "file": facts}, timeline, plan, sampler, done)


def _embed(index: VideoIndex, todo: list[dict], batch_size: int, num_workers, summary: IndexSummary) -> None:
    """Embed and commit every COMMIT_SECONDS, in the middle of a long video too; Ctrl-C commits what is in hand."""
    if not todo:
        return
    megabytes = sum(item["signature"][0] for item in todo) / 2**20  # a few long films are work for workers too
    workers = default_workers(max(len(todo), int(megabytes / CLIP_MB))) if num_workers is None else num_workers
    plan = WindowPlan(*(index.manifest["window"] or (None, None)))
    begun = {item["video_id"] for item in todo if item.get("done")}
    items = _items(todo, plan, index.processor.feature_extractor, num_workers)
    pending, failed, committed = [], [], time.monotonic()

    def commit() -> None:
        ready = concatenate_encoded(pending)
        pending.clear()
        failed.extend(ready.skipped)
        _commit(index, ready, begun)

    try:
        for batch in iter_videos(index.model, index.processor, items, batch_size, workers, "indexing", len(todo)):
            pending.append(batch)
            rows = sum(len(part.items) for part in pending)
            if time.monotonic() - committed >= COMMIT_SECONDS or rows >= SEGMENT_ROWS:
                commit()
                committed = time.monotonic()
    finally:
        if pending:
            commit()
        summary.embedded = len(begun)
        copies = {item["path"]: item["copies"] for item in todo if item["video_id"] not in begun}
        for entry in _one_per_file(failed, begun):
            summary.skipped.append(entry)
            summary.skipped += [{**entry, **copy} for copy in copies.get(entry["path"], ())]


def _commit(index: VideoIndex, ready: EncodedVideos, begun: set[str]) -> None:
    """One commit. begun: the videos of which this run has committed rows; of the others, earlier rows go."""
    decoded = set(ready.video_ids)
    stale = {row["video_id"] for row in index.rows()} & {entry["video_id"] for entry in ready.skipped}
    stale -= decoded | begun
    if ready.embeddings is not None:
        index.add(ready, also_delete=stale, extend=begun)
    elif stale:
        index.delete(stale)
    begun |= decoded


def _one_per_file(failed: list[dict], embedded: set[str]) -> list[dict]:
    """One entry for all windows of a file that failed; a file of which other windows decoded is in the index too."""
    by_path: dict[str, list[dict]] = {}
    for entry in failed:
        by_path.setdefault(entry["path"], []).append(entry)
    entries = []
    for path, (first, *others) in by_path.items():
        partly = f"{1 + len(others)} of its moments left out; " if first["video_id"] in embedded else ""
        entries.append({**first, "error": partly + first["error"], "signature": _signature(path)})
    return entries


def _signature(path: str) -> list[int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _forget_missing(index: VideoIndex, prune: bool, summary: IndexSummary) -> None:
    rows = {row["video_id"]: row for row in index.rows()}
    gone = {name for name, row in rows.items() if row["path"] and all(map(is_gone, filter(None, files_of(row))))}
    if prune and gone:
        summary.removed = index.delete(gone)
    else:
        summary.gone = len(gone)


def _read_skipped(output: Path) -> dict[str, dict]:
    """The files that earlier runs could not read, by path."""
    path = output / SKIPPED
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")  # names may hold what `splitlines` takes for the end of one
    return {entry["path"]: entry for entry in map(json.loads, filter(None, lines))}


def _write_skipped(output: Path, entries: list[dict]) -> None:
    lines = [json.dumps(entry) + "\n" for entry in entries]  # ASCII: a name need not be valid Unicode
    files.write_file(output / SKIPPED, "".join(lines))


def _first_reason(summary: IndexSummary) -> str:
    return f"the first: {summary.skipped[0]['error']}" if summary.skipped else "there is nothing to embed"

"""`dmae index` and `dmae watch`: make an index of a folder, and keep it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmae.commands.search import Device, Model
from dmae.extras import require
from dmae.inference.presets import check_name
from dmae.terminal import printable


def index(
    videos: Annotated[Path, typer.Argument(help="Folder of videos, or a .jsonl/.csv that lists them.")],
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", help="Folder of the index, new or existing. Default: beside VIDEOS, .index."),
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="DMAE model or any CLIP checkpoint (zero-shot): Hub id or folder. "
            "Default: openai/clip-vit-base-patch32, or that of the existing index."
        ),
    ] = None,
    window: Annotated[
        Optional[float],
        typer.Option(help="Cut videos into windows of so many seconds; 0: never. Default: by shots, beyond a minute."),
    ] = None,
    stride: Annotated[Optional[float], typer.Option(help="Seconds between windows; default half a window.")] = None,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="auto, float32, bfloat16; int8: faster on CPUs without bfloat16, scores change a little."),
    ] = "auto",
    fast: Annotated[
        bool, typer.Option("--fast", help="Key frames only, in a new index: far less to decode, at coarser times.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos per forward pass.")] = 16,
    num_workers: Annotated[Optional[int], typer.Option(min=0, help="Decoding processes; default: cores - 1.")] = None,
    backend: Annotated[Optional[str], typer.Option(help="auto, flat or faiss.")] = None,
    frames: Annotated[
        Optional[str],
        typer.Option(help="How frames are stored: float16; int8, half of it; merged, a sixth, with some loss."),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Forget indexed videos whose files are gone.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try files again that could not be read before.")] = False,
    query_bank: Annotated[
        Optional[Path], typer.Option(help="Training captions, one per line, to store for `search --qb-norm`.")
    ] = None,
    exclude: Annotated[
        Optional[list[str]],
        typer.Option(
            help="File and folder names to leave out, as patterns; kept for later runs, '' forgets. Repeatable."
        ),
    ] = None,
    transcribe: Annotated[
        Optional[str], typer.Option(help="Whisper model that hears what is said in videos without subtitles.")
    ] = None,
    root: Annotated[
        Optional[list[str]],
        typer.Option(metavar="OLD=NEW", help="A folder of the index, by name or old path, and where it is now."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if any file could not be read.")] = False,
) -> None:
    """Make a folder of videos searchable, or bring its index up to date: only new and changed files are embedded.

    Examples: `dmae index ~/Videos` makes ~/Videos.index; `dmae index clips.csv -o clips.index --exclude "proxy_*"`
    """
    if backend == "faiss":
        require("search")
    if not videos.exists():
        raise FileNotFoundError(f"{videos}: no such folder or metadata file")
    output = output or default_index(videos)
    _check(output, model, root)
    from dmae.retrieval.indexing import SKIPPED, index_videos
    from dmae.retrieval.windows import WindowPlan

    plan = None if window is None and stride is None else WindowPlan(window, stride)
    settings = {"device": device, "dtype": dtype, "fast": fast, "batch_size": batch_size, "num_workers": num_workers}
    settings |= {"backend": backend, "frames": frames, "prune": prune, "retry": retry}
    settings |= {"query_bank": query_bank, "transcribe": transcribe}
    summary = index_videos(videos, output, model, plan, exclude=_patterns(exclude), roots=root or (), **settings)
    _tell(summary, output, output / SKIPPED, asked=bool(exclude))
    _report(summary)
    if summary.skipped and strict:
        raise ValueError(f"{len(summary.skipped)} files could not be read; they are listed in {output / SKIPPED}")


def watch(
    videos: Annotated[Path, typer.Argument(help="Folder of videos to follow.")],
    output: Annotated[Optional[Path], typer.Option("--output", "-o", help="Folder of the index.")] = None,
    model: Model = None,
    device: Device = "auto",
    prune: Annotated[bool, typer.Option("--prune", help="Forget deleted videos instead of marking them.")] = False,
    exclude: Annotated[Optional[list[str]], typer.Option(help="Names to leave out, as patterns. Repeatable.")] = None,
    poll: Annotated[
        float, typer.Option(min=0, help="Look every so many seconds: network drives send no word of changes.")
    ] = 0.0,
) -> None:
    """Keep an index up to date with a folder: new, changed, moved and deleted files are followed until Ctrl-C.

    Example: `dmae watch /mnt/nas/videos -o videos.index --poll 60`
    """
    import threading

    require("watch")
    if not videos.is_dir():
        raise FileNotFoundError(f"{videos}: no such folder")
    output = output or default_index(videos)
    _check(output, model, None)
    from dmae.inference.loading import load_described, named
    from dmae.retrieval.indexing import index_videos
    from dmae.retrieval.storage import MANIFEST, read_manifest
    from dmae.retrieval.watching import watch as follow

    built = read_manifest(output)["model"] if (output / MANIFEST).exists() else None
    loaded = load_described(named(model, built), device=device)

    def update() -> None:
        try:
            _report(index_videos(videos, output, loaded, prune=prune, exclude=_patterns(exclude)))
        except (ValueError, OSError) as error:  # an empty folder or a drive that is away: wait for the next change
            print(f"not updated: {printable(error)}", file=sys.stderr)

    follow(videos, update, threading.Event(), poll=poll)


def _patterns(exclude: list[str] | None) -> list[str] | None:
    return None if exclude is None else [pattern for pattern in exclude if pattern]


def _check(output: Path, model: str | None, roots: list[str] | None) -> None:
    """What can be refused before anything slow is imported."""
    from dmae.retrieval.asking import MANIFEST, require_free
    from dmae.retrieval.places import remapped

    require_free(output)
    if roots and (output / MANIFEST).is_file():
        remapped(json.loads((output / MANIFEST).read_bytes()).get("roots") or {}, roots)
    if model is not None:
        check_name(model)


def _tell(summary, output: Path, listed: Path, asked: bool) -> None:
    """What a run did, and every file that it newly left out. asked: patterns were typed, and need not be told."""
    rate = f" ({summary.embedded / summary.seconds:.1f} videos/s)" if summary.embedded else ""
    print(f"{printable(output)}: {summary.videos} videos in {summary.rows} rows; ", end="")
    print(f"{summary.embedded} embedded{rate}, {summary.unchanged} unchanged, {summary.moved} moved, ", end="")
    print(f"{len(summary.skipped)} skipped" + _gone(summary))
    for name in summary.damaged:
        print(f"  damaged in the index, embedded again if its file is here: {printable(name)}", file=sys.stderr)
    for entry in summary.skipped:
        if entry["path"] not in summary.known:
            print(f"  skipped {printable(entry['path'])}: {printable(entry['error'])}", file=sys.stderr)
    if summary.excluded and not asked:
        told = f"  left out as in the run before: {', '.join(summary.excluded)} (--exclude '' takes them in)"
        print(printable(told), file=sys.stderr)
    if summary.known:
        told = f"  {len(summary.known)} skipped as in the run before, listed in {listed}; --retry tries again"
        print(printable(told), file=sys.stderr)


def _report(summary) -> None:
    """One line of what a run did, as a log keeps it."""
    counts = f"{summary.embedded} embedded now, {summary.unchanged} unchanged, {summary.moved} moved"
    line = f"index: {summary.videos} videos, {counts}, {len(summary.skipped)} skipped"
    print(line, file=sys.stderr, flush=True)


def default_index(videos: Path) -> Path:
    """`/data/Videos` -> `/data/Videos.index`."""
    place = videos.resolve()
    return place.with_name((place.name if place.is_dir() else place.stem) + ".index")


def _gone(summary) -> str:
    if summary.removed:
        return f", {summary.removed} removed"
    return f", {summary.gone} whose files are gone (--prune forgets them)" if summary.gone else ""

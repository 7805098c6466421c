"""`dmae index`, `dmae search`, `dmae index-info`, `dmae serve`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dmae.extras import require
from dmae.terminal import json_line, one_line, print_table, printable

Index = Annotated[Path, typer.Argument(help="Folder made by `dmae index`.", metavar="INDEX")]
Model = Annotated[
    Optional[str],
    typer.Option(help="DMAE model or any CLIP checkpoint (zero-shot): Hub id or folder. Default: the index's own."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


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
        typer.Option(help="Cut videos into windows of this many seconds; 0: never. Default: 10 beyond one minute."),
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
        Optional[list[str]], typer.Option(help="File and folder names to leave out, as patterns. Repeatable.")
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
    from dmae.retrieval.indexing import SKIPPED, index_videos
    from dmae.retrieval.windows import WindowPlan

    plan = None if window is None and stride is None else WindowPlan(window, stride)
    settings = {"device": device, "dtype": dtype, "fast": fast, "batch_size": batch_size, "num_workers": num_workers}
    settings |= {"backend": backend, "frames": frames, "prune": prune, "retry": retry, "query_bank": query_bank}
    summary = index_videos(videos, output, model, plan, exclude=exclude or (), roots=root or (), **settings)
    rate = f" ({summary.embedded / summary.seconds:.1f} videos/s)" if summary.embedded else ""
    print(f"{printable(output)}: {summary.videos} videos in {summary.rows} rows; ", end="")
    print(f"{summary.embedded} embedded{rate}, {summary.unchanged} unchanged, {summary.moved} moved, ", end="")
    print(f"{len(summary.skipped)} skipped" + _gone(summary))
    for name in summary.damaged:
        print(f"  damaged in the index, embedded again if its file is here: {printable(name)}", file=sys.stderr)
    for entry in summary.skipped:
        print(f"  skipped {printable(entry['path'])}: {printable(entry['error'])}", file=sys.stderr)
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
    from dmae.inference.loading import load_described, named
    from dmae.retrieval.indexing import index_videos
    from dmae.retrieval.storage import MANIFEST, read_manifest
    from dmae.retrieval.watching import watch as follow

    output = output or default_index(videos)
    built = read_manifest(output)["model"] if (output / MANIFEST).exists() else None
    loaded = load_described(named(model, built), device=device)

    def update() -> None:
        try:
            _report(index_videos(videos, output, loaded, prune=prune, exclude=exclude or ()))
        except (ValueError, OSError) as error:  # an empty folder or a drive that is away: wait for the next change
            print(f"not updated: {printable(error)}", file=sys.stderr)

    follow(videos, update, threading.Event(), poll=poll)


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


def search(
    index: Index,
    query: Annotated[Optional[str], typer.Argument(help="What to look for, in words.")] = None,
    video: Annotated[Optional[Path], typer.Option(help="Look for videos like this clip instead.")] = None,
    queries: Annotated[Optional[Path], typer.Option(help="A text file with one query per line.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Results per query.")] = 5,
    filter: Annotated[
        Optional[list[str]], typer.Option(help="key=value on the metadata, video_id or path; * and ? work. Repeatable.")
    ] = None,
    hits_per_video: Annotated[int, typer.Option(min=1, help="Moments of one video that may be listed.")] = 1,
    candidates: Annotated[Optional[int], typer.Option(min=1, help="Rows scored exactly; default: the plan.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row exactly.")] = False,
    qb_norm: Annotated[
        bool, typer.Option("--qb-norm", help="Rank by QB-Norm, with the captions given to `dmae index --query-bank`.")
    ] = False,
    text_weight: Annotated[
        float, typer.Option(min=0, help="How much spoken and written words count beside pictures; 0: not at all.")
    ] = 1.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, one line per query.")] = False,
    html: Annotated[Optional[Path], typer.Option(help="Write a page on which the results play.")] = None,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Search an index with words, with a clip, or with a file of queries.

    Examples: `dmae search Videos.index "a dog surfing" --filter "captured>=2023"`;
    `dmae search Videos.index --video clip.mp4 --json`. In a pipe: score, time, reasons and path, parted by tabs.
    """
    from dmae.retrieval.filters import parse_filter

    texts = _query_texts(query, video, queries)
    options: dict[str, Any] = {
        "top_k": top_k,
        "filter": parse_filter(filter or []),
        "hits_per_video": hits_per_video,
        "candidates": candidates,
        "exact": exact,
        "qb_norm": qb_norm,
    }
    words: dict[str, Any] = {"text_weight": text_weight} if not qb_norm else {}
    found = opened(index, model, device)
    results = [found.search_by_video(video, **options)] if video else found.search(texts, **options, **words)
    for text, hits in zip(texts, results):
        if json_output:
            print(json_line({"query": text, "results": [hit.to_dict() for hit in hits]}))
        else:
            _print_hits(text, hits)
    if html:
        from dmae.visuals.gallery import write_results_page

        write_results_page(html, texts, results)
        print(f"wrote {html}", file=sys.stderr)


def _query_texts(query: str | None, video: Path | None, queries: Path | None) -> list[str]:
    from dmae.retrieval.results import check_query, read_lines

    if sum(given is not None for given in (query, video, queries)) != 1:
        raise ValueError("give one of: words, --video CLIP, or --queries FILE")
    if video is not None:
        return [str(video)]
    texts = [query or ""] if queries is None else read_lines(queries, "queries")
    for text in texts:
        check_query(text)
    return texts


def opened(path: Path, model: str | None, device: str):
    """The index with its model, or another that is named."""
    from dmae.inference.loading import load_described, named
    from dmae.retrieval.index import VideoIndex
    from dmae.retrieval.storage import read_manifest

    loaded, processor = load_described(named(model, read_manifest(path)["model"]), device=device)
    return VideoIndex.open(path, loaded, processor)


def _print_hits(query: str, hits: list) -> None:
    """A table on a terminal; in a pipe one line a hit, its path whole."""
    from dmae.retrieval.windows import clock

    if not hits:
        print(
            f"nothing found for {printable(query)!r}; the index may be empty, or the filter too narrow", file=sys.stderr
        )
        return
    rows = []
    for hit in hits:
        path = hit.path + (" (the file is gone)" if hit.missing else "")
        rows.append([f"{hit.score:.3f}", f"{clock(hit.start)}-{clock(hit.end)}", ", ".join(hit.reasons), path])
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(map(one_line, row)))
        return
    table = [[str(rank), hit.video_id, *row] for rank, (hit, row) in enumerate(zip(hits, rows), start=1)]
    print_table(query, ["#", "video", "score", "moment", "why", "path"], table)


def index_info(index: Index, json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what an index holds: model, counts, size, search plan."""
    from dmae.retrieval.index import VideoIndex

    info = VideoIndex.open(index).info()
    if json_output:
        print(json_line(info))
        return
    for name, value in info.items():
        value = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        print(f"{name:<12} {printable(value)}")


def serve(
    index: Index,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    token: Annotated[
        Optional[str],
        typer.Option(help="What clients must show; better given as DMAE_TOKEN, which `ps` does not show."),
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let other machines in without a token.")] = False,
    name: Annotated[
        Optional[list[str]], typer.Option(help="Host name that clients use for this server. Repeatable.")
    ] = None,
    webhook_host: Annotated[
        Optional[list[str]], typer.Option(help="Host that saved searches may send news to. Repeatable.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Open connections per client address.")] = 64,
    cache: Annotated[Optional[Path], typer.Option(help="Folder of posters and previews; default: user cache.")] = None,
    cache_gb: Annotated[float, typer.Option(min=0.01, help="Bound of that folder in GB.")] = 2.0,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Serve a search page and its API on an index; it follows the index as `dmae index` changes it."""
    from dmae.retrieval.server.options import checked_options
    from dmae.retrieval.storage import read_manifest

    names, hosts = tuple(name or ()), tuple(webhook_host or ())
    bounds = {"connections": connections, "cache": cache, "cache_bytes": int(cache_gb * 2**30)}
    options = checked_options(token, no_token, host=host, port=port, names=names, webhook_hosts=hosts, **bounds)
    read_manifest(index)
    require("serve")
    found = opened(index, model, device)
    from dmae.retrieval.server.app import serve as run

    run(found, options)

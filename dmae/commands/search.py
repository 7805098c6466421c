"""`dmae search`, `dmae index-info`, `dmae serve`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dmae.extras import require
from dmae.inference.presets import check_name
from dmae.terminal import json_line, one_line, print_table, printable

Index = Annotated[Path, typer.Argument(help="Folder made by `dmae index`.", metavar="INDEX")]
Model = Annotated[
    Optional[str],
    typer.Option(help="DMAE model or any CLIP checkpoint (zero-shot): Hub id or folder. Default: the index's own."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


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
        Optional[float],
        typer.Option(
            min=0,
            help="How much spoken and written words count beside pictures; 0: not at all. Default: 1, "
            "or what `calibrate` learned.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, one line per query.")] = False,
    html: Annotated[Optional[Path], typer.Option(help="Write a page on which the results play.")] = None,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Search an index with words, with a clip, or with a file of queries.

    Examples: `dmae search Videos.index "a dog surfing" --filter "captured>=2023"`;
    `dmae search Videos.index --video clip.mp4 --json`. In a pipe: score, time, reasons and path, parted by tabs.

    Where `dmae serve` runs over the same index on this machine, it answers, at once.
    """
    from dmae.retrieval.asking import MAX_RESULTS, parse_filter, require_index

    texts = _query_texts(query, video, queries)
    conditions = parse_filter(filter or [])
    require_index(index)
    options: dict[str, Any] = {"top_k": top_k, "hits_per_video": hits_per_video}
    words: dict[str, Any] = {} if text_weight is None else {"text_weight": text_weight}
    plain = not (video or html or candidates or exact or qb_norm or model or top_k > MAX_RESULTS) and device == "auto"
    results = _asked(index, texts, {**options, **words, "filter": shlex.join(filter or [])}) if plain else None
    if results is None:
        found = opened(index, model, device)
        options |= {"filter": conditions, "candidates": candidates, "exact": exact, "qb_norm": qb_norm}
        words = {} if qb_norm else words or {"text_weight": found.text_weight}
        hits = [found.search_by_video(video, **options)] if video else found.search(texts, **options, **words)
        results = [[hit.to_dict() for hit in one] for one in hits]
        if html:
            from dmae.visuals.gallery import write_results_page

            write_results_page(html, texts, hits)
            print(f"wrote {html}", file=sys.stderr)
    for text, one in zip(texts, results):
        if json_output:
            print(json_line({"query": text, "results": one}))
        else:
            _print_hits(text, one)


def _asked(index: Path, texts: list[str], options: dict) -> list[list[dict]] | None:
    """What a server of this index on this machine finds; None where none answers, which is said if one is noted."""
    from dmae.retrieval.running import FILE, NotAnswering, running

    server = running(index)
    if server is None or any(text.startswith("-") or " -" in text for text in texts):  # to the page, words to leave out
        return None
    try:
        return [server.ask(text, **options) for text in texts]
    except NotAnswering as error:
        print(f"{printable(index / FILE)} names a server, but {printable(error)}; searching here", file=sys.stderr)
        return None


def _query_texts(query: str | None, video: Path | None, queries: Path | None) -> list[str]:
    from dmae.retrieval.asking import check_query, read_lines

    if sum(given is not None for given in (query, video, queries)) != 1:
        raise ValueError("give one of: words, --video CLIP, or --queries FILE")
    if video is not None:
        if not video.is_file():
            raise FileNotFoundError(f"{video}: no such video file")
        return [str(video)]
    texts = [query or ""] if queries is None else read_lines(queries, "queries")
    for text in texts:
        check_query(text)
    return texts


def opened(path: Path, model: str | None, device: str):
    """The index, to be searched with its own model or with another that is named."""
    if model is not None:
        check_name(model)
    from dmae.retrieval.index import VideoIndex

    if model is None:
        return VideoIndex.open(path, device=device)
    from dmae.inference.loading import load_described, named
    from dmae.retrieval.storage import read_manifest

    return VideoIndex.open(path, *load_described(named(model, read_manifest(path)["model"]), device=device))


def _print_hits(query: str, hits: list[dict]) -> None:
    """A table on a terminal; in a pipe one line a hit, its path whole."""
    from dmae.retrieval.asking import clock

    if not hits:
        print(f"nothing found for {query!r}; the index may be empty, or the filter too narrow", file=sys.stderr)
        return
    rows = []
    for hit in hits:
        path = hit["path"] + (" (the file is gone)" if hit["missing"] else "")
        times = f"{clock(hit['start'])}-{clock(hit['end'])}"
        rows.append([f"{hit['score']:.3f}", times, ", ".join(hit["reasons"]), path])
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(map(one_line, row)))
        return
    table = [[str(rank), hit["video_id"], *row] for rank, (hit, row) in enumerate(zip(hits, rows), start=1)]
    print_table(query, ["#", "video", "score", "moment", "why", "path"], table)


def index_info(index: Index, json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what an index holds: model, counts, size, search plan. Example: `dmae index-info Videos.index --json`"""
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
    """Serve a search page and its API on an index; it follows the index as `dmae index` changes it.

    Example: `DMAE_TOKEN=… dmae serve Videos.index --host 0.0.0.0 --port 8080`
    """
    from dmae.retrieval.asking import require_index
    from dmae.retrieval.server.options import checked_options

    if model is not None:
        check_name(model)
    names, hosts = tuple(name or ()), tuple(webhook_host or ())
    bounds = {"connections": connections, "cache": cache, "cache_bytes": int(cache_gb * 2**30)}
    options = checked_options(token, no_token, host=host, port=port, names=names, webhook_hosts=hosts, **bounds)
    require_index(index)
    require("serve")
    found = opened(index, model, device)
    from dmae.retrieval.server.app import serve as run

    run(found, options)

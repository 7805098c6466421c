"""`dmae export-clips`: the moments that a search finds, as files."""

import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmae.commands.search import Device, Index, Model, opened
from dmae.extras import require
from dmae.terminal import printable


def export_clips(
    index: Index,
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the clips, new or existing.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many moments.")] = 10,
    filter: Annotated[Optional[list[str]], typer.Option(help="key=value, as in `dmae search`. Repeatable.")] = None,
    hits_per_video: Annotated[int, typer.Option(min=1, help="Moments of one video.")] = 1,
    margin: Annotated[float, typer.Option(min=0, help="Seconds before and after each moment.")] = 0.0,
    width: Annotated[Optional[int], typer.Option(min=16, help="Largest width in pixels; default: as it is.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")] = False,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Write the moments that fit best as MP4 files (H.264, AAC) and a table of them, clips.csv.

    Example: `dmae export-clips Videos.index "a goal is scored" -o goals --margin 2`
    """
    from dmae.retrieval.asking import check_query, parse_filter, require_index

    require_index(index)
    check_query(query)
    filters = parse_filter(filter or [])
    require("serve")
    from dmae.retrieval.server.export import as_csv
    from dmae.retrieval.server.media import write_clip

    found = opened(index, model, device)
    hits = found.search(query, top_k=top_k, filter=filters, hits_per_video=hits_per_video)[0]
    output.mkdir(parents=True, exist_ok=True)
    written, failed = [], []
    for rank, hit in enumerate(hits, start=1):
        target = output / f"{rank:03}_{safe_name(hit.video_id)}_{hit.start:.0f}s.mp4"
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists already; choose another folder, or give --overwrite")
        try:
            write_clip(hit.path, max(0.0, hit.start - margin), hit.end + margin, width, 60.0, str(target))
            written.append(hit)
        except (ValueError, OSError) as error:
            failed.append(f"  left out {hit.path}: {error}")
    (output / "clips.csv").write_text(as_csv(written), encoding="utf-8", errors="backslashreplace")
    print(printable(f"{output}: {len(written)} clips, {len(failed)} left out"))
    for line in failed:
        print(printable(line), file=sys.stderr)
    if hits and not written:
        raise ValueError("no clip could be written")


def safe_name(video_id: str) -> str:
    """A video id as part of a file name on any system: letters, digits, dots, dashes; at most 80."""
    return re.sub(r"[^\w.-]+", "_", video_id).strip("._")[:80] or "clip"

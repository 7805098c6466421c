"""`dmae duplicates`: which videos of an index show the same."""

import sys
from typing import Annotated

import typer

from dmae.commands.search import Index
from dmae.terminal import json_line, one_line


def duplicates(
    index: Index,
    threshold: Annotated[
        float, typer.Option(help="Likeness from which two frames show the same: cosine, less what all videos share.")
    ] = 0.9,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, one line per pair.")] = False,
) -> None:
    """List files with the same content, near-duplicate videos, and passages that two videos share, with their times.

    Intros, credits and stills that are alike make no pair. Example: `dmae duplicates Videos.index --json`
    """
    from dmae.retrieval.asking import clock, require_index

    require_index(index)
    if not 0 < threshold <= 1:
        raise ValueError(f"--threshold {threshold} must be above 0 and at most 1")
    from dmae.retrieval.duplicates import find_duplicates
    from dmae.retrieval.index import VideoIndex

    snapshot = VideoIndex.open(index).snapshot
    found = [pair.to_dict() for pair in find_duplicates(snapshot, threshold)]
    rows = {row["video_id"]: row for row in snapshot.rows()}
    for video_id, row in rows.items():
        for copy in row.get("copies", ()):
            same = {"kind": "same content", "videos": [video_id, video_id], "paths": [row["path"], copy["path"]]}
            found.append({**same, "passages": []})
    for pair in found:
        if json_output:
            print(json_line(pair))
            continue
        times = [
            "=".join(f"{clock(start)}-{clock(end)}" for start, end in (passage["first"], passage["second"]))
            for passage in pair["passages"]
        ]
        print("\t".join(map(one_line, (pair["kind"], ", ".join(times), *pair["paths"]))))
    print(f"{len(found)} pairs among {len(rows)} videos", file=sys.stderr)

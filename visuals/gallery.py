"""A page of search results whose clips play at their moment; one HTML file, nothing loaded from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from dmae.visuals.pages import video_source, write_page


def write_results_page(page: str | Path, queries: Sequence[str], results: Sequence[Sequence], title="Search results"):
    """The results of `VideoIndex.search` as a page. Raises FileNotFoundError where its folder is missing."""
    sections = [
        {"query": query, "cards": [card(hit.video_id, video_source(hit.path, page), hit) for hit in hits]}
        for query, hits in zip(queries, results, strict=True)
    ]
    write_page(page, "results.html", title=title, sections=sections)


def card(label: str, src: str, hit=None, border: str | None = None, note: str = "", caption: str = "") -> dict:
    """What the macro `clip` of cards.html shows. border: "right" | "near" | None; hit: score, start and end, if any."""
    return {
        "label": label,
        "src": src,
        "score": getattr(hit, "score", None),
        "start": getattr(hit, "start", None),
        "end": getattr(hit, "end", None),
        "border": border,
        "note": note,
        "caption": caption,
    }

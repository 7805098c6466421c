"""A page of search results whose clips play at their moment; one HTML file, nothing loaded from elsewhere."""

import base64
import html
import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path

EMBED_BYTES = 3 * 2**20  # a clip up to this size travels inside the page; a larger one is linked relative to it

STYLE = """
:root { color-scheme: light dark; --line: #8885; --true: #1a9850; --near: #e08214; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: .8rem; }
figure { margin: 0; border: 3px solid var(--line); border-radius: 8px; padding: .4rem; }
figure.true { border-color: var(--true); } figure.near { border-color: var(--near); }
video { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #000; border-radius: 4px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } .score { font-variant-numeric: tabular-nums; opacity: .75; }
.note { font-weight: 600; color: var(--near); } .true .note { color: var(--true); } .none { opacity: .7; }
"""
# A clip starts at its moment, repeats it, and plays only while it can be seen.
SCRIPT = """
const seen = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) =>
  isIntersecting ? target.play().catch(() => {}) : target.pause()), { threshold: 0.4 });
document.querySelectorAll("video[data-start]").forEach(video => {
  const start = +video.dataset.start, end = +video.dataset.end || Infinity;
  video.addEventListener("loadedmetadata", () => { video.currentTime = start; });
  video.addEventListener("timeupdate", () => { if (video.currentTime >= end) { video.currentTime = start; } });
  video.addEventListener("ended", () => { video.currentTime = start; video.play(); });
  seen.observe(video);
});
"""


def render_gallery(sections: Sequence[dict], title: str, intro: str = "", outro: str = "") -> str:
    """The page as text.

    sections: one per query, {"query": str, "results": [card, …]}. A card: {"src": what `video_source` gave, "label":
    str, "score": float, "start": s, "end": s, "border": "true" | "near" | None, "note": str}; only `src` is needed.
    intro, outro: HTML before and after the sections, taken as it is; everything else is escaped.
    """
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{intro}\n{body}\n{outro}\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _section(section: dict) -> str:
    cards = "\n".join(_card(card) for card in section["results"]) or '<p class="none">No result.</p>'
    return f'<section><h2>{html.escape(section["query"])}</h2><div class="cards">\n{cards}\n</div></section>'


def _card(card: dict) -> str:
    border, label, note = card.get("border"), card.get("label") or "", card.get("note")
    if border not in (None, "true", "near"):
        raise ValueError(f"border {border!r} of a result card; valid: 'true', 'near', None")
    start, end = card.get("start") or 0.0, card.get("end")
    times = f' data-start="{start:.3f}"' + (f' data-end="{end:.3f}"' if end else "")
    score = f' <span class="score">{card["score"]:.3f}</span>' if card.get("score") is not None else ""
    moment = f' <span class="score">{start:.1f}–{end:.1f} s</span>' if end else ""
    return (
        f'<figure class="{border or ""}"><video src="{html.escape(card["src"])}"{times} muted playsinline controls '
        f'preload="metadata" aria-label="{html.escape(label)}"></video><figcaption>{html.escape(label)}{score}{moment}'
        + (f'<br><span class="note">{html.escape(note)}</span>' if note else "")
        + "</figcaption></figure>"
    )


def video_source(path: str | Path, page: str | Path, embed_bytes: int = EMBED_BYTES) -> str:
    """What a card's `src` says: a data URI for a small clip, else the way from the page's folder to the file."""
    path = Path(path)
    if path.is_file() and path.stat().st_size <= embed_bytes:
        kind = "video/mp4" if path.suffix.lower() in (".mov", ".m4v") else mimetypes.guess_type(path.name)[0]
        return f"data:{kind or 'video/mp4'};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Path(os.path.relpath(path.resolve(), Path(page).resolve().parent)).as_posix().replace("#", "%23")


def write_results_page(page: str | Path, queries: Sequence[str], results: Sequence[Sequence], title="Search results"):
    """The results of `VideoIndex.search` as a page. Raises FileNotFoundError where its folder is missing."""
    page = Path(page)
    if not page.parent.is_dir():
        raise FileNotFoundError(f"{page.parent}: no such folder for the page {page.name}")
    sections = [
        {
            "query": query,
            "results": [
                {
                    "src": video_source(hit.path, page),
                    "label": hit.video_id,
                    "score": hit.score,
                    "start": hit.start,
                    "end": hit.end,
                }
                for hit in hits
            ],
        }
        for query, hits in zip(queries, results)
    ]
    page.write_text(render_gallery(sections, title), encoding="utf-8")

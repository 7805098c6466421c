"""The demo's report: one self-contained HTML page with tables, curves, and clips that play in place."""

import base64
import html
from pathlib import Path

from dmae.evaluation.near_misses import read_rows

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --true: #16a34a; --near: #d97706; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 2.5rem auto;
  padding: 0 1rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.25rem; } .soft { color: var(--soft); }
table { border-collapse: collapse; margin: .8rem 0; } td, th { padding: .35rem .8rem; text-align: right; }
th { color: var(--soft); font-weight: 600; } td:first-child, th:first-child { text-align: left; }
tr { border-bottom: 1px solid var(--line); } tr.strong td { font-weight: 700; }
.results { display: grid; grid-template-columns: repeat(5, 1fr); gap: .8rem; list-style: none; padding: 0; }
.card { border: 4px solid var(--line); border-radius: 10px; overflow: hidden; font-size: .85rem; }
.card video { width: 100%; display: block; background: #000; image-rendering: pixelated; }
.card p { margin: .4rem .6rem; } .card.true { border-color: var(--true); } .card.near { border-color: var(--near); }
.tag { font-weight: 700; } .true .tag { color: var(--true); } .near .tag { color: var(--near); }
.query { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.bar { background: var(--line); border-radius: 6px; height: 14px; width: 260px; }
.bar i { display: block; height: 14px; border-radius: 6px; background: #4f7cff; } img { max-width: 100%; }
"""
COLUMNS = [("R@1", "R@1"), ("R@5", "R@5"), ("R@10", "R@10"), ("median_rank", "MdR"), ("mean_rank", "MnR")]
DIRECTIONS = [("text_to_video", "text → video"), ("video_to_text", "video → text")]


def write_report(output: Path, metrics: dict, answers: list[dict]) -> Path:
    """Write `output/report.html` from the demo's metrics and answers (see `dmae.demo`), with the clips inside."""
    split = output / "corpus" / "test"
    rows = {row["video_id"]: row for row in read_rows(split)}
    sections = [
        _summary(metrics),
        _curves(output / "run" / "curves.png"),
        "<h2>Five queries</h2><p class='soft'>Captions of evenly spaced test groups, not chosen by how well they went. "
        "Green: the video that the caption was written for. Orange: a near miss, with what differs. "
        "Below each clip stands the caption that was written for it.</p>",
        *(_query(answer, split, rows) for answer in answers),
    ]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>DMAE demo</title><style>{STYLE}</style><h1>DMAE demo</h1>{''.join(sections)}</html>"
    )
    target = output / "report.html"
    partial = target.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def _summary(metrics: dict) -> str:
    size = metrics["after"]["gallery_size"]
    labels = {"random": "random scores", "before": "before training", "after": "after training"}
    head = "".join(f"<th>{name}</th>" for name in ("", *(label for _, label in COLUMNS)))
    tables = ""
    for key, title in DIRECTIONS:
        body = "".join(
            f"<tr class='{'strong' if row == 'after' else ''}'><td>{label}</td>"
            + "".join(f"<td>{_number(name, metrics[row][f'{key}_{name}'])}</td>" for name, _ in COLUMNS)
            + "</tr>"
            for row, label in labels.items()
        )
        tables += f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"
    bars = "".join(
        f"<tr><td>{attribute}</td><td>{100 * value:.0f} %</td>"
        f"<td><div class='bar'><i style='width:{100 * value:.1f}%'></i></div></td></tr>"
        for attribute, value in metrics["near_miss"].items()
    )
    return (
        f"<p class='soft'>MovingDigits, {size} test captions against {size} test videos in handwriting that training "
        "never saw. Recall in percent; MdR and MnR are the median and mean rank.</p>"
        f"{tables}<h2>Near misses</h2><p class='soft'>How often a caption scores its own video above a video that "
        f"differs in exactly one attribute. Chance: 50 %.</p><table>{bars}</table>"
    )


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name.startswith("R@") else f"{value:.1f}"


def _curves(picture: Path) -> str:
    if not picture.exists():
        return ""
    return (
        f"<h2>Training</h2><img alt='loss and validation recall over training' src='{_data_uri(picture, 'image/png')}'>"
    )


def _query(answer: dict, split: Path, rows: dict[str, dict]) -> str:
    cards = "".join(
        _card(result, rank, answer["row"], rows[result["video_id"]], split)
        for rank, result in enumerate(answer["results"], start=1)
    )
    return f"<p class='query'>“{html.escape(answer['query'])}”</p><ol class='results'>{cards}</ol>"


def _card(result: dict, rank: int, asked: dict, found: dict, split: Path) -> str:
    name = found["video_id"]
    differs = next((near["attribute"] for near in asked["near_misses"] if near["video_id"] == name), None)
    kind = "true" if name == asked["video_id"] else "near" if differs else ""
    tag = {"true": "the right one", "near": f"near miss: {differs}"}.get(kind, "")
    clip = _data_uri(split / Path(result["path"]).name, "video/mp4")
    return (
        f"<li class='card {kind}'><video src='{clip}' autoplay loop muted playsinline controls "
        f"aria-label='result {rank}: {html.escape(name)}'></video>"
        f"<p>{rank}. score {result['score']:.3f} <span class='tag'>{tag}</span></p>"
        f"<p class='soft'>{html.escape(found['captions'][0])}</p></li>"
    )


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

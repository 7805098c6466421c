"""The demo's report: one self-contained HTML page with tables, curves, and clips that play in place."""

from pathlib import Path

from dmae.visuals.gallery import card
from dmae.visuals.pages import data_uri, write_page

COLUMNS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "MdR", "mean_rank": "MnR"}
DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}
ROWS = {"random": "random scores", "before": "before training", "after": "after training"}


def write_report(output: Path, metrics: dict, answers: list[dict], rows: list[dict]) -> Path:
    """Write `output/report.html` from the demo's metrics, its answers and the test split's rows, clips inside."""
    split, by_id = output / "corpus" / "test", {row["video_id"]: row for row in rows}
    curves = output / "run" / "curves.png"
    return write_page(
        output / "report.html",
        "demo_report.html",
        title="DMAE demo",
        gallery_size=metrics["after"]["gallery_size"],
        columns=list(COLUMNS.values()),
        tables=[_table(metrics, direction, title) for direction, title in DIRECTIONS.items()],
        near_misses=metrics["near_miss"],
        curves=data_uri(curves.read_bytes(), "image/png") if curves.exists() else None,
        answers=[_answer(answer, split, by_id) for answer in answers],
    )


def _table(metrics: dict, direction: str, title: str) -> dict:
    rows = [
        {
            "label": label,
            "strong": row == "after",
            "numbers": [_number(name, metrics[row][f"{direction}_{name}"]) for name in COLUMNS],
        }
        for row, label in ROWS.items()
    ]
    return {"title": title, "rows": rows}


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name.startswith("R@") else f"{value:.1f}"


def _answer(answer: dict, split: Path, by_id: dict[str, dict]) -> dict:
    cards = []
    for rank, result in enumerate(answer["results"], start=1):
        found, asked = by_id[result["video_id"]], answer["row"]
        near = {miss["video_id"]: miss["attribute"] for miss in asked["near_misses"]}
        differs = near.get(found["video_id"])
        border = "right" if found["video_id"] == asked["video_id"] else "near" if differs else None
        note = {"right": "the right one", "near": f"near miss: {differs}", None: ""}[border]
        clip = data_uri((split / Path(result["path"]).name).read_bytes(), "video/mp4")
        label = f"{rank}. score {result['score']:.3f}"
        cards.append(card(label, clip, border=border, note=note, caption=found["captions"][0]))
    return {"query": answer["query"], "cards": cards}

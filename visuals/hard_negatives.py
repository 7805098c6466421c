"""The wrong pairs a model finds hardest, as a page on which they play, and people's judgement of them.

pairs = hard_negatives(similarities, gold, items, captions)
Path("report.html").write_text(report_page(pairs, items, frame_sampler))   # judge there, export CSV
write_csv(pairs, "pairs.csv")                                              # or judge in a spreadsheet

python -m dmae.visuals.hard_negatives judged_by_anna.csv judged_by_ben.csv   # agreement
"""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from dmae.inference.embedding import item_path
from dmae.visuals.pages import EMBED_BYTES, data_uri, render
from dmae.visuals.pictures import Strips

PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}
VERDICTS = {"wrong": "really wrong", "right": "also right", "unsure": "cannot tell"}


@dataclass
class HardNegative:
    """A caption, its own video, and a wrong one that scores as high or nearly. margin = wrong score − right score."""

    caption: str
    right_video: str
    wrong_video: str
    right_score: float
    wrong_score: float
    margin: float
    differs_in: str = ""
    verdict: str = ""


def hard_negatives(
    similarities: np.ndarray,
    gold: np.ndarray,
    items: Sequence[dict],
    captions: Sequence[str],
    limit: int = 30,
    differs_in: Callable[[str, str], str | None] | None = None,
) -> list[HardNegative]:
    """The `limit` captions whose best wrong video gains most on the right one, hardest first (ties: caption order).

    similarities (texts, videos); differs_in(right id, wrong id) says what is known to differ, e.g. the attribute of a
    near miss. Raises ValueError where there is no wrong video.
    """
    if similarities.shape != (len(captions), len(items)) or len(items) < 2:
        raise ValueError(
            f"similarities are {similarities.shape}; they must be ({len(captions)} captions, {len(items)} videos), and "
            "two videos at least"
        )
    rows = np.arange(len(captions))
    right = similarities[rows, gold]
    wrong = np.array(similarities, dtype=np.float64)
    wrong[rows, gold] = -np.inf
    best = wrong.argmax(1)
    margins = wrong[rows, best] - right
    pairs = []
    for row in map(int, np.argsort(-margins, kind="stable")[:limit]):
        ids = items[int(gold[row])]["video_id"], items[int(best[row])]["video_id"]
        known = (differs_in(*ids) if differs_in else None) or ""
        scores = float(right[row]), float(wrong[row, best[row]]), float(margins[row])
        pairs.append(HardNegative(captions[row], *ids, *scores, known))
    return pairs


def report_page(pairs: Sequence[HardNegative], items: Sequence[dict], frame_sampler) -> str:
    """One HTML page: both videos play, three buttons ask for a verdict, "Export CSV" writes what `read_csv` reads."""
    by_id, strips = {item["video_id"]: number for number, item in enumerate(items)}, Strips(items, frame_sampler, 4)
    shown = []
    for pair in pairs:
        cards = [
            {
                "right": right,
                "label": label,
                "score": score,
                "video_id": video_id,
                "src": _playable(items[by_id[video_id]]),
                "pictures": strips[by_id[video_id]],
            }
            for video_id, right, label, score in (
                (pair.right_video, True, "its own", pair.right_score),
                (pair.wrong_video, False, "the model's", pair.wrong_score),
            )
        ]
        shown.append(asdict(pair) | {"cards": cards})
    data = [asdict(pair) for pair in pairs]
    title = "Hardest wrong matches"
    return render("hard_negatives.html", title=title, pairs=shown, data=data, verdicts=VERDICTS)


def _playable(item: dict) -> str | None:
    """The clip as a `src` where a browser can play it; larger ones are linked, so that a browser opens the page."""
    path = Path(item_path(item))
    kind = PLAYABLE.get(path.suffix.lower())
    if kind is None:
        return None
    span = "" if item.get("start") is None else f"#t={item['start']},{item.get('end') or ''}"
    small = path.stat().st_size <= EMBED_BYTES
    return (data_uri(path.read_bytes(), kind) if small else path.resolve().as_uri()) + span


def write_csv(pairs: Sequence[HardNegative], path: str | Path) -> None:
    """One row per pair; the column `verdict` is for the judge: wrong, right or unsure."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(HardNegative)])
        writer.writeheader()
        writer.writerows(asdict(pair) for pair in pairs)


def read_csv(path: str | Path) -> list[HardNegative]:
    """What `write_csv` or the page exported. ValueError names the line of an unknown verdict or a missing column."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = []
    for line, row in enumerate(rows, start=2):
        row = {name: value for name, value in row.items() if name}
        row["verdict"] = (row.get("verdict") or "").strip().lower()
        if row["verdict"] not in ("", *VERDICTS):
            raise ValueError(
                f"{path}, line {line}: verdict {row['verdict']!r} is none of {', '.join(VERDICTS)}, or empty"
            )
        try:
            numbers = {name: float(row[name]) for name in ("right_score", "wrong_score", "margin")}
            pairs.append(HardNegative(**{**row, **numbers}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: not a pair of this report ({error})") from error
    return pairs


def agreement(judgements: Sequence[Sequence[HardNegative]]) -> dict[str, float | int | None]:
    """What one or more judges say of the same pairs.

    judged: pairs with at least one verdict. really_wrong, also_right: shares of all decided verdicts (unsure is left
    out). agreement: share of agreeing pairs of judges, over pairs judged twice or more; kappa: Fleiss' kappa of those,
    (agreement − chance) / (1 − chance); both None with fewer than two judges, kappa also where chance is certain.
    """
    verdicts: dict[tuple, list[str]] = {}
    for judge in judgements:
        for pair in judge:
            if pair.verdict:
                verdicts.setdefault((pair.caption, pair.right_video, pair.wrong_video), []).append(pair.verdict)
    decided = [verdict for given in verdicts.values() for verdict in given if verdict != "unsure"]
    twice = [given for given in verdicts.values() if len(given) > 1]
    result = {
        "judged": len(verdicts),
        "really_wrong": decided.count("wrong") / len(decided) if decided else None,
        "also_right": decided.count("right") / len(decided) if decided else None,
        "agreement": None,
        "kappa": None,
    }
    if twice:
        counts = np.array([[given.count(verdict) for verdict in VERDICTS] for given in twice], dtype=float)
        judges = counts.sum(1)
        observed = float((((counts**2).sum(1) - judges) / (judges * (judges - 1))).mean())
        chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
        result["agreement"], result["kappa"] = observed, (observed - chance) / (1 - chance) if chance < 1 else None
    return result


if __name__ == "__main__":
    print(json.dumps(agreement([read_csv(path) for path in sys.argv[1:]]), indent=2))

"""What merging costs is told from pairs of runs of one block, at rates that validation chose."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import token_merging as study


def run_of(merge: int, block: tuple[int, int], score: float, tested: float = 0.0) -> dict:
    ways = ("text_to_video_rsum", "video_to_text_rsum")
    row = {"merge_tokens": merge, "checkpoint": block[0], "seed": block[1], "test": dict.fromkeys(ways, score)}
    return row if merge else row | {"test_merging": {str(m): dict.fromkeys(ways, tested - m) for m in (4, 8)}}


def test_effects_pair_runs_of_one_block():
    blocks = [(0, 0), (1, 0), (0, 1)]
    rows = [run_of(0, block, 80.0 + 9 * i, 70.0 + 9 * i) for i, block in enumerate(blocks)]
    rows += [run_of(4, block, 81.0 + 9 * i) for i, block in reversed([*enumerate(blocks)])]
    rows += [run_of(8, (5, 5), 1.0), run_of(8, (0, 0), 78.0)]  # a block without its other half, and one block alone
    found = {(row["merge_tokens"], row["how"], row["metric"]): row for row in study.effects(rows)}
    assert {key[:2] for key in found} == {(4, "trained so"), (4, "merged at test alone"), (8, "merged at test alone")}
    trained, tested = (found[4, how, "text_to_video_rsum"] for how in ("trained so", "merged at test alone"))
    assert (trained["effect"], trained["low"], trained["high"], trained["blocks"]) == (1.0, 1.0, 1.0, 3)
    assert tested["effect"] == pytest.approx(-14.0) and tested["without"] == pytest.approx(89.0)


def test_a_rate_is_chosen_by_validation_over_all_checkpoints_tried():
    scores = {3e-4: (50.0, 50.0), 1e-3: (90.0, 5.0)}
    tuning = [
        {"merge_tokens": merge, "rate": rate, "checkpoint": number, "validation_rsum": value * (-1 if merge else 1)}
        for merge in study.MERGES
        for rate, values in scores.items()
        for number, value in enumerate(values)
    ]
    assert study.chosen_rates(tuning) == {0: 3e-4, 4: 1e-3, 8: 1e-3}

"""The study's arithmetic: what tuning chose, contrasts of the factorial with intervals, Holm's correction, power.

The unit of analysis is a block: one checkpoint with one seed, in which every row sees the same batches and the same
initial weights of what is new. An effect is estimated within each block and its interval is Student's t over blocks.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from evidence_design import GRID, SWITCHES, Settings
from scipy import stats

RSUM = ("text_to_video_rsum", "video_to_text_rsum")


@dataclass(frozen=True)
class Effect:
    """A mean over blocks with its 95 % interval, p against 0, and the effect that would be seen with 80 % power."""

    effect: float
    low: float
    high: float
    p: float
    smallest_detectable: float
    sd: float
    blocks: int


def estimate(values, alpha: float = 0.05, power: float = 0.8) -> Effect:
    """From one value a block. Two blocks are the least that give an interval."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"{len(values)} block gives no interval; run more seeds or checkpoints")
    n, sd = len(values), float(values.std(ddof=1))
    error = sd / np.sqrt(n)
    quantile = float(stats.t.ppf(1 - alpha / 2, n - 1))
    p = float(stats.ttest_1samp(values, 0).pvalue) if sd else 1.0
    mean = float(values.mean())
    detectable = (quantile + float(stats.t.ppf(power, n - 1))) * error
    return Effect(mean, mean - quantile * error, mean + quantile * error, p, detectable, sd, n)


def next_block(values, alpha: float = 0.05) -> tuple[float, float]:
    """Where the value of one more block lies with 95 %: mean ± t·sd·√(1 + 1/n). Two blocks are the least."""
    known = estimate(values, alpha)
    reach = float(stats.t.ppf(1 - alpha / 2, known.blocks - 1)) * known.sd * np.sqrt(1 + 1 / known.blocks)
    return known.effect - reach, known.effect + reach


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down: p adjusted for the family of all that are given."""
    ordered, adjusted, highest = sorted(p_values, key=p_values.get), {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def blocks_of(lines: list[dict]) -> dict[tuple[int, int], dict[str, dict]]:
    """{(checkpoint, seed): {row: metrics}}."""
    blocks: dict = {}
    for line in lines:
        blocks.setdefault((line["checkpoint"], line["seed"]), {})[line["row"]] = line["metrics"]
    return blocks


def contrast_of(switches: tuple[str, ...]):
    """The weight of a cell in a main effect or an interaction: the mean of cells with an even number of them off,
    minus the mean of the others. An interaction of two: half the change of one's effect by the other.
    """

    def weight(factors: dict[str, bool]) -> float:
        return float(np.prod([1.0 if factors[name] else -1.0 for name in switches])) / 8

    return weight


def factorial_effects(lines: list[dict], value) -> dict[str, Effect]:
    """Main effects and two-way interactions over the complete blocks. `value`: metrics -> number."""
    factors = {line["row"]: line["factors"] for line in lines}
    complete = [cells for cells in blocks_of(lines).values() if len(cells) == 2 ** len(SWITCHES)]
    names = [*((name,) for name in SWITCHES), *combinations(SWITCHES, 2)]
    effects = {}
    for switches in names:
        weight = contrast_of(switches)
        sums = [sum(weight(factors[row]) * value(metrics) for row, metrics in cells.items()) for cells in complete]
        effects[" x ".join(switches)] = estimate(sums)
    return effects


def paired_gaps(lines: list[dict], row: str, base: str, value) -> dict[tuple[int, int], float]:
    """{block: row - base} of the blocks that have both."""
    return {k: value(b[row]) - value(b[base]) for k, b in blocks_of(lines).items() if row in b and base in b}


def paired_effect(lines: list[dict], row: str, base: str, value) -> Effect | None:
    """row - base over the blocks that have both; None with fewer than two such blocks."""
    gaps = paired_gaps(lines, row, base, value)
    return estimate(list(gaps.values())) if len(gaps) > 1 else None


def growth(first: dict[tuple[int, int], float], last: dict[tuple[int, int], float]) -> Effect | None:
    """By how much an effect grows between two worlds, over the blocks that were run in both."""
    both = [last[block] - first[block] for block in first.keys() & last.keys()]
    return estimate(both) if len(both) > 1 else None


def shown(effect: Effect | None) -> str:
    return "not run" if effect is None else f"{effect.effect:+.2f} ({effect.low:+.2f} to {effect.high:+.2f})"


def chosen_settings(tuning: list[dict], factors: dict[str, dict[str, bool]]) -> dict[str, Settings]:
    """For each row the setting of the grid that a regression over all tuning runs predicts to be best on validation.

    The mean of both directions' rsum = switches + setting + setting x each switch: a single run has an error of some
    rsum, and the regression lends every row the runs of rows that share its switches.
    """

    def features(switches: dict[str, bool], setting: int) -> np.ndarray:
        place = np.eye(len(GRID))[setting]
        signs = np.array([1.0 if switches[name] else -1.0 for name in SWITCHES])
        return np.concatenate([place, np.outer(signs, place).ravel()])

    design = np.array([features(line["factors"], setting_of(line)) for line in tuning])
    target = np.array([np.mean([line["metrics"][name] for name in RSUM]) for line in tuning])
    weights = np.linalg.lstsq(design, target, rcond=None)[0]
    return {
        row: GRID[int(np.argmax([features(switches, k) @ weights for k in range(len(GRID))]))]
        for row, switches in factors.items()
    }


def setting_of(line: dict) -> int:
    """The place in the grid of a tuning run's settings."""
    own = Settings(*(line["settings"][name] for name in ("start_scale", "tower_rate", "new_rate")))
    return GRID.index(own)

"""The study's figures: effects with their intervals, and effects against their premises."""

import textwrap
from pathlib import Path

from evidence_design import DIALS, NAMES
from evidence_stats import RSUM, Effect
from matplotlib.figure import Figure

T2V, V2T = RSUM
WAYS = ((T2V, "#1d3fbb", "text→video"), (V2T, "#d0621b", "video→text"))


def spelled(name: str) -> str:
    """An effect's name in words."""
    return " x ".join(NAMES[part] for part in name.split(" x "))


def plot_effects(effects: dict[str, dict[str, Effect]], docs: Path) -> None:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    names = list(effects[T2V])[::-1]
    for offset, (way, colour, label) in zip((0.13, -0.13), WAYS):
        for place, name in enumerate(names):
            one = effects[way][name]
            axes.errorbar(
                one.effect, place + offset, xerr=one.high - one.effect, fmt="o", color=colour, capsize=3, markersize=4,
                label=label if place == 0 else None,
            )  # fmt: skip
    axes.axvline(0, color="#888", linewidth=0.8)
    axes.set_yticks(range(len(names)), [spelled(name) for name in names])
    axes.set_xlabel("effect on rsum, 95 % interval")
    axes.legend(frameon=False)
    save(figure, docs, "evidence_effects")


def plot_dials(curves: dict[str, list], docs: Path) -> None:
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, points) in zip(panels, curves.items()):
        for place, (_, colour, label) in enumerate(WAYS):
            levels, found = [point[0] for point in points], [point[1 + place] for point in points]
            reach = [effect.high - effect.effect for effect in found]
            axes.errorbar(
                levels, [e.effect for e in found], yerr=reach, marker="o", color=colour, capsize=3, label=label
            )
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.set_title(textwrap.fill(DIALS[name].title, 34), fontsize=9)
        axes.set_xlabel(textwrap.fill(DIALS[name].axis, 38), fontsize=9)  # a longer line would be cut off
        axes.set_ylabel("effect on rsum", fontsize=9)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, docs, "evidence_dials")


def save(figure, docs: Path, name: str) -> None:
    (docs / "images").mkdir(exist_ok=True)
    figure.savefig(docs / "images" / f"{name}.png", dpi=110, metadata={"Software": None})

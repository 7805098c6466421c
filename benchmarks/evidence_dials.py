"""The report's dials: each part's effect against its premise, and every part in one line."""

from pathlib import Path

from evidence_design import DIALS, NAMES, SWITCHES, Dial, in_factorial
from evidence_figures import T2V, V2T, plot_dials
from evidence_stats import Effect, estimate, growth, paired_gaps, shown

Gaps = dict[tuple[int, int], float]  # {(checkpoint, seed): row - base}


def gaps_of(name: str, parts: dict[str, list[dict]]) -> dict[float, dict[str, Gaps]]:
    """{level: {metric: gaps}} of a dial, where two blocks or more have both rows."""
    dial, found = DIALS[name], {}
    for level, changes, model in dial.levels:
        shared = [row for row in (dial.base, dial.row) if in_factorial(row, changes, model)]
        own = [line for line in parts[name] if line["level"] == level]
        own += [line for line in parts["factorial"] if line["row"] in shared]
        gaps = {metric: paired_gaps(own, dial.row, dial.base, lambda m, key=metric: m[key]) for metric in (T2V, V2T)}
        if len(gaps[T2V]) > 1:
            found[level] = gaps
    return found


def changes_of(found: dict[float, dict[str, Gaps]], dial: Dial) -> list[Effect | None]:
    """By how much the effect grows from the dial's first level to its last, in both directions."""
    first, last = (dial.levels[end][0] for end in (0, -1))
    if first not in found or last not in found:
        return [None, None]
    return [growth(found[first][metric], found[last][metric]) for metric in (T2V, V2T)]


def dials(parts: dict[str, list[dict]], docs: Path) -> str:
    points = ["| dial | at | t→v rsum | v→t rsum | blocks |", "| --- | --- | --- | --- | --- |"]
    ends = ["| dial | from, to | change of the effect t→v | v→t | blocks in both |", "| --- | --- | --- | --- | --- |"]
    curves, left = {}, []
    for name, dial in DIALS.items():
        found = gaps_of(name, parts)
        curve = [(at, *(estimate(list(gaps[m].values())) for m in (T2V, V2T))) for at, gaps in found.items()]
        points += [f"| {dial.title} | {at:g} | {shown(a)} | {shown(b)} | {a.blocks} |" for at, a, b in curve]
        left += [f"{dial.axis} {level:g}" for level, _, _ in dial.levels if level not in found]
        if len(curve) > 1:
            curves[name] = curve
        one, other = changes_of(found, dial)
        if one is not None:
            span = f"{dial.levels[0][0]:g}, {dial.levels[-1][0]:g}"
            ends.append(f"| {dial.title} | {span} | {shown(one)} | {shown(other)} | {one.blocks} |")
    if not curves:
        return "## Dials\n\nNot run yet (`--dials`)."
    plot_dials(curves, docs)
    note = f"\n\nNot run: {', '.join(left)} (`--dials`)." if left else ""
    return (
        "## Dials: each part against its premise\n\nOne premise is turned while all else stays as above; each point is "
        "a row minus the baseline in a world of its own. Not corrected for their number.\n\n"
        + "\n".join(points)
        + f"{note}\n\nWhether an effect follows its premise is read within blocks, from the dial's one end to the "
        "other:\n\n" + "\n".join(ends) + "\n\n![Effect against premise](images/evidence_dials.png)"
    )


def glance(effects: dict[str, dict[str, Effect]], parts: dict[str, list[dict]]) -> str:
    """Every part: effect, interval, power, and whether its effect follows its premise."""
    rows = [
        "| part | t→v rsum | v→t rsum | smallest detectable | its dial: change of the effect t→v, v→t |",
        "| --- | --- | --- | --- | --- |",
    ]
    for switch in SWITCHES:
        one, other = effects[T2V][switch], effects[V2T][switch]
        said = []
        for name, dial in DIALS.items():
            if dial.row == switch:
                change = ", ".join(map(shown, changes_of(gaps_of(name, parts), dial)))
                said.append(f"{dial.axis} {dial.levels[0][0]:g} to {dial.levels[-1][0]:g}: {change}")
        rows.append(
            f"| {NAMES[switch]} | {shown(one)} | {shown(other)} | {one.smallest_detectable:.2f}, "
            f"{other.smallest_detectable:.2f} | {'; '.join(said)} |"
        )
    return "## Each part in a line\n\nThe tables below say how each number was made.\n\n" + "\n".join(rows)

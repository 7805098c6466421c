"""The report's further tables: before fine-tuning, near misses, the paper's tables, forms, tuning."""

from collections import Counter
from dataclasses import asdict

import numpy as np
from evidence_design import AGAINST, CELLS, GRID, MEMORIES, NAMES, SWITCHES
from evidence_stats import RSUM, chosen_settings, factorial_effects, paired_effect, shown

T2V, V2T = RSUM
PLUS = "negnce+ta"
ATTRIBUTES = ("object", "colour", "texture", "motion", "place", "order")
PAPER = {  # rsum, MSR-VTT, CLIP ViT-B/16; one run each
    "table 5": [
        ("baseline", "baseline", 207.8),
        ("+NegNCE", "negnce", 209.0),
        ("+NegNCE+TA", "negnce+ta", 209.5),
        ("+NegNCE+VA", "negnce+va", 210.2),
        ("+NegNCE+TA+VA", "negnce+ta+va", 210.9),
    ],
    "table 6": [
        ("baseline", "baseline", 207.8),
        ("γ2 = 0", "gamma2=0.0", 209.6),
        ("γ2 = 0.3", "gamma2=0.3", 209.9),
        ("γ2 = 0.5", "negnce+ta+va", 210.9),
        ("γ2 = 0.7", "gamma2=0.7", 209.6),
    ],
    "table 7": [
        ("baseline", "baseline", 207.8),
        ("+TPM-CL", "tpm", 210.6),
        ("+DMAE+TPM-CL", "negnce+ta+va+tpm", 212.2),
    ],
    "table 8": [
        ("baseline", "baseline", 207.8),
        ("τ = 0.2, δ = 0.2", "tau=0.2,delta=0.2", 208.6),
        ("τ = 0.6, δ = 0.2", "tau=0.6,delta=0.2", 210.1),
        ("τ = 0.9, δ = 0.2", "tau=0.9,delta=0.2", 209.3),
        ("τ = 0.6, δ = 0.6", "negnce+ta+va+tpm", 212.2),
        ("τ = 0.6, δ = 1.0", "tau=0.6,delta=1.0", 209.6),
    ],
}


FORMS = [row for row in AGAINST if row not in {name for rows in PAPER.values() for _, name, _ in rows}]
UNCORRECTED = len(ATTRIBUTES) * len(SWITCHES) + sum(len(rows) - 1 for rows in PAPER.values()) + 2 * len(FORMS)


def untuned(lines: list[dict]) -> str:
    """What the attentions do to scores before anything is trained."""
    if not lines:
        return "## Before fine-tuning\n\nNot run (`--untuned`)."
    said = [
        f"{NAMES[row]} {shown(paired_effect(lines, row, 'baseline', lambda m: m[T2V]))} t→v, "
        f"{shown(paired_effect(lines, row, 'baseline', lambda m: m[V2T]))} v→t"
        for row in ("ta", "va")
    ]
    level = [np.mean([line["metrics"][name] for line in lines if line["row"] == "baseline"]) for name in (T2V, V2T)]
    return (
        "## Before fine-tuning\n\nThe checkpoints' own towers with token interaction, nothing trained, on validation: "
        "the baseline has "
        f"{level[0]:.1f} and {level[1]:.1f}; {'; '.join(said)}."
    )


def near_misses(lines: list[dict]) -> str:
    rows = [
        f"| pairs told apart, percent | baseline | {' | '.join(NAMES[name] for name in SWITCHES)} |",
        "| --- |" + " --- |" * (1 + len(SWITCHES)),
    ]
    for attribute in ATTRIBUTES:
        key = f"near_miss_{attribute}"
        effects = factorial_effects(lines, lambda m, key=key: m[key])
        base = np.mean([line["metrics"][key] for line in lines if line["row"] == "baseline"])
        rows.append(f"| {attribute} | {base:.1f} | {' | '.join(shown(effects[name]) for name in SWITCHES)} |")
    return (
        "## Near misses by attribute\n\nPairs of videos that differ in one attribute: how often a caption scores its "
        "own video higher (50 is chance), and each switch's main effect on that. Not corrected for their number.\n\n"
        + "\n".join(rows)
    )


def paper_tables(lines: list[dict]) -> str:
    parts = ["## The paper's tables\n\nDifferences to the baseline in t→v rsum, over the blocks that have both rows."]
    for table, rows in PAPER.items():
        found = [f"| {table} | here | the paper (one run) |", "| --- | --- | --- |"]
        for title, row, printed in rows[1:]:
            effect = paired_effect(lines, row, "baseline", lambda m: m[T2V])
            found.append(f"| {title} | {shown(effect)} | {printed - rows[0][2]:+.1f} |")
        parts.append("\n".join(found))
    best = [paired_effect(lines, PLUS, "+".join(SWITCHES), lambda m, name=name: m[name]) for name in (T2V, V2T)]
    parts.append(
        f"NegNCE and textual attention alone (`dmae_plus`) against all parts as printed: {shown(best[0])} "
        f"t→v and {shown(best[1])} v→t."
    )
    return "\n\n".join(parts)


def forms(parts: dict[str, list[dict]]) -> str:
    lines = parts["factorial"] + parts["forms"]
    rows = [
        "| form | against | t→v rsum | v→t rsum | smallest detectable | blocks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    left = []
    for row in FORMS:
        base = AGAINST[row]
        one, other = (paired_effect(lines, row, base, lambda m, name=name: m[name]) for name in (T2V, V2T))
        if one is None:
            left.append(row)
            continue
        rows.append(
            f"| {row} | {base} | {shown(one)} | {shown(other)} | {one.smallest_detectable:.2f} | {one.blocks} |"
        )
    note = f"\n\nNot run: {', '.join(left)} (`--forms`)." if left else ""
    return (
        "## Forms that the paper leaves open, and beyond it\n\nEach form with the settings of the row in its second "
        "column, which favours that row. Not corrected for their number.\n\n" + "\n".join(rows) + note
    )


def cosines(lines: list[dict]) -> str:
    """How alike matches and others are at the last step of the rows with a memory."""
    said = []
    for row in MEMORIES:
        last = [line["last_step"] for line in lines if line["row"] == row and "matches" in line["last_step"]]
        if last:
            pair = [np.mean([step[name] for step in last]) for name in ("matches", "others")]
            said.append(f"{row} {pair[0]:.3f} and {pair[1]:.3f}")
    return f"similarity of matches and of others in the last batch: {'; '.join(said)}" if said else "not run"


def tuning(lines: list[dict]) -> str:
    chosen = chosen_settings(lines, {row.name: row.factors for row in CELLS})
    rows = [
        "| start scale | towers' rate | rate of what is new | mean rsum of 8 rows on validation |",
        "| --- | --- | --- | --- |",
    ]
    for settings in GRID:
        own = [
            (line["metrics"][T2V] + line["metrics"][V2T]) / 2
            for line in lines
            if all(line["settings"][name] == value for name, value in asdict(settings).items())
        ]
        rows.append(
            f"| {settings.start_scale:g} | {settings.tower_rate:g} | {settings.new_rate:g} | {np.mean(own):.1f} |"
        )
    counts = Counter(chosen.values())
    listed = "; ".join(
        f"start scale {settings.start_scale:g}, towers {settings.tower_rate:g}: "
        + ", ".join(row for row, own in chosen.items() if own == settings)
        for settings in counts
    )
    return (
        f"## Tuning\n\n{len(lines)} runs on validation, checkpoint 0, a seed that no other run uses: half of the 16 "
        "rows, with an even number of switches on, each with every setting below. A regression (switches + setting + "
        f"setting x switch) picks every row's setting from these same runs.\n\n"
        + "\n".join(rows)
        + f"\n\nChosen: {listed}."
    )

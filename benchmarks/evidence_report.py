"""docs/evidence.md, its figures and effects.json from the lines of benchmarks/results/evidence.jsonl."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from evidence_design import AGAINST, CELLS, DIALS, GRID, NAMES, SWITCHES, WORLD, in_factorial
from evidence_figures import T2V, V2T, plot_dials, plot_effects, spelled
from evidence_stats import Effect, blocks_of, chosen_settings, estimate, factorial_effects, holm, paired_effect

from dmae.data.moving_objects.vocabulary import OBJECTS

CONCLUSIONS = Path(__file__).with_name("evidence_conclusions.md")  # what is concluded, true of the tables above it
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


def write_report(results: Path, docs: Path, preset: str = "cpu") -> Path:
    """Write the page, its figures and effects.json beside the results. SystemExit before the test split is read."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["preset"] == preset]
    parts = {
        part: [line for line in lines if line["part"] == part]
        for part in ("tuning", "untuned", "factorial", "forms", *DIALS)
    }
    if not parts["factorial"]:
        raise SystemExit(f"{results} holds no test scores of preset {preset!r}: run --factorial and --read-test first")
    effects = {name: factorial_effects(parts["factorial"], lambda m, name=name: m[name]) for name in (T2V, V2T)}
    (results.parent / "effects.json").write_text(json.dumps(effects_file(effects), indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(
        [
            head(lines, parts),
            main_effects(parts["factorial"], effects, docs),
            untuned(parts["untuned"]),
            near_misses(parts["factorial"]),
            paper_tables(parts["factorial"] + parts["forms"]),
            forms(parts),
            dials(parts, docs),
            tuning(parts["tuning"]),
            CONCLUSIONS.read_text(encoding="utf-8").strip(),
        ]
    )
    target = docs / "evidence.md"
    target.write_text(text + "\n", encoding="utf-8")
    return target


def effects_file(effects: dict[str, dict[str, Effect]]) -> dict:
    """{factor: effect, low, high, smallest_detectable, ...} in text-to-video rsum, the other direction within."""
    p = adjusted(effects)
    return {
        name: {
            **asdict(effect),
            "p_holm": p[T2V, name],
            "video_to_text": {**asdict(effects[V2T][name]), "p_holm": p[V2T, name]},
        }
        for name, effect in effects[T2V].items()
    }


def adjusted(effects: dict[str, dict[str, Effect]]) -> dict[tuple[str, str], float]:
    """Holm's p over one family: every main effect and interaction, in both directions."""
    flat = {(way, name): effect.p for way, found in effects.items() for name, effect in found.items()}
    return holm(flat)


def shown(effect: Effect | None) -> str:
    return "not run" if effect is None else f"{effect.effect:+.2f} ({effect.low:+.2f} to {effect.high:+.2f})"


def head(lines: list[dict], parts: dict[str, list[dict]]) -> str:
    blocks = blocks_of(parts["factorial"])
    whole = [block for block, cells in blocks.items() if len(cells) == len(CELLS)]
    seconds = sum(sum(line["cpu_seconds"].values()) for line in lines)
    counts = ", ".join(f"{part} {len(found)}" for part, found in parts.items() if found)
    machines = ", ".join(sorted({line["machine"] for line in lines}))
    return f"""# Evidence

What each part of the method is worth, in a generated world in which the premises of each part are present and can be
turned. Every number is computed from `benchmarks/results/evidence.jsonl` by `python benchmarks/evidence.py --report`:
{len(lines)} runs ({counts}), {seconds / 60:.0f} CPU minutes on {machines}.

- **World.** MovingObjects (`data/moving_objects/`): clips of {len(OBJECTS)} kinds of things with colours, textures and
  motions, one or two at once, in one or two shots, with title cards between; captions tell part of it among filler.
  Every scene is unique, and a test caption is true of its own video alone. {WORLD.train} training clips;
  {WORLD.test_singles} single test videos and {WORLD.test_groups} groups of near misses by attribute.
- **Towers.** CLIP's architecture, 64 wide, pretrained contrastively on stills and captions of the same world, with the
  scale raised to CLIP's 100. Four checkpoints: they share their first steps, then each learned alone, and last saw a
  few clips with some of the switches on, each switch in two of the four. Fine-tuning trains the towers' last blocks and
  all that is new for five epochs; the blocks below are frozen.
- **Design.** All 16 combinations of NegNCE, textual attention (TA), visual attention (VA) and TPM-CL, each as printed
  (δ = τ = 0.6, γ = 1.0 and 0.5), in {len(whole)} complete blocks (a checkpoint with a seed); within a block every row
  sees the same batches and starts from the same weights. Learning rate and start scale of each row were chosen on
  validation; the test split was read once, after that.
- **Units.** rsum is R@1 + R@5 + R@10 in percent, as in the paper. Intervals are 95 %, Student's t over blocks.
  *Smallest detectable* is the effect that such a study finds with 80 % power. p is Holm's, over the 20 effects of both
  directions.

What it says is about this world and towers of this size, not about natural video."""


def main_effects(lines: list[dict], effects: dict[str, dict[str, Effect]], docs: Path) -> str:
    p = adjusted(effects)
    log_rank = {
        way: factorial_effects(lines, lambda m, way=way: m[f"{way}_log_rank"])
        for way in ("text_to_video", "video_to_text")
    }
    rows = [
        "| effect | t→v rsum | p | v→t rsum | p | smallest detectable t→v, v→t | mean log-rank t→v, v→t |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in effects[T2V]:
        one, other = effects[T2V][name], effects[V2T][name]
        ranks = ", ".join(f"{log_rank[way][name].effect:+.3f}" for way in log_rank)
        rows.append(
            f"| {spelled(name)} | {shown(one)} | {p[T2V, name]:.3f} | {shown(other)} | {p[V2T, name]:.3f} | "
            f"{one.smallest_detectable:.2f}, {other.smallest_detectable:.2f} | {ranks} |"
        )
    said = "; ".join(verdict(NAMES[name], effects, p, name) for name in SWITCHES)
    clusters = "; ".join(f"{NAMES[name]} {over_checkpoints(lines, name)}" for name in SWITCHES)
    base = [cells["baseline"] for cells in blocks_of(lines).values() if "baseline" in cells]
    level = ", ".join(f"{np.mean([m[name] for m in base]):.1f}" for name in (T2V, V2T))
    plot_effects(effects, docs)
    return (
        "## Main effects and interactions\n\n"
        "An effect is the mean of the eight rows with a switch on minus the mean of the eight with it off. The "
        f"baseline's rsum is {level} (t→v, v→t). A negative change of the log-rank is better.\n\n"
        + "\n".join(rows)
        + f"\n\n{said}.\n\nThe same effects (t→v) with checkpoints, not blocks, as the unit, which is what another "
        f"set of towers would vary by: {clusters}.\n\n![Effects with intervals](images/evidence_effects.png)"
    )


def verdict(title: str, effects, p, name: str) -> str:
    """What a switch does, by both directions' corrected p and intervals."""
    words = []
    for way, short in ((T2V, "t→v"), (V2T, "v→t")):
        effect = effects[way][name]
        if p[way, name] < 0.05:
            words.append(f"{'helps' if effect.effect > 0 else 'costs'} {abs(effect.effect):.1f} {short}")
        else:
            words.append(f"no effect shown {short}")
    return f"**{title}**: {', '.join(words)}"


def over_checkpoints(lines: list[dict], name: str) -> str:
    checkpoints = sorted({line["checkpoint"] for line in lines})
    means = []
    for checkpoint in checkpoints:
        own = [line for line in lines if line["checkpoint"] == checkpoint]
        gaps = [on_minus_off(cells, own, name) for cells in blocks_of(own).values() if len(cells) == len(CELLS)]
        means += [float(np.mean(gaps))] if gaps else []
    return shown(estimate(means)) if len(means) > 1 else "not run"


def on_minus_off(cells: dict[str, dict], lines: list[dict], name: str) -> float:
    factors = {line["row"]: line["factors"] for line in lines}
    on = [m[T2V] for row, m in cells.items() if factors[row][name]]
    off = [m[T2V] for row, m in cells.items() if not factors[row][name]]
    return float(np.mean(on) - np.mean(off))


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
    for row, base in AGAINST.items():
        if row.startswith(("gamma2", "tau=0.2", "tau=0.9", "tau=0.6,delta=1", "tau=0.6,delta=0.2")):
            continue
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


def dials(parts: dict[str, list[dict]], docs: Path) -> str:
    rows = ["| dial | at | t→v rsum | v→t rsum | blocks |", "| --- | --- | --- | --- | --- |"]
    curves, left = {}, []
    for name, dial in DIALS.items():
        points = []
        for level, changes, model in dial.levels:
            shared = [row for row in (dial.base, dial.row) if in_factorial(row, changes, model)]
            own = [line for line in parts[name] if line["level"] == level]
            own += [line for line in parts["factorial"] if line["row"] in shared]
            pair = [paired_effect(own, dial.row, dial.base, lambda m, key=key: m[key]) for key in (T2V, V2T)]
            if pair[0] is None:
                left.append(f"{dial.axis} {level:g}")
                continue
            points.append((level, *pair))
            rows.append(f"| {dial.title} | {level:g} | {shown(pair[0])} | {shown(pair[1])} | {pair[0].blocks} |")
        if len(points) > 1:
            curves[name] = points
    if not curves:
        return "## Dials\n\nNot run yet (`--dials`)."
    plot_dials(curves, docs)
    note = f"\n\nNot run: {', '.join(left)} (`--dials`)." if left else ""
    return (
        "## Dials: each part against its premise\n\nOne premise is turned while all else stays as above; each point is "
        "a row minus the baseline in a world of its own. Not corrected for their number.\n\n"
        + "\n".join(rows)
        + f"{note}\n\n![Effect against premise](images/evidence_dials.png)"
    )


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

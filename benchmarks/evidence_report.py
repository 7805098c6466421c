"""docs/evidence.md, its figures and effects.json from the lines of benchmarks/results/evidence.jsonl."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from evidence_design import CELLS, DIALS, NAMES, SWITCHES, WORLD
from evidence_dials import dials, glance
from evidence_figures import T2V, V2T, plot_effects, spelled
from evidence_run import study_parameters
from evidence_stats import Effect, blocks_of, estimate, factorial_effects, holm, shown
from evidence_tables import UNCORRECTED, cosines, forms, near_misses, paper_tables, tuning, untuned

from dmae.data.moving_objects.vocabulary import OBJECTS

CONCLUSIONS = Path(__file__).with_name("evidence_conclusions.md")  # what is concluded, true of the tables above it


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
            glance(effects, parts),
            main_effects(parts["factorial"], effects, docs),
            untuned(parts["untuned"]),
            near_misses(parts["factorial"]),
            paper_tables(parts["factorial"] + parts["forms"]),
            forms(parts),
            dials(parts, docs),
            tuning(parts["tuning"]),
            CONCLUSIONS.read_text(encoding="utf-8").strip().replace("{{memory}}", cosines(parts["forms"])),
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


def head(lines: list[dict], parts: dict[str, list[dict]]) -> str:
    blocks = blocks_of(parts["factorial"])
    whole = [block for block, cells in blocks.items() if len(cells) == len(CELLS)]
    seconds = sum(sum(line["cpu_seconds"].values()) for line in lines)
    counts = ", ".join(f"{part} {len(found)}" for part, found in parts.items() if found)
    machines = ", ".join(sorted({line["machine"] for line in lines}))
    size, openings = study_parameters(), len({line["opened"] for line in lines if "opened" in line})
    uncorrected = UNCORRECTED + sum(2 * (len(dial.levels) + 1) for dial in DIALS.values())
    return f"""# Evidence

What each part of the method is worth, in a generated world in which the premises of each part are present and can be
turned. Every number is computed from `benchmarks/results/evidence.jsonl` by `python benchmarks/evidence.py --report`:
{len(lines)} runs ({counts}), {seconds / 60:.0f} CPU minutes on {machines}.

- **World.** MovingObjects (`data/moving_objects/`): clips of {len(OBJECTS)} kinds of things with colours, textures and
  motions, one or two at once, in one or two shots, with title cards between; captions tell part of it among filler.
  Every scene is unique, and a test caption is true of its own video alone. {WORLD.train} training clips;
  {WORLD.test_singles} single test videos and {WORLD.test_groups} groups of near misses by attribute.
- **Towers.** CLIP's architecture, 64 wide, {size["towers"]:,} parameters, pretrained contrastively on stills and
  captions of the same world, with the scale raised to CLIP's 100. Four checkpoints: they share their first steps, then
  each learned alone, and last saw a few clips with some of the switches on, each switch in two of the four. Fine-tuning
  trains the towers' last blocks and projections ({size["upper"]:,} parameters) and all that is new
  ({size["new"]:,} with every switch on) for five epochs; the blocks below are frozen.
- **Design.** All 16 combinations of NegNCE, textual attention (TA), visual attention (VA) and TPM-CL, each as printed
  (δ = τ = 0.6, γ = 1.0 and 0.5), in {len(whole)} complete blocks (a checkpoint with a seed); within a block every row
  sees the same batches and starts from the same weights. Learning rate and start scale of each row were chosen on
  validation, before any test score was opened; until then scores were sealed. They were opened in {openings} sittings,
  as blocks, forms and dials were added; nothing was chosen after the first.
- **Units.** rsum is R@1 + R@5 + R@10 in percent, as in the paper. Intervals are 95 %, Student's t over blocks.
  *Smallest detectable* is the effect that such a study finds with 80 % power. p is Holm's, over the 20 effects of both
  directions. The {uncorrected} comparisons of the other tables are not corrected for their number: of so many, one in
  twenty would leave 0 out by chance.

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
        found = [log_rank[way][name] for way in log_rank]
        ranks = ", ".join(f"{effect.effect:+.3f} ± {effect.high - effect.effect:.3f}" for effect in found)
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

"""What the study runs: the factorial's cells, tables and forms as rows, the dials, and the settings tried for tuning.

A row says what differs in the model; nothing else differs between rows but what tuning chose for them, each from the
same grid. A job is one run of a row: on a checkpoint, with a seed, in a world.
"""

from dataclasses import dataclass, field, replace
from itertools import product

from dmae.data.moving_objects.scenes import PRESETS, World

SWITCHES = ("negnce", "ta", "va", "tpm")
NAMES = {"negnce": "NegNCE", "ta": "textual attention", "va": "visual attention", "tpm": "TPM-CL"}
BASE = {
    "loss": "info_nce",
    "textual_attention": False,
    "visual_attention": False,
    "partial_order": False,
}
ON = {
    "negnce": {"loss": "neg_nce"},
    "ta": {"textual_attention": True},
    "va": {"visual_attention": True},
    "tpm": {"partial_order": True},
}
# Which switches were on while a checkpoint's towers first saw clips: each in half of the four, so that no row starts
# from towers that know only the baseline.
CHECKPOINT_SWITCHES = (("va",), ("ta", "tpm"), ("negnce", "tpm"), ("negnce", "ta", "va"))
SIZES = {"train": 576, "validation_groups": 30, "validation_singles": 150, "test_groups": 60, "test_singles": 240}
WORLD = replace(PRESETS["study"], size=48, **SIZES)


@dataclass(frozen=True)
class Row:
    """`model`: fields of DMAEConfig beside the study's. `tuned_as`: the row whose tuned settings it uses."""

    name: str
    model: tuple[tuple[str, object], ...]
    tuned_as: str
    form: str = "model"  # or another key of `evidence_forms.OBJECTIVES`

    @property
    def factors(self) -> dict[str, bool]:
        words = dict(self.model)
        return {name: all(words[key] == value for key, value in ON[name].items()) for name in SWITCHES}


def cell_name(on) -> str:
    return "+".join(name for name in SWITCHES if name in on) or "baseline"


def cell(*on: str, tuned_as: str | None = None, name: str | None = None, form: str = "model", **model) -> Row:
    """The row in which exactly these switches are on, with further fields of the model."""
    words = dict(BASE)
    for switch in on:
        words |= ON[switch]
    plain = cell_name(on)
    return Row(name or plain, tuple({**words, **model}.items()), tuned_as or plain, form)


CELLS = [cell(*(name for name, on in zip(SWITCHES, chosen) if on)) for chosen in product((False, True), repeat=4)]
ALL = SWITCHES
DMAE = ("negnce", "ta", "va")
MEMORIES = (
    "memory of 0",  # the loss of the row "negnce", by the code that has a memory
    "memory of 256",
    "memory, encoded anew",
    "memory, anchors alone",
    "memory, encoded anew, anchors alone",
)
ROWS = {
    row.name: row
    for row in [
        *CELLS,
        # Table 6: the weight of hard negatives, in the setting of Table 5's last row
        *(cell(*DMAE, name=f"gamma2={value}", negative_weight=value) for value in (0.0, 0.3, 0.7)),
        # Table 8: the mask ratio at delta .2, the margin at tau .6, in the setting of Table 7's last row
        *(cell(*ALL, name=f"tau={t},delta=0.2", mask_ratio=t, partial_margin=0.2) for t in (0.2, 0.6, 0.9)),
        *(cell(*ALL, name=f"tau=0.6,delta={d}", partial_margin=d) for d in (0.05, 1.0)),
        # forms
        cell("va", name="va halved", visual_scale="halved"),
        cell("va", name="va unit", visual_scale="unit"),
        cell("va", name="va authors", tuned_as="baseline", form="authors", visual_attention=False),
        cell("ta", name="ta linear", word_weighting="linear"),
        cell(name="pooled", similarity_form="pooled"),
        cell(name="wti", interaction="wti"),
        cell(name="mean pooling", interaction="mean"),
        cell("tpm", name="no mask gradient", mask_gradient="none"),
        # beyond the paper
        cell("tpm", name="margin schedule", margin_schedule="linear"),
        *(cell("negnce", name=name, form=name) for name in MEMORIES),
    ]
}
AGAINST = {  # what a row that is no cell is compared with
    "va halved": "va",
    "va unit": "va",
    "va authors": "baseline",
    "ta linear": "ta",
    "pooled": "baseline",
    **{name: "negnce+ta+va" for name in ROWS if name.startswith("gamma2")},
    **{name: "negnce+ta+va+tpm" for name in ROWS if name.startswith("tau=")},
    "wti": "baseline",
    "mean pooling": "baseline",
    "no mask gradient": "tpm",
    "margin schedule": "tpm",
    **dict.fromkeys(MEMORIES, "negnce"),
}


@dataclass(frozen=True)
class Dial:
    """One premise turned from absent to strong: `levels` are worlds (or model settings), the effect is row - base."""

    title: str
    row: str
    base: str
    axis: str
    levels: tuple[tuple[float, dict, dict], ...]  # (position, fields of World, fields of the model for both rows)


def shots(count: int) -> dict:
    return {"shots": tuple(float(number == count) for number in range(1, count + 1))}


DIALS = {
    "margin": Dial(
        "TPM-CL against its margin",
        "tpm",
        "baseline",
        "δ",
        tuple((value, {}, {"partial_margin": value}) for value in (0.02, 0.05, 0.2, 0.6)),
    ),
    "shots": Dial(
        "Visual attention against shots per clip",
        "va",
        "baseline",
        "shots per clip",
        tuple((count, shots(count), {}) for count in (1, 2, 3)),
    ),
    "near_misses": Dial(
        "NegNCE against near misses in the batch",
        "negnce",
        "baseline",
        "share of training videos in families of near misses",
        tuple((value, {"near_misses": value}, {}) for value in (0.0, 0.25, 1.0)),
    ),
    "filler": Dial(
        "Textual attention against filler",
        "ta",
        "baseline",
        "chance of filler words",
        tuple((value, {"filler": value}, {}) for value in (0.0, 0.4, 0.9)),
    ),
    "irrelevant": Dial(
        "Visual attention against irrelevant frames (one shot)",
        "va",
        "baseline",
        "share of irrelevant frames",
        tuple((value, {**shots(1), "irrelevant": value}, {}) for value in (0.0, 0.5)),
    ),
}


def in_factorial(row: str, changes: dict, model: dict) -> bool:
    """Whether a dial's run is one of the factorial's own: the study's world, and nothing that changes this row."""
    words = dict(ROWS[row].model)
    unchanged = not words["partial_order"] or model in ({}, {"partial_margin": 0.6})
    return replace(WORLD, **changes) == WORLD and unchanged


@dataclass(frozen=True)
class Settings:
    """What tuning may choose, for every row from the same grid."""

    start_scale: float = 50.0
    tower_rate: float = 3e-4
    new_rate: float = 1e-3


GRID = tuple(Settings(scale, tower, 1e-3) for scale, tower in product((100.0, 40.0), (3e-4, 1e-3)))


@dataclass(frozen=True)
class Job:
    """One run. Its key names it in the results and in the sealed scores."""

    part: str  # "tuning", "factorial", "forms", or a dial's name
    row: str
    checkpoint: int
    seed: int
    settings: Settings
    world: World = WORLD
    model: tuple[tuple[str, object], ...] = field(default=())
    level: float | None = None

    @property
    def split(self) -> str:
        return "validation" if self.part in ("tuning", "untuned") else "test"

    @property
    def key(self) -> str:
        tuned = f"-{self.settings.start_scale:g}-{self.settings.tower_rate:g}-{self.settings.new_rate:g}"
        level = "" if self.level is None else f"-{self.level:g}"
        return f"{self.part}{level}-{self.row}-c{self.checkpoint}-s{self.seed}{tuned if self.part == 'tuning' else ''}"


def tuning_jobs() -> list[Job]:
    """Half of the cells, those with an even number of switches on, with every setting of the grid, on validation.

    Each switch is on in half of them and no switch goes with another, so they tell how each switch moves the best
    setting; `chosen_settings` reads every cell's choice from these same runs.
    """
    half = [row for row in CELLS if sum(row.factors.values()) % 2 == 0]
    return [Job("tuning", row.name, 0, 100, settings) for settings in GRID for row in half]

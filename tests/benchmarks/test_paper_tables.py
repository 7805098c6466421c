"""docs/paper_tables.md: the paper's figures are typed right, commands are real, cells hold only what belongs there."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from dmae.data.registry import DATASETS
from dmae.training.config import load_config
from dmae.training.run import overrides, parse

ROOT = Path(__file__).resolve().parents[2]
specification = importlib.util.spec_from_file_location("paper_tables", ROOT / "benchmarks" / "paper_tables.py")
paper_tables = importlib.util.module_from_spec(specification)
specification.loader.exec_module(paper_tables)

PLAN = paper_tables.read_plan()
ROWS = [(table["title"][:7], row) for table in PLAN["tables"] for row in table["rows"]]
NO_TPM = {"partial_order": False}
OFF = {"textual_attention": False, "visual_attention": False, **NO_TPM}


@pytest.mark.parametrize("table, row", ROWS, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_the_paper_s_recalls_add_up_to_its_rsum(table, row):
    for direction in set(paper_tables.DIRECTIONS) & set(row):
        one, five, ten, _, _, rsum = row[direction]
        assert one + five + ten == pytest.approx(rsum, abs=0.11)


def test_a_run_that_stands_in_several_tables_has_one_set_of_figures():
    """Baseline B/16 is in Tables 1 and 5-8: the same figures every time. With DSL they are others."""
    seen = {}
    for table in PLAN["tables"]:
        for row in table["rows"]:
            key = (row["run"], table.get("post"))
            assert seen.setdefault(key, row["text_to_video"]) == row["text_to_video"], key


def trained(run: str) -> dict:
    """The model's words that the printed training command of a run leads to."""
    table = next(table for table in PLAN["tables"] if any(row["run"] == run for row in table["rows"]))
    line = next(
        line for line in paper_tables.commands(table, PLAN) if line.endswith(f"--output-dir outputs/paper/{run}")
    )
    options = parse(shlex.split(line)[shlex.split(line).index("--config") :])
    return load_config(ROOT / options.config, overrides(options)).model


@pytest.mark.parametrize(
    "run, words",
    {
        "msrvtt_b16/baseline": {"loss": "info_nce", "interaction": "ti", **OFF},
        "msrvtt_b16/negnce": {"loss": "neg_nce", "negative_weight": 0.5, **OFF},
        "msrvtt_b16/negnce_ta": {"loss": "neg_nce", **OFF, "textual_attention": True},
        "msrvtt_b16/negnce_va": {"loss": "neg_nce", **OFF, "visual_attention": True},
        "msrvtt_b16/dmae": {"loss": "neg_nce", "textual_attention": True, "visual_attention": True, **NO_TPM},
        "msrvtt_b16/gamma2_0.3": {"loss": "neg_nce", "negative_weight": 0.3, **NO_TPM},
        "msrvtt_b16/tpmcl": {"loss": "info_nce", **OFF, "partial_order": True},
        "msrvtt_b16/tau0.9_delta0.2": {"mask_ratio": 0.9, "partial_margin": 0.2, "partial_order": True},
        "msrvtt_b16/dmae_ti": {"mask_ratio": 0.6, "partial_margin": 0.6, "visual_attention": True},
        "didemo/dmae_wti": {"interaction": "wti", "max_frames": 64, "temporal_input": "frame"},
    }.items(),
)  # fmt: skip
def test_the_commands_train_what_the_row_says(run, words):
    model = trained(run)
    assert {name: model[name] for name in words} == words


def test_galleries_are_those_the_datasets_publish():
    for recipe, wanted in PLAN["recipes"].items():
        assert wanted["videos"] in DATASETS[wanted["dataset"]].sizes["test"]
        assert load_config(ROOT / f"training/recipes/{recipe}.yaml").data.name == wanted["dataset"]


def test_the_page_is_what_the_script_writes():
    written = (ROOT / "docs" / "paper_tables.md").read_text(encoding="utf-8")
    assert written == paper_tables.page(PLAN, paper_tables.RESULTS), "run python benchmarks/paper_tables.py"


def evaluated(folder: Path, run: str, kind: str = "test", **changes) -> None:
    """A results.json as `dmae evaluate` writes it, where the printed command would put it."""
    names = [f"{direction}_{name}" for direction in paper_tables.DIRECTIONS for name in paper_tables.COLUMNS]
    data = {"dataset": "msrvtt-9k", "split": "test", "videos": 1000, "captions": 1000, "missing_videos": []}
    record = {
        "metrics": dict.fromkeys(names, 0.4321),
        "data": data,
        "postprocessing": None,
        "seed": 42,
        "ties": "average",
    }
    record |= {"model": {"name": f"/somewhere/outputs/paper/{run}/best"}, "hardware": {"cpu": "x"}}
    for name, value in changes.items():
        (data if name in data else record)[name] = value
    (folder / run / kind).mkdir(parents=True)
    (folder / run / kind / "results.json").write_text(json.dumps(record))


def written_page(tmp_path: Path) -> str:
    paper_tables.collect(PLAN, tmp_path / "outputs", tmp_path / "results")
    return paper_tables.page(PLAN, tmp_path / "results")


def test_an_evaluation_fills_its_row_everywhere_and_no_other(tmp_path):
    evaluated(tmp_path / "outputs", "msrvtt_b16/baseline")
    page = written_page(tmp_path)
    filled = [line for line in page.splitlines() if "| 43.2 |" in line]
    assert len(filled) == 6 and all(line.startswith("| Baseline") for line in filled)  # Table 1 both ways, Tables 5-8
    assert "measured here: 5 of" in page and "`msrvtt_b16/baseline`: seed 42, ties average" in page
    copied = (tmp_path / "results" / "msrvtt_b16" / "baseline" / "test.json").read_text()
    assert "somewhere" not in copied and "hardware" not in copied


def test_dsl_has_its_own_table(tmp_path):
    evaluated(
        tmp_path / "outputs", "msrvtt_b16/dmae_ti", "dsl", postprocessing="DSL (transductive: sees all test queries)"
    )
    page = written_page(tmp_path)
    assert page.count("| 43.2 |") == page.split("## Table 9")[1].count("| 43.2 |") > 0


def test_an_incomplete_gallery_is_named_and_left_out(tmp_path):
    evaluated(tmp_path / "outputs", "msrvtt_b32/dmae_ti", videos=990)
    page = written_page(tmp_path)
    assert "| 43.2 |" not in page and "`msrvtt_b32/dmae_ti` ranked 990, not 1000 videos, and is left out." in page


def test_didemo_s_other_gallery_is_a_protocol_of_its_own(tmp_path):
    evaluated(tmp_path / "outputs", "didemo/dmae_ti", dataset="didemo", videos=1037)
    page = written_page(tmp_path)
    table = page.split("## Table 3")[1].split("</details>")[0]
    assert "among 1037 videos, not to be compared with the paper's 1004" in table and "left out" not in table
    filled = [line for line in page.splitlines() if "| 43.2 |" in line]
    assert len(filled) == 1 and filled[0].startswith("| Ours (TI) | 43.2 |") and "45.2" not in filled[0]
    assert "measured here: 0 of" in page and "- Table 3" in page
    assert 1037 in DATASETS["didemo"].sizes["test"]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "MovingDigits"},
        {"split": "validation"},
        {"postprocessing": "DSL (transductive)"},
        {"model": {"name": "outputs/paper/msrvtt_b32/dmae_wti/best"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_result_in_the_wrong_place_is_refused(tmp_path, changes):
    evaluated(tmp_path / "outputs", "msrvtt_b32/dmae_ti", **changes)
    with pytest.raises(ValueError, match=r"test\.json: .* this place is for"):
        written_page(tmp_path)


def test_a_table_is_shown_once_a_row_of_it_was_measured(tmp_path):
    title = PLAN["tables"][1]["title"]
    assert f"## {title}" not in paper_tables.page(PLAN, tmp_path) and f"- {title}: 3 rows" in paper_tables.page(
        PLAN, tmp_path
    )
    run = PLAN["tables"][1]["rows"][0]["run"]
    recipe = PLAN["recipes"][run.split("/")[0]]
    record = {name: None for name in paper_tables.KEPT}
    record |= {"run": run, "data": {"dataset": recipe["dataset"], "split": "test", "videos": recipe["videos"]}}
    record["metrics"] = {f"{side}_{name}": 0.5 for side in paper_tables.DIRECTIONS for name in paper_tables.COLUMNS}
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "test.json").write_text(json.dumps(record))
    shown = paper_tables.page(PLAN, tmp_path)
    assert f"## {title}" in shown and f"- {title}" not in shown and "## Table 3" not in shown


def test_the_shopping_list_has_each_command_once_with_its_cost_and_its_differences():
    lines = paper_tables.shopping_list(PLAN["tables"], PLAN)
    real = [line for line in lines if line.startswith(("dmae", "python"))]
    wanted = {line for table in PLAN["tables"] for line in paper_tables.commands(table, PLAN)}
    assert len(real) == len(set(real)) and set(real) == wanted
    for place, line in enumerate(lines):
        if line.startswith("dmae train"):
            assert re.match(r"# about [0-9.]+ GPU hours\. Differs: ", lines[place - 1])
    above = lines[lines.index(next(line for line in lines if "msrvtt_b32/dmae_ti" in line)) - 1]
    assert "data.holdout 300 (paper: 0)" in above


@pytest.mark.parametrize("variant", ["baseline", "dmae_ti"])
def test_operations_are_those_that_were_counted(variant):
    """train_step.py counted them on the true towers; TPM-CL's second pass of the temporal encoder is in both."""
    cases = json.loads((ROOT / "benchmarks" / "results" / "train_step_cpu.json").read_text())["cases"]
    case = next(case for case in cases if case["towers"] == "b32" and case["variant"] == variant)
    config = paper_tables.configured(f"dmae train --config training/recipes/msrvtt_b32.yaml --variant {variant}")
    counted = 1e9 * case["gflop_per_step"] / case["batch"]
    assert 3 * paper_tables.forward_flops(config) == pytest.approx(counted, rel=0.1)

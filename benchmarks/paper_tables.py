"""docs/paper_tables.md: the paper's Tables 1-9 beside what was measured here, and the commands that fill the gaps.

    python benchmarks/paper_tables.py                # collect finished evaluations, write the page
    python benchmarks/paper_tables.py --commands 5   # how to train and evaluate the rows of Table 5

Rows, runs and the paper's figures stand in benchmarks/paper_tables.yaml. An evaluation in outputs/paper/RUN/test is
copied to benchmarks/results/paper/RUN.json, the only source of a measured cell. It must name the row's own run, dataset
and post-processing and have ranked the published number of videos; anything else is refused or named below the table.
A gallery that others publish on (DiDeMo's 1,037 videos) has a table of its own, without the paper's figures.
"""

import argparse
import json
import shlex
from pathlib import Path

import yaml

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.training.config import RunConfig, load_config
from dmae.training.plan import differences_from_paper
from dmae.training.run import overrides, parse

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "paper_tables.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "paper"
OUTPUTS = ROOT / "outputs" / "paper"
PAGE = ROOT / "docs" / "paper_tables.md"
COLUMNS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "MdR", "mean_rank": "MnR", "rsum": "rsum"}
DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}
TFLOPS = 120  # 1e12 operations a second
ASSUMED = f"""# GPU hours: operations of the forward and backward pass at {TFLOPS} TFLOP/s (about 40 % of the peak of an
# A100 in bf16), if loading keeps up (dmae prepare --frame-cache). Validation and the test are not counted."""
KEPT = ("metrics", "ties", "protocol", "postprocessing", "frames", "max_words", "dtype", "seed", "global_batch", "date")
KEPT_DATA = ("dataset", "split", "videos", "captions", "missing_videos", "undecodable_videos", "gallery", "queries")
HEAD = """# The paper's tables

The figures of [arXiv 2309.11082](https://arxiv.org/abs/2309.11082) for the rows that this project can train (other
methods' rows are left out), beside what was measured here: {measured} of {rows} rows. A table is shown once one of its
rows was measured; an empty cell was not. Nothing stands here but results on the named dataset itself. How the parts of
the method compare under control, on generated clips, is in [evidence.md](evidence.md) and is no substitute.

`python benchmarks/paper_tables.py` writes this page from `benchmarks/paper_tables.yaml` and
`benchmarks/results/paper/`; with `--commands` it prints the commands of every row. R@K and rsum are percent, MdR and
MnR the median and the mean rank. [datasets.md](datasets.md) says how to lay out the datasets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", type=int, metavar="TABLE", help="print commands (all tables) and stop")
    options = parser.parse_args()
    plan = read_plan()
    if options.commands is not None:
        chosen = options.commands or range(1, len(plan["tables"]) + 1)
        unknown = [number for number in chosen if not 1 <= number <= len(plan["tables"])]
        if unknown:
            parser.error(f"there is no Table {unknown[0]}; the paper has Tables 1-{len(plan['tables'])}")
        tables = [plan["tables"][number - 1] for number in chosen]
        print("\n".join(shopping_list(tables, plan)))
        return
    collect(plan, OUTPUTS, RESULTS)
    PAGE.write_text(page(plan, RESULTS), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def read_plan(path: Path = ROWS) -> dict:
    """`paper_tables.yaml`: recipes, runs, tables."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(table: dict, plan: dict) -> list[str]:
    """The shell lines that train and evaluate the rows of one table."""
    lines = []
    for row in table["rows"]:
        recipe, name = row["run"].split("/")
        config, output = f"training/recipes/{recipe}.yaml", f"outputs/paper/{row['run']}"
        lines.append(f"dmae train --config {config} {plan['runs'][name]} --output-dir {output}")
        post = f" --post {table['post']}" if "post" in table else ""
        lines.append(f"dmae evaluate --model {output}/best --dataset {config}{post} -o {output}/{evaluation(table)}")
    return [*lines, "python benchmarks/paper_tables.py"]


def shopping_list(tables: list[dict], plan: dict) -> list[str]:
    """Each distinct command of the tables once; above a training, what it costs and what differs from the paper."""
    lines, total = [ASSUMED], 0.0
    last = "python benchmarks/paper_tables.py"
    for line in dict.fromkeys(line for table in tables for line in commands(table, plan) if line != last):
        if line.startswith("dmae train"):
            config = configured(line)
            hours = gpu_hours(config, plan["recipes"][Path(config.source).stem]["pairs"])
            total += hours
            model = DMAEConfig(**{name: value for name, value in config.model.items() if name != "from_clip"})
            differing = differences_from_paper(config, model, config.training.train_batch_size)
            said = "; ".join(" ".join(one.split()[1:]) for one in differing)
            lines += ["", f"# about {hours:.1f} GPU hours. Differs: {said}"]
        lines.append(line)
    return [*lines, "", f"# about {total:.0f} GPU hours in all", last]


def configured(line: str) -> RunConfig:
    """The run that a printed training command starts."""
    options = parse(shlex.split(line)[2:])
    return load_config(ROOT / options.config, overrides(options))


def gpu_hours(config: RunConfig, pairs: int) -> float:
    """`pairs` an epoch through the forward and backward pass, at TFLOPS."""
    return 3 * forward_flops(config) * pairs * config.training.num_train_epochs / (TFLOPS * 1e12) / 3600


def forward_flops(config: RunConfig) -> float:
    """Of one pair: two operations per weight and token, and attention, in towers of CLIP's B size and what is new."""
    words = DMAEConfig(**{name: value for name, value in config.model.items() if name != "from_clip"})
    patches = (224 // int(config.model["from_clip"].rsplit("patch", 1)[1])) ** 2
    tokens = words.max_frames * (1 if words.temporal_input == "frame" else 1 + patches)
    vision = words.max_frames * blocks(1 + patches, 768, 12)
    temporal = blocks(tokens, 512, words.temporal_layers) * (2 if words.partial_order else 1)
    return vision + blocks(words.max_words, 512, 12) + temporal


def blocks(tokens: int, width: int, layers: int) -> float:
    """Operations of transformer blocks with an MLP of four widths."""
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def evaluation(table: dict) -> str:
    """The folder of a table's evaluations below a run: "test", or the post-processing's name."""
    return table.get("post", "test")


def collect(plan: dict, outputs: Path, results: Path) -> list[Path]:
    """Copy what a cell needs (no paths, no machine) of every finished evaluation to `results`; returns the copies."""
    written = []
    for run, kind in {(row["run"], evaluation(table)) for table in plan["tables"] for row in table["rows"]}:
        source = outputs / run / kind / "results.json"
        if not source.is_file():
            continue
        record = json.loads(source.read_text(encoding="utf-8"))
        kept = {name: record.get(name) for name in KEPT}
        kept["data"] = {name: record["data"].get(name) for name in KEPT_DATA}
        kept["run"] = "/".join(Path(record["model"]["name"]).parts[-3:-1])  # …/RECIPE/NAME/best
        target = results / run / f"{kind}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(target)
    return written


def page(plan: dict, results: Path) -> str:
    """The whole Markdown page."""
    tables = [Table(table, plan, results) for table in plan["tables"]]
    measured, rows = sum(len(table.found) for table in tables), sum(len(table.rows) for table in tables)
    shown = [table.markdown() for table in tables if table.found or table.others or table.notes]
    waiting = [f"- {table.table['title']}: {len(table.rows)} rows" for table in tables if not table.found]
    lists = ["\n".join(["Not measured yet, for want of data and weights:", "", *waiting])] if waiting else []
    return "\n\n".join([HEAD.format(measured=measured, rows=rows), *shown, *lists]) + "\n"


class Table:
    """One table of the paper with its measured rows (`found`: {run: record}) and what could not stand in it.

    `others` has the records of another published gallery: {videos: {run: record}}.
    """

    def __init__(self, table: dict, plan: dict, results: Path):
        self.table, self.plan, self.rows, self.found, self.notes = table, plan, table["rows"], {}, []
        self.others = {}
        for run in dict.fromkeys(row["run"] for row in self.rows):
            path = results / run / f"{evaluation(table)}.json"
            if path.is_file():
                self._add(run, path, plan["recipes"][run.split("/")[0]])

    def _add(self, run: str, path: Path, recipe: dict) -> None:
        record = json.loads(path.read_text(encoding="utf-8"))
        data, post = record["data"], self.table.get("post")
        wanted = (run, recipe["dataset"], "test", post)
        # "DSL (transductive: …)" -> "dsl"
        used = (record["postprocessing"] or "").split(" ")[0].lower() or None
        stands = (record["run"], data["dataset"], data["split"], used)
        if stands != wanted:
            raise ValueError(f"{path}: (run, dataset, split, post-processing) is {stands}, this place is for {wanted}")
        if data["videos"] == recipe["videos"]:
            self.found[run] = record
        elif data["videos"] in recipe.get("other_galleries", []):
            self.others.setdefault(data["videos"], {})[run] = record
        else:
            self.notes.append(f"`{run}` ranked {data['videos']}, not {recipe['videos']} videos, and is left out.")

    def markdown(self) -> str:
        directions = [name for name in DIRECTIONS if name in self.rows[0]]
        parts = [f"## {self.table['title']}", *(self._side(name, len(directions) > 1) for name in directions)]
        parts += [self._other(direction, videos) for videos in self.others for direction in directions]
        parts += [self.table["note"]] if "note" in self.table else []
        records = [pair for found in (self.found, *self.others.values()) for pair in found.items()]
        conditions = [self._conditions(run, record) for run, record in records]
        parts += ["\n".join(f"- {line}" for line in [*conditions, *self.notes])] if conditions or self.notes else []
        if self.table.get("controlled"):
            parts.append("The same rows under control, on generated clips: [evidence.md](evidence.md).")
        lines = "\n".join(commands(self.table, self.plan))
        parts.append(f"<details><summary>Commands</summary>\n\n```text\n{lines}\n```\n\n</details>")
        return "\n\n".join(parts)

    def _side(self, direction: str, named: bool) -> str:
        head = ["row", *(f"paper {name}" for name in COLUMNS.values()), *(f"here {name}" for name in COLUMNS.values())]
        lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        for row in self.rows:
            printed = [f"{value:.1f}" for value in row[direction]]
            here = self._cells(self.found.get(row["run"]), direction)
            lines.append(f"| {' | '.join([row['name'], *printed, *here])} |")
        return (f"{DIRECTIONS[direction]}:\n\n" if named else "") + "\n".join(lines)

    def _other(self, direction: str, videos: int) -> str:
        found, wanted = self.others[videos], self.plan["recipes"][self.rows[0]["run"].split("/")[0]]["videos"]
        lines = [f"| row | {' | '.join(COLUMNS.values())} |", "| --- |" + " ---: |" * len(COLUMNS)]
        for row in self.rows:
            if row["run"] in found:
                lines.append(f"| {' | '.join([row['name'], *self._cells(found[row['run']], direction)])} |")
        said = f"{DIRECTIONS[direction]} among {videos} videos, not to be compared with the paper's {wanted}"
        return f"Another protocol: {said}:\n\n" + "\n".join(lines)

    def _cells(self, record: dict | None, direction: str) -> list[str]:
        if record is None:
            return [""] * len(COLUMNS)
        values = {name: record["metrics"][f"{direction}_{name}"] for name in COLUMNS}
        return [f"{value if name.endswith('rank') else 100 * value:.1f}" for name, value in values.items()]

    def _conditions(self, run: str, record: dict) -> str:
        said = {name: record[name] for name in ("seed", "global_batch", "frames", "dtype", "ties", "date")}
        return f"`{run}`: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items() if value)


if __name__ == "__main__":
    main()

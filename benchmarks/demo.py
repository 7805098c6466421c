"""Run `dmae demo` in a new folder and keep its figures, and what a search prints: benchmarks/results/demo.json.

python benchmarks/demo.py                      # an idle machine, please: the seconds are part of the result
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
QUERY = "a red seven slides to the left"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "demo-benchmark")
    options = parser.parse_args()
    if options.output_dir.exists():
        sys.exit(f"{options.output_dir} exists, and a demo that skips its stages measures nothing: remove it")
    lines = run([sys.executable, "-m", "dmae", "demo", "--output-dir", str(options.output_dir)])
    result = json.loads((options.output_dir / "metrics.json").read_text(encoding="utf-8"))
    result["seconds"] = stage_seconds(lines)
    result["search"] = {"query": QUERY, "hits": search(options.output_dir)}
    cores = len(os.sched_getaffinity(0))
    load = round(os.getloadavg()[1], 1)  # of the last five minutes; an idle machine has about `cores`
    conditions = {"device": f"{platform.machine()} CPU", "cores": cores, "torch": torch.__version__, "load": load}
    result["conditions"] = conditions
    target = ROOT / "benchmarks" / "results" / "demo.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")


def search(output: Path) -> list[list[str]]:
    """What `dmae search` prints in a pipe, word by word, with the demo's usual folder in the paths."""
    lines = run([sys.executable, "-m", "dmae", "search", str(output / "index"), QUERY, "--top-k", "3"])
    return [line.rstrip("\n").replace(str(output.resolve()), "outputs/demo").split("\t") for line in lines]


def run(command: list[str]) -> list[str]:
    """The child's lines, also shown as they come."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        lines = [line for line in child.stdout if not print(line, end="", flush=True)]
    if child.returncode:
        sys.exit("the demo failed; its message is above")
    return lines


def stage_seconds(lines: list[str]) -> dict[str, int]:
    """ "`Done (videos 34 s, training 260 s).` -> {"videos": 34, "training": 260}."""
    done = next(line for line in lines if line.startswith("Done ("))
    return {name: int(seconds) for name, seconds in re.findall(r"([a-z][a-z ]*) (\d+) s", done.removeprefix("Done ("))}


if __name__ == "__main__":
    main()

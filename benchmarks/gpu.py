"""One GPU afternoon: everything here that needs a GPU, in pieces that can be stopped and gone on with.

    make gpu                                  # all that has no result yet for this code, within 40 minutes on an H200
    python benchmarks/gpu.py --minutes 10     # as much of it as ends in 10 minutes; call it again for the rest
    python benchmarks/gpu.py --tiny           # the same pieces in tiny sizes, on a CPU too: tries the script out

A piece is a command. What it printed and measured, on which machine, with which code and how long it took is written to
benchmarks/results/gpu/PIECE.json. A piece is left out where that file has a result of the same code (a hash of all
Python files), the same command and the same device. One that fails, or is stopped by its time, is said and tried again
by the next call. Pieces whose packages are not installed are named and left out.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
SKIPPED_FOLDERS = {".venv", ".git", "outputs", "build", "dist", "node_modules"}
TAIL = 6000  # characters of what a piece printed that are kept


@dataclass(frozen=True)
class Piece:
    """A command, what it writes (`{out}` in the command), the packages it needs, and minutes it may take."""

    name: str
    command: str
    tiny: str
    minutes: float
    needs: tuple[str, ...] = ()


PIECES = [
    Piece("tests", "pytest -q -m gpu tests", "pytest -q -m gpu tests/modeling_dmae/test_fused.py", 3, ("pytest",)),
    Piece(
        "train_step",
        "benchmarks/train_step.py --towers b32 b16 --batch 32 64 128 --dtype bf16 --compile --output {out}",
        "benchmarks/train_step.py --towers tiny --batch 2 --steps 1 --output {out}",
        9,
    ),
    Piece(
        "head",
        "benchmarks/head.py --device cuda --batch 128 512 1024 2048 --output {out}",
        "benchmarks/head.py --batch 8 --words 8 --frames 4 --width 32 --repeats 1 --output {out}",
        5,
    ),
    Piece(
        "embedding",
        "benchmarks/embedding.py --compile --output {out}",
        "benchmarks/embedding.py --towers tiny --batch 2 --steps 1 --output {out}",
        6,
    ),
    Piece(
        "memory",
        "benchmarks/memory.py --pairs 64 --output {out}",
        "benchmarks/memory.py --quick --output {out}",
        5,
        ("accelerate", "datasets"),
    ),
    Piece(
        "moving_objects",
        "benchmarks/evidence.py --preset gpu --tune --factorial --seeds 2",
        "benchmarks/evidence.py --help",
        10,
        ("accelerate", "datasets", "av", "spacy"),
    ),
]


def code_hash() -> str:
    """Of every Python file of the project, by path and content."""
    found = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if not SKIPPED_FOLDERS & set(parts):
            found.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def done(path: Path, key: dict) -> bool:
    """Whether `path` holds a finished result under the same conditions."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return result.get("status") == "done" and {name: result.get(name) for name in key} == key


def run(piece: Piece, tiny: bool, results: Path, code: str, seconds: float) -> str:
    """Run a piece, at most so long; its record is written whatever becomes of it. -> its status."""
    out = results / f"{piece.name}.out.json"
    out.unlink(missing_ok=True)
    command = (piece.tiny if tiny else piece.command).format(out=out)
    words = command.split()
    program = [sys.executable, *(["-m"] if words[0] == "pytest" else []), *words]
    record = {"piece": piece.name, "command": shown(command, out), "device": device(), "code": code}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]),
    }
    started = time.monotonic()
    try:
        finished = subprocess.run(
            program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        said, ended = finished.stdout + finished.stderr, finished.returncode
        # pytest ends with 5 where no test is chosen: without a GPU there is none
        status = "done" if ended == 0 or (words[0] == "pytest" and ended == 5) else f"failed with {ended}"
    except subprocess.TimeoutExpired as error:
        said = "".join(
            part.decode() if isinstance(part, bytes) else part or "" for part in (error.stdout, error.stderr)
        )
        status = f"stopped after {seconds:.0f} s"
    record |= {"status": status, "seconds": round(time.monotonic() - started, 1), "torch": torch.__version__}
    record |= {"python": platform.python_version(), "printed": said[-TAIL:]}
    if out.exists():
        record["results"] = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
    target = results / f"{piece.name}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)
    return status


def shown(command: str, out: Path) -> str:
    return command.replace(str(out), "OUT")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="start nothing that would not end by then")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU where there is no GPU")
    parser.add_argument("--pieces", nargs="+", choices=[piece.name for piece in PIECES])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no CUDA device here; --tiny tries the script out on a CPU")
    ends = time.monotonic() + 60 * options.minutes
    options.results.mkdir(parents=True, exist_ok=True)
    code, left = code_hash(), []
    for piece in PIECES:
        if options.pieces and piece.name not in options.pieces:
            continue
        out = options.results / f"{piece.name}.out.json"
        command = shown((piece.tiny if options.tiny else piece.command).format(out=out), out)
        key = {"command": command, "device": device(), "code": code}
        lacking = [name for name in piece.needs if importlib.util.find_spec(name) is None]
        allowed = min(60 * piece.minutes, ends - time.monotonic())
        if done(options.results / f"{piece.name}.json", key):
            status = "has its result"
        elif lacking:
            status = f"left out: {', '.join(lacking)} not installed"
        elif allowed < 15 * piece.minutes:  # a quarter of its time at least, or it would only be stopped
            status = "left for the next call: no time"
        else:
            status = run(piece, options.tiny, options.results, code, allowed)
        print(f"{piece.name:16}{status}", flush=True)
        if status not in ("done", "has its result"):
            left.append(piece.name)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

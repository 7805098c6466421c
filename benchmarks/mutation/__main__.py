"""Small wrong edits, one at a time, against the tests of the file they are in: which of them does no test notice?

    python -m benchmarks.mutation --per-room 15         # a seeded sample of every room; goes on where it was stopped
    python -m benchmarks.mutation --survivors           # the survivors again, after tests were added
    python -m benchmarks.mutation --by-hand             # the edits of by_hand.yaml
    python -m benchmarks.mutation --report              # only the summary

Everything happens in a copy below --work. Each edit runs in a process forked from one that has imported the heavy
packages, first against the test files that name its module, then against its room's other tests, file by file. What was
judged to change nothing that anybody could see stands with its reason in by_hand.yaml. Results:
benchmarks/results/mutation.json.
"""

import argparse
import importlib
import json
import os
import platform
import random
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from .edits import KINDS, Edit, edits

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
BY_HAND = Path(__file__).with_name("by_hand.yaml")
ROOMS = [
    "modeling_dmae", "processing", "metrics", "inference", "data", "evaluation", "visuals", "retrieval", "hub_cards",
    "training", "dmae",
]  # fmt: skip
HEAVY = [
    "torch",
    "transformers",
    "spacy",
    "av",
    "numpy",
    "datasets",
    "accelerate",
    "sklearn.feature_extraction.text",
    "pytest",
]
CPU_SECONDS = 240  # of one process; an endless loop is noticed too
WALL_SECONDS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-room", type=int, default=15)
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="start nothing new after this long")
    parser.add_argument("--survivors", action="store_true", help="only what survived before")
    parser.add_argument("--by-hand", action="store_true", help="only the edits of by_hand.yaml")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dmae-mutation")
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["edits"] if RESULTS.is_file() else {}
    if args.survivors:
        todo = [
            job for job in planned(args) + written_by_hand() if known.get(job["name"], {}).get("found") == "survived"
        ]
    elif args.by_hand:
        todo = [job for job in written_by_hand() if known.get(job["name"], {}).get("found") != "caught"]
        todo.sort(key=lambda job: not tests_of(job["file"])[0])  # those with tests of their own are quick to judge
    else:
        todo = [job for job in planned(args) if job["name"] not in known]
    if not args.report:
        run(todo, known, args)
    save(known, args)
    print(summary(known))


def planned(args) -> list[dict]:
    """The sample: of each room `per_room` edits, every kind and file with equal chances; rooms take turns."""
    rooms = []
    for room in args.rooms:
        chance, found = random.Random(f"{args.seed} {room}"), {}
        for path in sorted((ROOT / room).rglob("*.py")):
            for edit in edits(path):
                found.setdefault((edit.kind, path), []).append(edit)
        jobs: dict[str, dict] = {}
        for _ in range(20 * args.per_room):
            kind = chance.choice(KINDS)
            places = [place for place in found if place[0] == kind]
            if places and len(jobs) < args.per_room:
                place = chance.choice(places)
                job = described(place[1], chance.choice(found[place]))
                jobs[job["name"]] = job
        rooms.append(list(jobs.values()))
    return [jobs[turn] for turn in range(args.per_room) for jobs in rooms if turn < len(jobs)]


def described(path: Path, edit: Edit) -> dict:
    source = path.read_bytes()
    file = path.relative_to(ROOT).as_posix()
    line = " ".join(source.decode().split("\n")[edit.line - 1].split())
    return {"name": f"{file}: {line} | {edit.described(source)}", "file": file, "kind": edit.kind,
            "source": edit.applied(source)}  # fmt: skip


def written_by_hand() -> list[dict]:
    """by_hand.yaml's `edits`: {file, before, after}, `before` being there exactly once."""
    jobs = []
    for entry in yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))["edits"]:
        source = (ROOT / entry["file"]).read_text(encoding="utf-8")
        if source.count(entry["before"]) != 1:
            raise ValueError(
                f"{BY_HAND.name}: {entry['file']} has {entry['before']!r} {source.count(entry['before'])} times"
            )
        changed = source.replace(entry["before"], entry["after"])
        name = f"{entry['file']}: {entry['before']} -> {entry['after']}"
        jobs.append({"name": name, "file": entry["file"], "kind": "by hand", "source": changed.encode()})
    return jobs


def run(todo: list[dict], known: dict, args) -> None:
    copy = fresh_copy(args.work)
    for name in HEAVY:
        importlib.import_module(name)
    started, sound = time.monotonic(), {}
    for number, job in enumerate(todo, 1):
        if time.monotonic() - started > 60 * args.minutes:
            print(f"stopped after {args.minutes} minutes with {len(todo) - number + 1} left; run it again to go on")
            break
        known[job["name"]] = {"file": job["file"], "kind": job["kind"], **judged(job, copy, sound)}
        print(f"{number}/{len(todo)} {known[job['name']]['found']}: {job['name'][:150]}", flush=True)
        save(known, args)


def judged(job: dict, copy: Path, sound: dict) -> dict:
    """{"found": "caught" | "survived" | "no sound tests", "tests"}; tests count that pass without the edit."""
    target = copy / job["file"]
    original = target.read_bytes()  # of the copy: here somebody may be editing
    ran = []
    for stage in tests_of(job["file"]):
        if not stage:
            continue
        key = tuple(stage)
        if key not in sound:
            target.write_bytes(original)
            sound[key] = passes(stage, copy)
        if not sound[key]:
            continue
        ran += stage
        target.write_bytes(job["source"])
        caught = not passes(stage, copy)
        target.write_bytes(original)
        if caught:
            return {"found": "caught", "tests": len(ran)}
    return {"found": "survived" if ran else "no sound tests", "tests": len(ran)}


def tests_of(file: str) -> list[list[str]]:
    """Test files that name the module, together; then the others of its room, one by one."""
    module = "dmae." + file.removeprefix("dmae/").removesuffix(".py").replace("/", ".")
    folder, name = ROOT / "tests" / file.split("/")[0], module.rsplit(".", 1)
    named, others = [], []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if module in text or f"from {name[0]} import {name[1]}" in text:
            named.append(path.relative_to(ROOT).as_posix())
        elif folder in path.parents:
            others.append(path.relative_to(ROOT).as_posix())
    return [named, *([other] for other in others)]


def passes(tests: list[str], copy: Path) -> bool:
    """Whether pytest passes in a forked child, where the rooms are those of the copy."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = in_child(tests, copy)
        finally:
            os._exit(code)
    deadline = time.monotonic() + WALL_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.1)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return False


def in_child(tests: list[str], copy: Path) -> int:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    rooms = str(copy / "build" / "rooms")
    sys.path.insert(0, rooms)
    os.environ["PYTHONPATH"] = rooms
    os.chdir(copy)
    with open(copy / "pytest.log", "wb") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def fresh_copy(work: Path) -> Path:
    """What git tracks, as it lies here, with the rooms laid out as they are installed."""
    shutil.rmtree(work, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    runpy.run_path(str(work / ".ci" / "link_rooms.py"), run_name="__main__")
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = True  # an edit of equal length in the same second would meet the old bytecode
    return work


def save(known: dict, args) -> None:
    reasons = {
        entry["name"]: entry["why"] for entry in yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))["equivalent"]
    }
    for name, entry in known.items():
        entry.pop("why", None)
        if entry["found"] == "survived" and name in reasons:
            entry["why"] = reasons[name]
    rooms = {}
    for entry in known.values():
        room = rooms.setdefault(entry["file"].split("/")[0], {"edits": 0, "caught": 0, "equivalent": 0, "survived": 0})
        room["edits"] += 1
        room["caught"] += entry["found"] == "caught"
        room["equivalent"] += "why" in entry
        room["survived"] += entry["found"] == "survived" and "why" not in entry
    conditions = {"seed": args.seed, "python": platform.python_version(), "machine": platform.machine()}
    record = {"conditions": conditions, "score": score(known), "rooms": dict(sorted(rooms.items())), "edits": known}
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def score(known: dict) -> float | None:
    """Caught, of all that change something."""
    judged_ones = [entry for entry in known.values() if entry["found"] != "no sound tests" and "why" not in entry]
    caught = sum(entry["found"] == "caught" for entry in judged_ones)
    return round(caught / len(judged_ones), 4) if judged_ones else None


def summary(known: dict) -> str:
    lines = [f"{name}" for name, entry in known.items() if entry["found"] != "caught" and "why" not in entry]
    return "\n".join([f"score {score(known)} of {len(known)} edits; not caught:", *lines])


if __name__ == "__main__":
    main()

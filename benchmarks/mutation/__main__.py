"""Small wrong edits, one at a time, against the tests of the file they are in: which of them does no test notice?

    python -m benchmarks.mutation --per-room 15         # a seeded sample of every room; goes on where it was stopped
    python -m benchmarks.mutation --survivors           # the survivors again, after tests were added
    python -m benchmarks.mutation --by-hand             # the edits of by_hand.yaml
    python -m benchmarks.mutation --report              # only the summary

Twice at most. Room by room in a process that has run the room's tests (`patched.py`): a second an edit. What survives
that, or cannot be tried so, in a copy below --work (`trial.py`): against the measured tests that run its lines
(`executed.py`), then against the test files that name its module and start processes or were not measured, a minute or
more an edit; --quick leaves that out. What was judged to change nothing that anybody could see stands with its reason
in by_hand.yaml. Results: benchmarks/results/mutation.json.
"""

import argparse
import collections
import json
import platform
import random
import tempfile
import time
from pathlib import Path

import yaml

from . import patched
from .edits import KINDS, edits
from .executed import ROOMS, ROOT
from .trial import Laboratory

RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
BY_HAND = Path(__file__).with_name("by_hand.yaml")
ELSEWHERE = ("modeling_dmae/fused_dmae.py",)  # kernels: their tests are marked gpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-room", type=int, default=15)
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="start nothing new after this long")
    parser.add_argument("--survivors", action="store_true", help="only what survived before")
    parser.add_argument("--by-hand", action="store_true", help="only the edits of by_hand.yaml")
    parser.add_argument("--only", default="", help="of those, the ones with this in their name")
    parser.add_argument("--quick", action="store_true", help="not in the copy: a lower bound, a second an edit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dmae-mutation")
    args = parser.parse_args()
    known = json.loads(args.results.read_text(encoding="utf-8"))["edits"] if args.results.is_file() else {}
    if args.survivors:
        todo = survivors(known)
    elif args.by_hand:
        todo = [job for job in written_by_hand() if job["name"] not in known and room_of(job["file"]) in args.rooms]
        random.Random(args.seed).shuffle(todo)  # what time allows is then a fair share of them
    else:
        todo = [job for job in planned(args) if job["name"] not in known]
    todo = [job for job in todo if args.only in job["name"]]
    if not args.report:
        run(todo, known, args)
    save(known, args)
    print(summary(known))


def room_of(file: str) -> str:
    return max((room for room in ROOMS if file.startswith(f"{room}/")), key=len)


def survivors(known: dict) -> list[dict]:
    """Looked for among all edits: what `planned` draws changes with the code."""
    wanted = {name for name, entry in known.items() if entry["found"] != "caught" and "why" not in entry}
    files = sorted({known[name]["file"] for name in wanted})
    jobs = [job for file in files for job in described(ROOT / file)] + written_by_hand()
    for name in sorted(wanted - {job["name"] for job in jobs}):
        print(f"no longer in the code: {name}")
    return [job for job in jobs if job["name"] in wanted]


def planned(args) -> list[dict]:
    """The sample: of each room `per_room` edits, every kind and file with equal chances; rooms take turns."""
    rooms = []
    for room in args.rooms:
        chance, found = random.Random(f"{args.seed} {room}"), {}
        for path in sorted((ROOT / room).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if room_of(file) == room and file not in ELSEWHERE:
                for job in described(path):
                    found.setdefault((job["kind"], path), []).append(job)
        jobs: dict[str, dict] = {}
        for _ in range(20 * args.per_room):
            kind = chance.choice(KINDS)
            places = [place for place in found if place[0] == kind]
            if places and len(jobs) < args.per_room:
                job = chance.choice(found[chance.choice(places)])
                jobs[job["name"]] = job
        rooms.append(list(jobs.values()))
    return [jobs[turn] for turn in range(args.per_room) for jobs in rooms if turn < len(jobs)]


def described(path: Path) -> list[dict]:
    """Every edit of a file. The name says which, as the file moves on: its line, and of equal ones the how-manieth."""
    source, file, names = path.read_bytes(), path.relative_to(ROOT).as_posix(), collections.Counter()
    text, jobs = source.decode().split("\n"), []
    for edit in edits(path):
        name = f"{file}: {' '.join(text[edit.line - 1].split())} | {edit.described(source)}"
        names[name] += 1
        name += f" ({names[name]})" if names[name] > 1 else ""
        lines = [edit.line, 1 + source[: edit.start].count(b"\n")]
        jobs.append({"name": name, "file": file, "kind": edit.kind, "lines": lines, "source": edit.applied(source)})
    return jobs


def written_by_hand() -> list[dict]:
    """by_hand.yaml's `edits`, {file, before, after}, of those whose `before` stands in the file exactly once."""
    jobs = []
    for entry in yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))["edits"]:
        path = ROOT / entry["file"]
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        if source.count(entry["before"]) != 1:
            print(f"{BY_HAND.name}: no longer fits: {entry['file']}: {entry['before']!r}")
            continue
        changed = source.replace(entry["before"], entry["after"])
        name = f"{entry['file']}: {entry['before']} -> {entry['after']}"
        first = 1 + source[: source.index(entry["before"])].count("\n")
        lines = [*range(first, first + 1 + entry["before"].count("\n"))]
        job = {"name": name, "file": entry["file"], "kind": "by hand", "lines": lines, "source": changed.encode()}
        jobs.append(job)
    return jobs


def run(todo: list[dict], known: dict, args) -> None:
    started, left, earlier = time.monotonic(), [], dict(known)
    for room in ROOMS:
        jobs = [job for job in todo if room_of(job["file"]) == room]
        found = patched.judged(jobs, tests_of(room)) if jobs else {}
        for job in jobs:
            note(known, earlier, job, found.get(job["name"], {"found": "survived", "tests": 0}))
        left += [job for job in jobs if known[job["name"]]["found"] != "caught"]
        save(known, args)
    changing = [job for job in left if "why" not in known[job["name"]]]
    laboratory = Laboratory(args.work) if changing and not args.quick else None
    for number, job in enumerate(changing if laboratory else [], 1):
        if time.monotonic() - started > 60 * args.minutes:
            print(f"stopped after {args.minutes} minutes with {len(changing) - number + 1} left; --survivors goes on")
            break
        note(known, earlier, job, laboratory.judged(job))
        print(f"{number}/{len(changing)} {known[job['name']]['found']}: {job['name'][:150]}", flush=True)
        save(known, args)


def tests_of(room: str) -> list[str]:
    inner = [f"--ignore=tests/{other}" for other in ROOMS if other.startswith(f"{room}/")]
    return [f"tests/{room}", *inner]


def note(known: dict, earlier: dict, job: dict, found: dict) -> None:
    before = earlier.get(job["name"], {})
    known[job["name"]] = {"file": job["file"], "kind": job["kind"], **found}
    if before.get("at_first", before.get("found")) == "survived":
        known[job["name"]]["at_first"] = "survived"


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
        room = rooms.setdefault(room_of(entry["file"]), {"edits": 0, "caught": 0, "equivalent": 0, "survived": 0})
        room["edits"] += 1
        room["caught"] += entry["found"] == "caught"
        room["equivalent"] += "why" in entry
        room["survived"] += entry["found"] == "survived" and "why" not in entry
    conditions = {"seed": args.seed, "python": platform.python_version(), "machine": platform.machine()}
    scores = {"score": score(known), "score_at_first": score(known, at_first=True)}
    record = {"conditions": conditions, **scores, "rooms": dict(sorted(rooms.items())), "edits": known}
    args.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def score(known: dict, at_first: bool = False) -> float | None:
    """Caught, of all that change something; at_first: before tests were written for those that survived."""
    judged_ones = [entry for entry in known.values() if entry["found"] != "no sound tests" and "why" not in entry]
    caught = sum(entry["found"] == "caught" and not (at_first and "at_first" in entry) for entry in judged_ones)
    return round(caught / len(judged_ones), 4) if judged_ones else None


def summary(known: dict) -> str:
    lines = [f"{name}" for name, entry in known.items() if entry["found"] != "caught" and "why" not in entry]
    return "\n".join([f"score {score(known)} of {len(known)} edits; not caught:", *lines])


if __name__ == "__main__":
    main()

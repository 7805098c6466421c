"""Kills, failing disks and power failures against the writer of an index.

python benchmarks/faults/index.py --trials 1000      # writes the key "index" of results/faults.json

A trial runs a seeded script of commits (add, replace, delete, compact, FAISS file, plan, repair) and is struck at one
named point of publication. Afterwards the index must open, hold every acknowledged commit and no part of another, row
by row with the frames of that very version, and go on: one more commit, and nothing left over. Every point of a script
is struck before the next script begins.

    kills     the process gets SIGKILL at the point
    crashes   the power fails at the point: names and contents that were not fsynced are lost by chance
    failures  the n-th write, fsync, rename or read fails with EIO, ENOSPC or EACCES, for every n; the process goes on
    torn      files may not grow beyond n bytes, for n up to the largest file: writes really fail in their middle

Finished trials stand in `--progress`; a run that was stopped goes on where it was.
"""

import argparse
import errno
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from commits import after, make_base, open_index, run, script, verdict
from disk import ForgetfulDisk, fail_at, kill_at, striking
from report import merge_result
from trials import FAILURES, KINDS, Trial, files_end_at, run_trials, summary

from dmae import files
from dmae.retrieval.index import VideoIndex

# ---------------------------------------------------------------------- trials


class Bench:
    """A folder with the base index that every trial begins with a copy of."""

    def __init__(self, folder: Path):
        self.folder, self.bases = folder, {}
        for backend in ("flat", "faiss"):
            self.bases[backend] = make_base(folder / backend, backend)

    def fresh(self, seed: int) -> tuple[Path, str, list[dict[str, int]], list[tuple]]:
        """(a folder, backend, contents before and after every operation, operations); every fourth begins empty."""
        backend, trial = ("flat", "faiss")[seed % 2], self.folder / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir()
        if seed % 4 < 2:
            shutil.copytree(self.folder / backend, trial / "index")
            contents = [self.bases[backend]]
        else:
            contents = [{}]
        operations = script(seed, contents[0] or {"b0": 0, "b1": 0})
        if not contents[0]:
            operations = [("add", {"b0": 0, "b1": 0}), *operations]
        for operation in operations:
            contents.append(after(contents[-1], operation))
        return trial / "index", backend, contents, operations


def perform(index: VideoIndex, operations: list[tuple], acknowledge) -> None:
    """All operations in one process; `acknowledge()` after each that returned."""
    for operation in operations:
        run(index, operation)
        acknowledge()
        files.reached("acknowledged", index.path)


def points_of(bench: Bench, seed: int) -> list[tuple[str, str]]:
    folder, backend, _, operations = bench.fresh(seed)
    index = open_index(folder, backend)
    with striking(lambda *_: None) as seen:
        perform(index, operations, lambda: None)
    return seen


def killed(bench: Bench, seed: int, place: int, power: bool) -> str:
    """SIGKILL at the place-th point, or a power failure there."""
    folder, backend, contents, operations = bench.fresh(seed)
    crashed = bench.folder / "crashed"
    shutil.rmtree(crashed, ignore_errors=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        disk = ForgetfulDisk(folder.parent)

        def fail_power(number, point, path):
            if number == place:
                disk.crash(crashed, np.random.default_rng([seed, place]))
                os._exit(9)

        try:
            index = open_index(folder, backend)
            with disk.watch(), striking(fail_power if power else kill_at(place)):
                perform(index, operations, lambda: os.write(writer, b"."))
        finally:
            os._exit(1)  # the point was not reached, or something broke before
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        done = len(stream.read())
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != (9 if power else -9):
        return f"broken: the child ended with {os.waitstatus_to_exitcode(status)}"
    return verdict(crashed / folder.name if power else folder, contents[done : done + 2], backend)


def failing(bench: Bench, seed: int, disk) -> str | None:
    """The disk fails inside `with disk:` and the process goes on. None: the script ended before it failed."""
    folder, backend, contents, operations = bench.fresh(seed)
    done, index = [], open_index(folder, backend)
    try:
        with disk:
            perform(index, operations, lambda: done.append(1))
        return None
    except OSError as error:
        if "\n" in str(error) or str(folder) not in str(error):
            return f"unclear: {error}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return verdict(folder, contents[len(done) : len(done) + 2], backend, index)


# ---------------------------------------------------------------------- all of them


def kills(bench: Bench, trials: int, power: bool) -> Iterator[Trial]:
    """(name, point, trial): every point of every script in turn, until there are enough."""
    seed, made, mode = 0, 0, "crash" if power else "kill"
    while made < trials:
        for place, point in enumerate(points_of(bench, seed)):
            if made == trials:
                break
            yield f"{mode} {seed} {place}", f"{point[0]} {point[1]}", partial(killed, bench, seed, place, power)
            made += 1
        seed += 1


def failures(bench: Bench, scripts: int) -> Iterator[Trial]:
    for seed in range(scripts):
        counts = Counter(point for point, _ in points_of(bench, seed))
        for kind, error, nth in itertools.product(KINDS, FAILURES, range(max(counts.values()))):
            if nth < counts[kind]:
                disk = striking(fail_at(kind, nth, error))
                yield (
                    f"{kind} {seed} {nth} {error}",
                    f"{kind} {errno.errorcode[error]}",
                    partial(failing, bench, seed, disk),
                )
        for limit in range(64, 6_000, 64):
            yield f"torn {seed} {limit}", "torn EFBIG", partial(failing, bench, seed, files_end_at(limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="kills, and as many power failures")
    parser.add_argument("--scripts", type=int, default=4, help="scripts of which every write, fsync, … fails once")
    parser.add_argument("--progress", type=Path, default=Path("outputs/faults_index.jsonl"))
    parser.add_argument("--no-result", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork keeps one thread
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        trials = (kills(bench, args.trials, False), kills(bench, args.trials, True), failures(bench, args.scripts))
        result = summary(run_trials(args.progress, itertools.chain(*trials)))
    print(json.dumps(result, indent=1), f"{time.monotonic() - started:.0f} s")
    if not args.no_result:
        merge_result("index", result, seed=0, trials=sum(part["trials"] for part in result.values()))
    if any(part["wrong"] for part in result.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

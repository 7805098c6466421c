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
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from disk import ForgetfulDisk, fail_at, kill_at, striking
from report import merge_result
from trials import FAILURES, KINDS, Trial, files_end_at, run_trials, summary

from dmae import files
from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.retrieval import storage, stored_index
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.repair import repair

FRAMES, DIM, OPERATIONS = 2, 16, 8
CONFIG = DMAEConfig.tiny(projection_dim=DIM, max_frames=FRAMES)
MODEL = {"name": "random", "revision": None, "weights": "0", "processor": "0"}
stored_index.SEGMENT_ROWS = 12  # so that a few videos are worth merging


# ---------------------------------------------------------------------- what is written, and what should be there


def frames_of(video: str, version: int) -> np.ndarray:
    """The stored frames of a version of a video: nothing else has them."""
    rng = np.random.default_rng([zlib.crc32(video.encode()), version])
    return rng.standard_normal((FRAMES, DIM)).astype(np.float16)


def encoded(versions: dict[str, int]) -> EncodedVideos:
    frames = torch.from_numpy(np.stack([frames_of(*item) for item in versions.items()])).float()
    mask = torch.ones(len(frames), FRAMES, dtype=torch.bool)
    items = [{"video_id": v, "path": f"/{v}.mp4", "metadata": {"version": n}} for v, n in versions.items()]
    return EncodedVideos(VideoEmbeddings(frames, frames, mask / FRAMES, mask), items, torch.zeros(mask.shape), [])


def script(seed: int, content: dict[str, int]) -> list[tuple]:
    """A seeded list of operations, the first of which always adds."""
    rng, operations = np.random.default_rng(seed), []
    for number in range(OPERATIONS):
        kind = "add" if number == 0 else rng.choice(["add", "replace", "delete", "compact", "save", "plan", "repair"])
        known = sorted(content)
        kind = "add" if len(known) < 2 else kind
        if kind == "add":
            argument = {f"v{seed}-{number}-{n}": 0 for n in range(rng.integers(1, 5))}
        elif kind == "replace":
            argument = {str(v): content[str(v)] + 1 for v in rng.choice(known, 2, replace=False)}
        else:
            argument = [str(v) for v in rng.choice(known, 2, replace=False)] if kind == "delete" else None
        operations.append((str(kind), argument))
        content = after(content, operations[-1])
    return operations


def after(content: dict[str, int], operation: tuple) -> dict[str, int]:
    kind, argument = operation
    if kind in ("add", "replace"):
        return {**content, **argument}
    return {v: n for v, n in content.items() if kind != "delete" or v not in argument}


def run(index: VideoIndex, operation: tuple) -> None:
    kind, argument = operation
    if kind in ("add", "replace"):
        index.add(encoded(argument))
    elif kind == "delete":
        index.delete(argument)
    elif kind == "compact":
        index.compact()
    elif kind == "save":
        index.save_backend()
    elif kind == "plan":
        with index.writing():
            index._commit(index.snapshot.segments, index.manifest["next_id"], plan={"candidates": 7})
    else:
        repair(index.path)
        index.refresh()


def new_index(folder: Path, backend: str) -> VideoIndex:
    return VideoIndex(storage.new_manifest(model=MODEL, config=CONFIG.to_dict(), backend=backend), [], folder)


def open_index(folder: Path, backend: str) -> VideoIndex:
    there = (folder / storage.MANIFEST).exists()
    return VideoIndex.open(folder) if there else new_index(folder, backend)


def make_base(folder: Path, backend: str) -> dict[str, int]:
    """Nine small commits and a few holes: the next compaction has work to do."""
    index, content = new_index(folder, backend), {}
    for number in range(9):
        operation = ("add", {f"b{number}-{n}": 0 for n in range(3)})
        run(index, operation)
        content = after(content, operation)
    run(index, ("delete", ["b0-0"]))
    return after(content, ("delete", ["b0-0"]))


def found_in(folder: Path) -> dict[str, int]:
    """{video: version} of an index, every row checked; AssertionError where a row is of two minds."""
    if not (folder / storage.MANIFEST).exists():
        return {}
    index = VideoIndex.open(folder)
    content = {row["video_id"]: row["metadata"]["version"] for row in index.rows()}
    assert len(content) == len(index), "a video stands there twice"
    stored = index.snapshot.tensor("frames", np.arange(len(index))).numpy() if content else []
    for row, frames in zip(index.rows(), stored):
        expected = frames_of(row["video_id"], row["metadata"]["version"])
        assert np.array_equal(frames, expected), f"{row['video_id']} has the frames of another"
    text = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))
    query = TextEmbeddings(text, text[:, None], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    hits = index.search_embeddings(query, top_k=5)[0] if content else []
    assert len(hits) == min(5, len(content)) and all(hit.video_id in content for hit in hits), "the search is wrong"
    return content


def verdict(folder: Path, allowed: list[dict[str, int]], backend: str, index: VideoIndex | None = None) -> str:
    """ "ok", or what is wrong after a fault. `allowed`: the contents that the acknowledged commits leave open; `index`:
    the object that met the fault, where its process goes on."""
    try:
        content = found_in(folder)
    except AssertionError as error:
        return f"mixed: {error}"
    except Exception as error:  # whatever it is, the index does not open
        return f"not opened: {type(error).__name__}: {error}"
    if content not in allowed:
        lost = any(content.get(video) != version for video, version in allowed[0].items())
        return "lost: an acknowledged commit" if lost else "mixed: part of a commit"
    try:
        (index or open_index(folder, backend)).add(encoded({"last": 1}))
        if found_in(folder) != {**content, "last": 1}:
            return "stuck: the next commit is not there"
    except Exception as error:
        return f"stuck: {type(error).__name__}: {error}"
    manifest = storage.read_manifest(folder)
    named = {entry["file"] for entry in manifest["segments"]}
    named |= {storage.MANIFEST, ".lock", (manifest.get("faiss") or {}).get("file")}
    left = {path.name for path in folder.iterdir()} - named
    return f"left over: {sorted(left)}" if left else "ok"


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

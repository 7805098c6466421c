"""Opening, adding to and compacting an index of a million rows: seconds and memory, each in a process of its own.

    python benchmarks/opening.py [--rows 1000000] [--folder /tmp/opening]      # writes benchmarks/results/opening.json

The rows are 20,000 generated videos of 12 frames x 512, over and over under new ids and names: nothing here depends on
what the vectors are, so nothing is said of recall (search.py does that). Frames are stored as `merged`, 2.1 kB a row;
opening does not read them. Seconds are by the clock, CPU seconds beside them. Own memory, without pages of files, is
looked at twenty times a second while a step runs, for its highest.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from search_corpus import FRAMES, SEGMENT, make_videos, topics

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
from dmae.retrieval import storage
from dmae.retrieval.bound import coarse_vectors
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.narrow import stored_frames
from dmae.retrieval.segments import segment_arrays, write_segment

RESULTS = Path(__file__).parent / "results" / "opening.json"
ADDED = 1_000


def videos(rows: int, seed: int) -> VideoEmbeddings:
    rng, subjects = torch.Generator().manual_seed(seed), topics()
    return VideoEmbeddings.cat([make_videos("hard", 500, rng, subjects)[0] for _ in range(rows // 500)])


def write(folder: Path, rows: int) -> None:
    config = DMAEConfig.tiny(projection_dim=512, max_frames=FRAMES)
    drawn = videos(SEGMENT, 1)
    arrays = stored_frames(drawn, torch.zeros(drawn.video_mask.shape), "merged")
    arrays["coarse"] = coarse_vectors(drawn, config).half().numpy()
    entries = []
    for start in range(0, rows, SEGMENT):
        ids = np.arange(start, start + SEGMENT)
        lines = [{"video_id": str(i), "path": f"{i}.mp4", "start": 0.0, "end": 12.0} for i in ids]
        entries.append(write_segment(folder, segment_arrays(ids=ids, rows=lines, **arrays)).manifest_entry())
    model = {"name": "synthetic", "revision": None, "weights": "", "processor": ""}
    manifest = storage.new_manifest(generation=1, next_id=rows, model=model, backend="auto", frames="merged")
    storage.write_manifest(folder, manifest | {"config": config.to_dict(), "window": None, "segments": entries})
    VideoIndex.open(folder).save_backend()


def measured(work) -> dict:
    before = own_memory()
    with highest_own_memory() as highest:
        started, cpu = time.perf_counter(), time.process_time()
        kept = work()
        row = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    after = own_memory()
    del kept
    row |= {"own_bytes": after[0], "own_before": before[0], "highest_own": max(highest[0], after[0])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row | {"index_bytes": after[0] - before[0], "resident": after[1], "peak": peak}


@contextmanager
def highest_own_memory() -> Iterator[list[int]]:
    """One number, which grows while the block runs."""
    highest, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            highest[0] = max(highest[0], own_memory()[0])

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield highest
    finally:
        over.set()
        looking.join()


def own_memory() -> tuple[int, int]:
    """Bytes of this process that are no pages of files, and all that are resident."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))


def opened(folder: Path) -> dict:
    return measured(lambda: VideoIndex.open(folder))


def added(folder: Path) -> dict:
    index, new = VideoIndex.open(folder), videos(ADDED, 2)
    items = [{"video_id": f"new{n}", "path": f"new{n}.mp4", "span": (0.0, 12.0)} for n in range(ADDED)]
    encoded = EncodedVideos(new, items, torch.zeros(new.video_mask.shape), [])
    return measured(lambda: index.add(encoded))


def compacted(folder: Path) -> dict:
    """After a third of every segment has gone: all of them are rewritten."""
    index = VideoIndex.open(folder)
    index.delete(map(str, range(0, len(index) // SEGMENT * SEGMENT, 3)))
    return measured(index.compact)


STEPS = {"opening": opened, "adding_1000": added, "compacting": compacted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dmae_opening")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--keep", action="store_true", help="leave the index there for another run")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.folder)))
        return
    if not (args.folder / storage.MANIFEST).exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        write(args.folder, args.rows)
    record: dict = {
        "rows": args.rows,
        "frames": "merged",
        "disk_bytes": sum(f.stat().st_size for f in args.folder.iterdir()),
    }
    for step in args.steps:
        command = [sys.executable, __file__, "--folder", str(args.folder), "--step", step]
        record[step] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    record |= {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if not args.keep:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()

"""Many clients over HTTP while videos come and go: every answer is that of a committed state, and memory is bounded.

python benchmarks/faults/load_http.py --seconds 600 --clients 32

A real `dmae serve` in a process of its own over an index of clips made here, with a tiny random model. One writer in
this process removes and adds four of the videos, one commit after the other; the clients search on kept-alive
connections and look at posters. Before, exact search has answered every query in every one of the 16 states that the
writer can commit: an answer over HTTP must be one of those, ids and order and scores. The server's memory is read twice
a second. The result is the key "load_http" of benchmarks/results/faults.json.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dmae import VideoIndex
from dmae.inference.embedding import EncodedVideos
from dmae.retrieval.indexing import index_videos

QUERIES = ["a red square", "the sky is blue", "two dogs", "a green circle moves up"]
TOP_K = 5
CHANGING = 4  # videos that come and go
POSTER_SHARE = 0.1


class Truth:
    """What exact search answers in every state that the writer can commit."""

    def __init__(self, index: VideoIndex):
        self.names = sorted(index.video_ids)[:CHANGING]
        self.encoded = stored_rows(index, self.names)
        self.answers: dict[str, set] = {query: set() for query in QUERIES}
        for present in itertools.product([True, False], repeat=CHANGING):
            gone = [name for name, there in zip(self.names, present) if not there]
            if gone:
                index.delete(gone)
            for query in QUERIES:
                self.answers[query].add(answer_of(hit.to_dict() for hit in index.search(query, top_k=TOP_K)[0]))
            if gone:
                index.add(self.encoded.split(lambda name, gone=gone: name in gone)[0])


def answer_of(results) -> tuple:
    """Ids in their order with their scores; the fifth digit is the arithmetic's own."""
    return tuple((result["video_id"], round(result["score"], 4)) for result in results)


def stored_rows(index: VideoIndex, names: list[str]) -> EncodedVideos:
    """The rows of some videos, as they can be added again."""
    snapshot = index.snapshot
    at = np.array([place for place, row in enumerate(index.rows()) if row["video_id"] in names])
    rows = [index.rows()[place] for place in at]
    return EncodedVideos(snapshot.gather(at), rows, snapshot.tensor("timestamps", at), skipped=[])


class Client(threading.Thread):
    """Asks on one connection until told to stop."""

    def __init__(self, number: int, port: int, truth: Truth, stop: threading.Event):
        super().__init__(daemon=True)
        self.random, self.port, self.truth, self.stopping = random.Random(number), port, truth, stop
        self.counts: Counter = Counter()
        self.seconds: list[float] = []
        self.wrong: list = []
        self.rows = [0]

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                if self.random.random() < POSTER_SHARE:
                    self.poster(connection)
                else:
                    self.search(connection)
                    self.seconds.append(time.monotonic() - began)
            except (OSError, http.client.HTTPException) as error:
                self.counts[f"broken: {type(error).__name__}"] += 1
                connection.close()

    def search(self, connection) -> None:
        query = self.random.choice(QUERIES)
        connection.request("GET", f"/api/search?q={quote(query)}&top_k={TOP_K}")
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            self.counts[f"status {reply.status}"] += 1
            return
        results = json.loads(body)["results"]
        self.rows = [result["row"] for result in results]
        right = answer_of(results) in self.truth.answers[query]
        self.counts["right" if right else "wrong"] += 1
        if not right:
            self.wrong.append({"query": query, "answer": answer_of(results)})

    def poster(self, connection) -> None:
        """A row may be gone by now (404); anything else is a WebP."""
        connection.request("GET", f"/api/videos/{self.random.choice(self.rows)}/poster")
        reply = connection.getresponse()
        body = reply.read()
        good = reply.status == 404 or (reply.status == 200 and body[8:12] == b"WEBP")
        self.counts["posters" if good else f"poster {reply.status}"] += 1


@contextlib.contextmanager
def served(index: Path, cache: Path, log: Path):
    """(port, process) of a `dmae serve` that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dmae", "serve", str(index), "--port", str(port), "--cache", str(cache)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended: {log.read_text()}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.5)
        yield port, process
    finally:
        process.terminate()
        process.wait()


def resident_mib(process: subprocess.Popen) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def change(index: VideoIndex, truth: Truth, stop: threading.Event) -> int:
    """Remove and add videos until told to stop; returns the number of commits."""
    choose, present, commits = random.Random(0), dict.fromkeys(truth.names, True), 0
    while not stop.is_set():
        name = choose.choice(truth.names)
        if present[name]:
            index.delete([name])
        else:
            index.add(truth.encoded.split(lambda one, name=name: one == name)[0])
        present[name] = not present[name]
        commits += 1
        if commits % 50 == 0:
            index.compact()
        stop.wait(0.05)
    return commits


def run(folder: Path, seconds: float, clients: int) -> dict:
    """The whole trial; `folder` holds the index at `index`."""
    index = VideoIndex.open(folder / "index")
    truth = Truth(index)
    stop = threading.Event()
    with served(folder / "index", folder / "cache", folder / "log.txt") as (port, process):
        asking = [Client(number, port, truth, stop) for number in range(clients)]
        commits: list[int] = []
        writer = threading.Thread(target=lambda: commits.append(change(index, truth, stop)))
        for thread in [*asking, writer]:
            thread.start()
        memory, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            memory.append(resident_mib(process))
            time.sleep(0.5)
        stop.set()
        for thread in [*asking, writer]:
            thread.join(timeout=180)
        log = (folder / "log.txt").read_text()
    return summary(asking, sum(commits), memory, seconds, log)


def summary(asking: list[Client], commits: int, memory: list[float], seconds: float, log: str) -> dict:
    """Counts, times, and how memory went: `growth_mib` is the median of the last fifth less that of the second."""
    counts = sum((client.counts for client in asking), Counter())
    took = sorted(second for client in asking for second in client.seconds)
    fifth = max(1, len(memory) // 5)
    wrong = [one for client in asking for one in client.wrong]
    for one in wrong[:3]:
        print("wrong:", one, file=sys.stderr)
    print("\n".join(log.splitlines()[-5:]), file=sys.stderr)
    return {
        "clients": len(asking),
        "seconds": seconds,
        "answers": counts["right"] + counts["wrong"],
        "wrong": counts["wrong"],
        "failed": {name: count for name, count in counts.items() if name not in ("right", "wrong", "posters")},
        "posters": counts["posters"],
        "commits": commits,
        "seconds_median": round(took[len(took) // 2], 3) if took else None,
        "seconds_99": round(took[int(len(took) * 0.99)], 3) if took else None,
        "memory_mib": {"first": round(memory[0]), "largest": round(max(memory)), "last": round(memory[-1])},
        "growth_mib": round(float(np.median(memory[-fifth:]) - np.median(memory[fifth : 2 * fifth] or memory)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--index", type=Path, help="a small index to load, copied first; default: clips made here")
    parser.add_argument("--no-result", action="store_true", help="print only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.index:
            shutil.copytree(arguments.index, Path(folder) / "index")
        else:
            make_index(Path(folder))
        result = run(Path(folder), arguments.seconds, arguments.clients)
    print(json.dumps(result))
    if not arguments.no_result:
        from report import merge_result

        merge_result("load_http", result, seed=0, trials=result["answers"])


def make_index(folder: Path) -> None:
    """Twelve short clips of moving noise and a tiny model of the true format."""
    import av
    from mutated_videos import save_model

    videos = folder / "videos"
    videos.mkdir()
    for seed in range(12):
        picture = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(videos / f"clip{seed:02}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for shift in range(16):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * shift, axis=1).copy(), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    index_videos(videos, folder / "index", str(save_model(folder / "model")), num_workers=0)


if __name__ == "__main__":
    main()

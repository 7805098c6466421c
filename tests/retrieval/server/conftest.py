"""Running servers: `dmae serve` in a process of its own, spoken to over HTTP."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos

pytest.importorskip("fastapi")
START_SECONDS = 600  # a machine under load starts it in tens of seconds


class Server:
    """A running `dmae serve`: its address, its process, and requests to it."""

    def __init__(self, folder: Path, process: subprocess.Popen, port: int, log: Path):
        self.folder, self.process, self.port, self.log = folder, process, port, log
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, method: str | None = None, data: bytes | None = None, **headers):
        """(status, headers, body); header names with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def json(self, path: str, content=None, method: str | None = None, **headers):
        """(status, parsed body)."""
        data = None if content is None else json.dumps(content).encode()
        status, _, body = self.ask(path, method, data, **{"Content_Type": "application/json"} | headers)
        return status, json.loads(body) if body else None

    def raw(self, request: bytes, seconds: float = 600) -> bytes:
        """The answer to bytes as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return f"{answer.status} ".encode() + answer.read()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=600)


@contextlib.contextmanager
def running(folder: Path, *options: str, **environment: str):
    """`with running(index) as server:`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.with_name(f"{folder.name}-{port}.log")
    with log.open("w") as stream:
        command = [sys.executable, "-m", "dmae", "serve", str(folder), "--port", str(port), *options]
        kept = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder.parent / "cache"), **environment}
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=kept)
        server = Server(folder, process, port, log)
        try:
            for _ in range(START_SECONDS * 4):
                with contextlib.suppress(OSError):
                    if server.ask("/health")[0]:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
            yield server
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def serve():
    """`with serve(index_folder, "--token", …) as server:` for tests that need a server of their own."""
    return running


@pytest.fixture(scope="session")
def made_index(clips, model_folder, tmp_path_factory, make_clip) -> Path:
    """The twelve clips, one that browsers cannot play, one with a hostile name and text, indexed once."""
    root = tmp_path_factory.mktemp("served")
    videos = root / "videos"
    shutil.copytree(clips, videos)
    make_clip(videos / "<img src=x onerror=alert(1)>.mp4", 21)
    make_clip(videos / "old.avi", 22, codec="mpeg4")
    rows = [
        {"file_name": f"clip{number:02d}.mp4", "year": 2000 + number, "note": "<b>bold</b>"} for number in range(12)
    ]
    rows += [{"file_name": "old.avi", "year": 1990, "note": '"quoted"'}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (videos / "metadata.jsonl").write_text(lines)
    index_videos(videos, root / "index", str(model_folder), num_workers=0)
    return root / "index"


@pytest.fixture
def own_index(made_index, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made_index, tmp_path / "index"))


@pytest.fixture(scope="session")
def server(made_index):
    """One server for all tests that only ask."""
    with running(made_index) as one:
        yield one


@pytest.fixture(scope="session")
def windowed(encoded, model, processor):
    """Four windows of one video, not in the order of time, and four whole videos; `clip05` claims 95 seconds."""
    from dmae.inference.embedding import EncodedVideos

    spans = [(0.5, 1.5), (0.0, 1.0), (1.0, 2.0), (1.5, 2.0), *[(None, None)] * 4]
    items = []
    for row, (start, end) in enumerate(spans):
        item = encoded.items[0 if row < 4 else row]
        items.append({**item, "start": start, "end": end, "metadata": {"year": 2000 + row, "note": "=1+1"}})
    items[5] |= {"start": 10.0, "end": 105.0}
    items[6] |= {"copies": [{"path": encoded.items[7]["path"], "signature": [1, 2]}]}
    return VideoIndex.build(EncodedVideos(encoded.embeddings[:8], items, encoded.timestamps[:8], []), model, processor)


@pytest.fixture
def ask(windowed, tmp_path):
    """ask(**options) -> a client of an application of its own, without a socket; workers' tasks run here."""
    from fastapi.testclient import TestClient

    from dmae.retrieval.server import app
    from dmae.retrieval.server.options import ServerOptions

    def make(**options):
        if not (tmp_path / "index").exists():
            windowed.save(tmp_path / "index")
            windowed.path = None  # it is shared, and stays in memory
        opened = VideoIndex.open(tmp_path / "index", windowed.model, windowed.processor)
        made = app.make_app(opened, ServerOptions(cache=tmp_path / "cache", **options))
        service = made.state.service
        service.background.best_scores = np.linspace(0, 1, 128)
        service.background.generation = opened.manifest["generation"]
        service.studio.run = lambda function, *arguments: function(*arguments)
        return TestClient(made, base_url="http://localhost:7860", follow_redirects=False)

    return make


@pytest.fixture
def client(ask):
    return ask()


@pytest.fixture
def recorded(monkeypatch):
    """recorded(owner, name) -> the arguments of every call of a method, which still does what it does."""

    def record(owner, name: str) -> list[tuple]:
        calls, does = [], getattr(owner, name)

        def call(*arguments, **named):
            calls.append((*arguments, *named.values()))
            return does(*arguments, **named)

        monkeypatch.setattr(owner, name, call)
        return calls

    return record

"""What visitors of the Space upload is gone after a while; the clips that travel with the page stay."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from dmae.hub_cards.staging import stage_space

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
START = "import sys, runpy; sys.path.append({packages!r}); runpy.run_path('app.py', run_name='__main__')"


def upload(address: str, content: bytes) -> Path:
    """One file to the page, as a browser sends it; where the page has put it."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="mine.mp4"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{address}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return Path(json.loads(response.read())[0])


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/config", timeout=5):
            return True
    except OSError:
        return False


def until(happened, server, log: Path) -> None:
    for _ in range(600):
        if happened():
            return
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)
    raise TimeoutError(log.read_text())


def test_uploads_are_deleted_and_examples_are_not(hub, model_folder, clips, tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    stage_space(folder, str(model_folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = hub.environment(tmp_path / "home") | {
        "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path / "temp"),
        "DMAE_KEEP_SECONDS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-I", "-S", "-c", START.format(packages=str(Path(torch.__file__).parents[1]))]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: answers(address), server, tmp_path / "log")
        place = upload(address, clips["red"].read_bytes())
        assert place.is_relative_to(tmp_path / "temp")
        until(lambda: not place.exists(), server, tmp_path / "log")
        assert len(list((folder / "examples").glob("*.mp4"))) == 4
    finally:
        server.terminate()
        server.wait(30)

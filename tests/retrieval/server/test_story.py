"""The whole story, as a new user lives it: a strange folder, an interrupted run, renamed files, and the page."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from dmae.commands.index import default_index
from dmae.retrieval.storage import read_manifest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra [browser]")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]
WAIT = 120_000
STRANGE = ["Urlaub 2019/größe.mp4", "Urlaub 2019/<b>bold</b> & co.mp4", "a/b/c/deep.mkv", "line\nbreak.mp4", "old.avi"]
SAID = "1\n00:00:01,000 --> 00:00:01,800\nThe harvest begins on Monday\n"
# Each batch is told, and slow enough to be interrupted.
SLOWED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from dmae.retrieval import indexing

def slowly(*arguments, batches=indexing.iter_videos, **options):
    for batch in batches(*arguments, **options):
        yield batch
        print("a batch", flush=True)
        time.sleep(1.0)

indexing.iter_videos = slowly
import dmae.cli
dmae.cli.main()
"""


def gesture(path: Path, rate: int = 8, seconds: int = 2, quality: str = "18") -> Path:
    """A bright bar that waves over a grid: nothing else in the folder looks like it, and it is silent."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": quality})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(rate * seconds):
            image = np.zeros((64, 96, 3), np.uint8)
            image[::4], image[:, ::4] = (0, 90, 160), (160, 90, 0)
            left = 40 + round(30 * np.sin(2 * np.pi * number / rate))
            image[8:56, left : left + 10] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path, make_clip):
    """What people have: names of every kind, subtitles, rubbish, a file twice, a film that was encoded again."""
    videos = tmp_path / "My Videos"
    for number, name in enumerate(STRANGE):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        make_clip(videos / name, 30 + number, codec="mpeg4" if name.endswith(".avi") else "libx264")
    for number in range(6):
        make_clip(videos / f"clip {number}.mp4", 50 + number)
    make_clip(videos / "talk.mp4", 70, seconds=3)
    (videos / "talk.srt").write_text(SAID)
    gesture(videos / "wave.mp4")
    gesture(videos / "wave again.mp4", quality="30")
    shutil.copy(videos / "talk.mp4", videos / "a" / "talk (1).mp4")
    (videos / "broken.mp4").write_bytes(random.Random(1).randbytes(5_000))
    (videos / "notes.txt").write_text("not a video")
    (videos / "@eaDir").mkdir()
    shutil.copy(videos / "old.avi", videos / "@eaDir" / "thumb.avi")
    return videos


def index(videos: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dmae", "index", str(videos), "--num-workers", "0", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def interrupted(videos: Path, *options: str) -> None:
    """The first run, and Ctrl-C in the middle of it."""
    command = [sys.executable, "-c", SLOWED, "index", str(videos), "--num-workers", "0", "--batch-size", "2", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        for _ in range(2):
            assert process.stdout.readline() == "a batch\n"
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 130 and "finished work is kept" in told


def test_from_a_strange_folder_to_what_is_in_it(folder, model_folder, serve, tmp_path):
    target = default_index(folder)
    interrupted(folder, "--model", str(model_folder))
    assert sum(segment["rows"] for segment in read_manifest(target)["segments"]) >= 2
    done = index(folder)
    total = 14  # contents that can be read: a copy is one with its original; rubbish and what systems keep are none
    assert f"index: {total} videos, " in done.stderr and "1 skipped" in done.stderr and "broken.mp4" in done.stderr
    embedded = int(done.stderr.rsplit("videos, ", 1)[1].split(" embedded")[0])
    assert 0 < embedded < total, "what the interrupted run had done was done again"

    files = sorted(
        path for path in folder.rglob("*") if path.suffix in (".mp4", ".avi", ".mkv") and "@" not in str(path)
    )
    for number, path in enumerate(files[::2]):
        if path.name not in ("talk.mp4", "broken.mp4"):
            path.rename(path.with_name(f"renamed {number}{path.suffix}"))
    (folder / "Urlaub 2019").rename(folder / "Ferien")
    again = index(folder)
    assert f"index: {total} videos, 0 embedded now" in again.stderr and "broken.mp4: " not in again.stderr

    with serve(target) as server, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT)
        page.goto(server.url)
        first = page.locator("#results ol.cards .card").first

        page.get_by_label("What happens in the video").fill("harvest on monday")
        page.get_by_label("What happens in the video").press("Enter")
        page.wait_for_selector("#results ol.cards .card .poster")
        assert "said at 0:01" in first.inner_text() and "talk" in first.locator("h2").inner_text()
        assert "also " in first.inner_text()  # its copy
        first.locator(".poster").click()
        page.wait_for_function("() => document.querySelector('#player video').currentTime > 0.9")
        page.keyboard.press("Escape")

        page.get_by_role("link", name="Video search").click()  # words that stay would be searched beside the clip
        page.wait_for_selector(".welcome")
        page.set_input_files("#clip", str(gesture(tmp_path / "what I remember.mp4", rate=12, seconds=1)))
        page.wait_for_url("**/?clip=*")
        waves = {"wave", "wave again"} | {
            f"renamed {number}" for number, path in enumerate(files[::2]) if "wave" in path.name
        }
        names = page.locator("#results ol.cards .card h2").all_inner_texts()
        assert set(names[:2]) <= waves, names

        first.locator("[data-do=like]").click()
        page.wait_for_url("**/?like=*")
        assert set(page.locator("#results ol.cards .card h2").all_inner_texts()[:2]) == set(names[:2])
        browser.close()

    listed = subprocess.run(
        [sys.executable, "-m", "dmae", "duplicates", str(target)], capture_output=True, text=True, check=True
    )
    assert "same content" in listed.stdout and "talk" in listed.stdout

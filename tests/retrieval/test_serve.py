"""The server over HTTP: page, API, clips, limits, live reload, SIGTERM, and many clients while the index changes."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos

pytest.importorskip("gradio")


@pytest.fixture
def server(clips, tmp_path, model_folder):
    """(url, index folder, process) of a running `dmae serve`."""
    folder = tmp_path / "index"
    index_videos(clips, folder, str(model_folder), num_workers=0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "dmae", "serve", str(folder), "--port", str(port)],
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
            "OMP_NUM_THREADS": "1",
        },
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            get(url + "/health")
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.5)
    yield url, folder, process
    process.kill()
    process.wait()
    log.close()


def get(url, **options):
    with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=60) as answer:
        return answer.read()


def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


def status_of(url, **options):
    try:
        get(url, **options)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.mark.timeout(600)
def test_page_api_limits_reload_and_shutdown(server):
    from gradio_client.exceptions import AppError
    from gradio_client.utils import Status

    url, folder, process = server
    assert json.loads(get(url + "/health"))["videos"] == 12
    search = client(url)
    answer = search.predict("a red square", 3, api_name="/search")
    index = VideoIndex.open(folder)
    expected = index.search("a red square", top_k=3)[0]
    assert [hit["video_id"] for hit in answer] == [hit.video_id for hit in expected]
    assert get(url + answer[0]["clip"])[4:8] == b"ftyp"
    assert status_of(url + "/clip?id=../../etc/passwd") == 404
    assert status_of(url + "/search", data=b"", headers={"Content-Length": str(10**9)}, method="POST") == 413
    for bad in ["", "x" * 10_000]:
        with pytest.raises(AppError, match=r"empty|characters"):
            search.predict(bad, 3, api_name="/search")
    best = expected[0].video_id
    index.delete([best])
    after = search.predict("a red square", 11, api_name="/search")
    assert best not in [hit["video_id"] for hit in after] and len(after) == 11
    jobs = [search.submit("a blue sky", 3, api_name="/search") for _ in range(8)]
    while any(job.status().code in (Status.STARTING, Status.JOINING_QUEUE) for job in jobs):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert [len(job.result(timeout=60)) for job in jobs] == [3] * 8
    process.wait(timeout=60)


@pytest.mark.timeout(600)
def test_a_client_cannot_name_files_of_the_server(server, tmp_path):
    """A path in place of an upload is refused before it is touched: no copy of it, no waiting on a FIFO."""
    url, _, _ = server
    secret, fifo = tmp_path / "secret.mp4", tmp_path / "fifo.mp4"
    secret.write_text("the secret")
    os.mkfifo(fifo)
    shown = json.loads(get(url + "/config"))["dependencies"][0]["id"]
    for number, path in enumerate([secret, fifo, "/dev/zero", "/etc/passwd"]):
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        for data in (["", named, 6], [named, None, 6]):
            session = f"session{number}{data.index(named)}"
            body = json.dumps({"data": data, "fn_index": shown, "session_hash": session}).encode()
            get(url + "/gradio_api/queue/join", data=body, headers={"Content-Type": "application/json"})
            told = get(f"{url}/gradio_api/queue/data?session_hash={session}").decode()
            assert '"success":true' not in told and "process_completed" in told
    copied = {file.name for file in (tmp_path / "uploads").rglob("*") if file.is_file()}
    assert not copied & {"secret.mp4", "fifo.mp4", "zero", "passwd"}
    assert json.loads(get(url + "/health"))["status"] == "ok"


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_the_page_in_a_browser(server, tmp_path):
    from playwright.sync_api import sync_playwright

    url, _, _ = server
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(url, timeout=120_000)
        page.get_by_label("Words").fill("a red square moves left")
        page.get_by_label("Words").press("Enter")
        page.wait_for_selector(".hits figure", timeout=120_000)
        assert page.locator(".hits figure").count() == 6
        assert page.locator(".map td").count() > 0
        page.wait_for_function("document.querySelector('.hits video').readyState >= 2", timeout=60_000)
        page.screenshot(path=os.environ.get("DMAE_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)
        browser.close()


@pytest.mark.load
@pytest.mark.timeout(1200)
def test_thirty_two_clients_while_videos_come_and_go(server):
    """Every answer is exact search's answer over some committed state."""
    url, folder, _ = server
    seconds, queries = (
        float(os.environ.get("DMAE_LOAD_SECONDS", "120")),
        ["a red square", "the sky is blue", "two dogs"],
    )
    writer = VideoIndex.open(folder)
    allowed = {query: set() for query in queries}
    removable = sorted(writer.video_ids)[:4]
    encoded = rows_of(writer, removable)

    def remember():
        for query in queries:
            allowed[query].add(tuple(hit.video_id for hit in writer.search(query, top_k=5)[0]))

    remember()
    for subset in range(1, 2 ** len(removable)):  # every state that the writer can commit, computed beforehand
        gone = [name for bit, name in enumerate(removable) if subset >> bit & 1]
        writer.delete(gone)
        remember()
        writer.add(encoded.split(lambda name, gone=gone: name in gone)[0])
    stop, answers = time.monotonic() + seconds, []

    def ask(number):
        search, count = client(url), 0
        while time.monotonic() < stop:
            query = queries[(number + count) % len(queries)]
            found = tuple(hit["video_id"] for hit in search.predict(query, 5, api_name="/search"))
            answers.append(found in allowed[query])
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        clients = [pool.submit(ask, number) for number in range(32)]
        changes = 0
        while time.monotonic() < stop:
            name = removable[changes % len(removable)]
            writer.delete([name])
            time.sleep(0.2)
            writer.add(encoded.split(lambda video_id, name=name: video_id == name)[0])
            changes += 1
        asked = sum(one.result() for one in clients)
    print(f"{asked} answers from 32 clients in {seconds:.0f} s, {changes} deletions and additions")
    assert asked == len(answers) and all(answers) and changes > 3
    assert json.loads(get(url + "/health"))["generation"] == storage.read_manifest(folder)["generation"]


def rows_of(index, video_ids):
    """The stored rows of some videos, as they can be added again."""
    import numpy as np

    from dmae.inference.embedding import EncodedVideos

    snapshot = index.snapshot
    at = np.array([n for n, row in enumerate(index.rows()) if row["video_id"] in video_ids])
    return EncodedVideos(
        snapshot.gather(at), [index.rows()[n] for n in at], snapshot.tensor("timestamps", at), skipped=[]
    )

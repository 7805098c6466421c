"""What a client must not be able to do, tried over real HTTP."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request

from dmae.retrieval.indexing import index_videos
from dmae.retrieval.server import connections, security
from dmae.retrieval.server.files import file_response
from dmae.retrieval.server.options import ServerOptions, checked_options, host_allowed
from dmae.retrieval.server.security import COOKIE

TOKEN = "a-long-enough-token"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
MULTIPART = (
    b'--edge\r\nContent-Disposition: form-data; name="clip"; filename="%s"\r\n'
    b"Content-Type: video/mp4\r\n\r\n%s\r\n--edge--\r\n"
)


def upload(content: bytes, name: bytes = b"clip.mp4") -> dict:
    return {"data": MULTIPART % (name, content), "Content_Type": "multipart/form-data; boundary=edge"}


# ---- reading what is not theirs ---------------------------------------------------------------------------------


def test_no_path_in_a_request_reaches_the_disk(server, tmp_path):
    """Neither in place of a row, nor of a clip, nor of a page's file; FIFOs and devices do not stop the server."""
    secret, fifo = tmp_path / "secret.mp4", tmp_path / "fifo.mp4"
    secret.write_text("the secret")
    os.mkfifo(fifo)
    for path in [secret, fifo, "/etc/passwd", "/dev/zero", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"]:
        for route in ["/api/videos/{}/file", "/static/{}", "/static/..%2f{}", "/api/videos/{}/poster", "/{}"]:
            status, _, body = server.ask(route.format(path))
            assert status in (404, 422) and b"root:" not in body and b"the secret" not in body
        for query in [f"clip={path}", f"like={path}", f"q=x&filter=path={path}"]:
            status, _, body = server.ask(f"/api/search?{query}")
            assert b"root:" not in body and b"the secret" not in body
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        assert server.json("/api/search", {"clip": named, "q": "x"}, "POST")[0] in (400, 415, 422)
        assert server.json("/gradio_api/queue/join", {"data": ["", named, 6]}, "POST")[0] == 404
    assert server.json("/health")[0] == 200


@pytest.fixture(scope="module")
def guarded(made_index, serve, tmp_path_factory):
    """A server with a token, over videos of which one has become a FIFO and one is gone; its temporary files apart."""
    root = tmp_path_factory.mktemp("guarded")
    videos, index = root / "videos", root / "index"
    shutil.copytree(made_index.parent / "videos", videos)
    model = json.loads((made_index / "manifest.json").read_text())["model"]["name"]
    index_videos(videos, index, model, num_workers=0)
    for name in ("clip03.mp4", "clip04.mp4"):
        (videos / name).unlink()
    os.mkfifo(videos / "clip03.mp4")
    (root / "tmp").mkdir()
    with serve(index, "--name", "videos.home", DMAE_TOKEN=TOKEN, TMPDIR=str(root / "tmp")) as one:
        yield one


def test_an_indexed_path_that_became_something_else_is_not_opened(guarded):
    """A FIFO in a video's place answers 404 at once, instead of waiting for a writer for ever."""
    _, answer = guarded.json("/api/search?q=red&top_k=50", **SHOWN)
    rows = {result["video_id"]: result for result in answer["results"]}
    for name in ("clip03", "clip04"):
        assert rows[name]["available"] is False
        for route in ("file", "poster", "preview"):
            status, reply = guarded.json(f"/api/videos/{rows[name]['row']}/{route}", **SHOWN)
            assert status == 404 and "not there" in reply["detail"]
    assert rows["clip05"]["available"] is True


def test_a_video_is_served_as_a_video_whatever_it_is_called(server):
    for row in range(3):
        status, headers, _ = server.ask(f"/api/videos/{row}/file", Range="bytes=0-7")
        assert status == 206 and headers["Content-Type"].startswith("video/")
        assert headers["X-Content-Type-Options"] == "nosniff" and "sandbox" in headers["Content-Security-Policy"]


def test_file_of_a_page_is_a_download(tmp_path):
    """An indexed file that is named like a page must not run as one in this server's name."""
    for name in ["clip.html", "clip.svg", "clip.xhtml", "clip"]:
        (tmp_path / name).write_text("<script>alert(1)</script>")
        shown, taken = (file_response(str(tmp_path / name), download) for download in (False, True))
        assert shown.media_type == "application/octet-stream" and "content-disposition" not in shown.headers
        assert taken.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
    odd = tmp_path / 'a "b"; c.mp4'
    odd.write_bytes(b"")
    taken = file_response(str(odd), download=True)
    assert taken.headers["content-disposition"].endswith("a%20%22b%22%3B%20c.mp4") and taken.media_type == "video/mp4"


# ---- whom the server answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "header", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "[::1]:80", True),
        ("127.0.0.1", "attacker.example:7860", False),
        ("127.0.0.1", "127.0.0.1.attacker.example", False),
        ("127.0.0.1", "localhost@attacker.example", False),
        ("127.0.0.1", "192.168.1.5", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "attacker.example", False),
        ("0.0.0.0", socket.gethostname(), True),
        ("0.0.0.0", "videos.home", True),
    ],
)
def test_host_names(listen, header, allowed):
    assert host_allowed(header, ServerOptions(host=listen, names=("videos.home",))) is allowed


def test_another_host_name_is_refused_over_http(server):
    """DNS rebinding: the attacker's page names the attacker's host."""
    for path in ("/", "/health", "/api/search?q=red", "/static/page.css", "/static/base.css"):
        status, reply = server.json(path, Host="attacker.example")
        assert status == 421 and "attacker.example" in reply["detail"]
    assert server.json("/api/search?q=red", Host="localhost")[0] == 200
    assert server.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"421")


def test_another_sites_page_cannot_change_anything(server):
    wish = {"kept": True}
    for headers in ({"Origin": "http://attacker.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
        assert server.json("/api/videos/0/favourite", wish, "POST", **headers)[0] == 403
    _, headers, _ = server.ask("/api/search?q=red", Origin="http://attacker.example")
    assert "Access-Control-Allow-Origin" not in headers


def test_only_loopback_without_a_token(monkeypatch):
    monkeypatch.delenv("DMAE_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"--host 0\.0\.0\.0 lets other machines in.*--token.*--no-token"):
        checked_options(None, False, host="0.0.0.0")
    with pytest.raises(ValueError, match="has 5 characters"):
        checked_options("short", False)
    with pytest.raises(ValueError, match="exclude each other"):
        checked_options(TOKEN, True)
    assert checked_options(None, True, host="0.0.0.0").token is None
    assert checked_options(TOKEN, False, host="0.0.0.0").token == TOKEN
    assert checked_options(None, False, host="::1").host == "::1"
    monkeypatch.setenv("DMAE_TOKEN", TOKEN)
    assert checked_options(None, False, host="0.0.0.0").token == TOKEN


def test_the_command_refuses_before_it_loads_anything(made_index, tmp_path):
    def told(*arguments):
        command = [sys.executable, "-X", "importtime", "-m", "dmae", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
        loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
        assert done.returncode == 1 and "torch" not in loaded
        return done.stderr.splitlines()[-1]

    assert "0.0.0.0" in told(str(made_index), "--host", "0.0.0.0")
    assert "holds no index" in told(str(tmp_path))


def test_token(guarded):
    """Without it only /health, login and the page's looks; with it everything."""
    assert guarded.json("/health") == (200, {"status": "ok"})
    for path in ("/api/search?q=red", "/api/videos/0/file", "/metrics", "/openapi.json", "/api/saved"):
        status, reply = guarded.json(path)
        assert status == 401 and "Bearer" in reply["detail"]
        assert guarded.json(path, Authorization="Bearer wrong-but-as-long")[0] == 401
        assert guarded.ask(path, **SHOWN)[0] == 200
    assert b'name="token"' in guarded.ask("/", Accept="text/html")[2]  # redirected to the login
    assert guarded.json("/api/search?q=red", Host="videos.home")[0] == 401
    wrong = guarded.ask("/login", "POST", b"token=nonsense", Content_Type="application/x-www-form-urlencoded")
    assert wrong[0] == 401 and TOKEN.encode() not in wrong[2]
    answer = guarded.raw(
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\ntoken=%s" % (len(TOKEN) + 6, TOKEN.encode())
    )
    assert answer.startswith(b"303")
    assert guarded.ask("/metrics", Cookie=f"{COOKIE}={TOKEN}")[0] == 401  # the cookie is not the token
    assert TOKEN not in guarded.log.read_text()


# ---- what the server has to read --------------------------------------------------------------------------------

HEAD = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=edge\r\n"


def test_bodies_are_bounded_announced_or_chunked(server):
    assert server.raw(HEAD + b"Content-Length: 1000000000\r\n\r\n").startswith(b"413")
    assert server.raw(HEAD + b"Content-Length: nonsense\r\n\r\n").startswith(b"400")
    start = MULTIPART.split(b"%s\r\n--edge")[0] % b"big.mp4"
    piece = b"%x\r\n%s\r\n" % (2**20, bytes(2**20))
    with socket.create_connection(("127.0.0.1", server.port), timeout=600) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(start), start))
        sent = 0
        with contextlib.suppress(OSError):  # refused while we are sending
            for _ in range(200):
                connection.sendall(piece)
                sent += 1
        assert sent < 200
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
    assert b" 413 " in answer or sent < 150
    assert server.json("/health")[0] == 200


@pytest.fixture
def small_server(monkeypatch, request):
    """The port of an application behind the same guard and protocol, with 8 connections.

    Parameter: (seconds for the headers, seconds for a piece of the body). A bound that a test is not about is out of
    reach: a busy machine may take its time between two lines of a test.
    """
    headers, body = getattr(request, "param", (600, 600))
    monkeypatch.setattr(connections, "REQUEST_SECONDS", headers)
    monkeypatch.setattr(security, "BODY_SECONDS", body)
    app = FastAPI()

    @app.post("/")
    async def read(request: Request):
        return len(await request.body())

    app.add_middleware(security.Guard, options=ServerOptions(), session=security.Session(None))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        settings = {"http": connections.limited_protocol(8), "log_level": "critical", "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(app, **settings))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(timeout=600)


def test_connections_of_one_client_are_bounded(small_server):
    ask = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab"
    held = [socket.create_connection(("127.0.0.1", small_server), timeout=600) for _ in range(8)]
    for connection in held:
        connection.sendall(ask)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", small_server), timeout=600) as ninth:
        assert ninth.recv(4096).startswith(b"HTTP/1.1 429")
    for connection in held:
        connection.close()
    told, deadline = b"", time.monotonic() + 600
    while b" 200 " not in told:  # as soon as the server has noticed
        assert time.monotonic() < deadline
        with socket.create_connection(("127.0.0.1", small_server), timeout=600) as again, contextlib.suppress(OSError):
            again.sendall(ask)
            told = again.recv(4096)


@pytest.mark.parametrize(
    ("small_server", "request_", "told"),
    [
        ((0.5, 600), b"", b""),
        ((0.5, 600), b"GET / HTTP/1.1\r\nHost: loc", b""),
        ((600, 0.5), b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n1234", b"408"),
    ],
    indirect=["small_server"],
)
def test_silence_is_closed(small_server, request_, told):
    """Headers that never end, and a body that stops coming, do not hold a connection for ever."""
    with socket.create_connection(("127.0.0.1", small_server), timeout=600) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):  # closed while we were still on our way
            connection.sendall(request_)
            answer = connection.recv(4096)
        assert told in answer  # b"" is the end of the connection; without it recv would wait


# ---- no user's text is markup -----------------------------------------------------------------------------------


def test_names_queries_and_columns_are_text(server):
    for path in ("/?q=<script>alert(1)</script>&filter=note=*", "/?q=red&size=48", "/?q=red&sort=<b>x", "/saved"):
        status, headers, body = server.ask(path.replace("<", "%3C").replace(">", "%3E").replace(" ", "%20"))
        page = body.decode()
        assert status == 200 and "<script>alert" not in page and "<img src=x" not in page and "<b>bold" not in page
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "&lt;img src=x onerror=alert(1)&gt;" in server.ask("/?q=red&size=48")[2].decode()


def test_pages_need_nothing_that_the_policy_forbids(server):
    """No inline script, style or handler, and nothing from elsewhere."""
    for path in ("/", "/?q=red", "/videos/0?q=red", "/saved", "/docs", "/login"):
        page = server.ask(path, Accept="text/html")[2].decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=\"|<script>|javascript:", page), path
        for address in re.findall(r'(?:src|href|action)="([^"]*)"', page):
            assert not re.match(r"https?:|//", address), (path, address)


def test_what_a_page_is_made_of_is_there_before_the_login(guarded):
    page = guarded.ask("/login", Accept="text/html")[2].decode()
    parts = re.findall(r'(?:src|href)="(/static/[^"]*)"', page)
    assert {"/static/base.css", "/static/page.css", "/static/page.js"} <= set(parts)
    for part in parts:
        status, headers, body = guarded.ask(part)
        assert status == 200 and body, part
        assert part.endswith(".css") == headers["Content-Type"].startswith("text/css")


# ---- the last of the guarded server -----------------------------------------------------------------------------


def test_uploads_are_gone_after_the_answer_and_after_the_server(guarded, clips):
    """Readable clips and nonsense alike leave nothing in the folder for temporary files. Ends the server."""
    place = guarded.folder.with_name("tmp")
    clip = (clips / "clip02.mp4").read_bytes()
    status, _, body = guarded.ask("/api/search", "POST", **upload(clip, b"../../evil.mp4"), **SHOWN)
    assert status == 200 and json.loads(body)["results"][0]["video_id"] == "clip02"
    for nonsense in (b"no video", b"", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"):
        status, _, body = guarded.ask("/api/search", "POST", **upload(nonsense), **SHOWN)
        assert status == 400 and "no clip or picture" in json.loads(body)["detail"] and str(place) not in str(body)
    assert not [file for file in place.rglob("*") if file.is_file()]
    assert guarded.stop() == 0
    assert not list(place.iterdir())
    assert not Path("evil.mp4").exists()

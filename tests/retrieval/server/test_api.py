"""The REST API over HTTP: the contract's fields, media, errors as JSON, export, live reload, saved searches."""

import csv
import http.server
import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult
from dmae.retrieval.server.export import as_csv, as_edl, timecode

FIELDS = {"video_id", "path", "score", "start", "end", "moment", "reasons", "metadata"}


def form(name: str, content: bytes, **fields: str) -> dict:
    """A form with a file in `clip`."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    head = f'--edge\r\nContent-Disposition: form-data; name="clip"; filename="{name}"\r\n\r\n'
    data = "".join(parts).encode() + head.encode() + content + b"\r\n--edge--\r\n"
    return {"data": data, "Content_Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def index(made_index):
    return VideoIndex.open(made_index)


def test_search_answers_as_the_library_does(server, index):
    for words in ("a red square", "two dogs run"):
        status, answer = server.json(f"/api/search?q={words.replace(' ', '+')}&top_k=5")
        assert status == 200 and answer["query"] == words and len(answer["results"]) == 5
        for result, hit in zip(answer["results"], index.search(words, top_k=5)[0], strict=True):
            assert result.keys() >= FIELDS
            assert (result["video_id"], result["path"], result["row"]) == (hit.video_id, hit.path, hit.row)
            assert result["score"] == pytest.approx(hit.score, abs=1e-5) and result["moment"] == hit.moment
            assert result["reasons"] and result["available"] and result["metadata"] == hit.metadata
            assert result["fit"] is None or 0 <= result["fit"] <= 1


def test_clips_pictures_and_words_beside_them(server, index, clips):
    clip = clips / "clip07.mp4"
    status, _, body = server.ask("/api/search", "POST", **form("a.mp4", clip.read_bytes(), top_k="3"))
    found = [hit["video_id"] for hit in json.loads(body)["results"]]
    assert status == 200 and found == [hit.video_id for hit in index.search_by_video(clip, top_k=3)]
    with av.open(str(clip)) as container:
        frame = next(container.decode(video=0)).to_image()
    for kind in ("PNG", "JPEG", "WEBP"):
        picture = io.BytesIO()
        frame.save(picture, kind)
        status, _, body = server.ask("/api/search", "POST", **form(f"a.{kind}", picture.getvalue(), top_k="5"))
        assert status == 200 and "clip07" in [hit["video_id"] for hit in json.loads(body)["results"]]
    mixed = server.ask("/api/search", "POST", **form("a.mp4", clip.read_bytes(), q="a red square", top_k="14"))
    plain = server.ask("/api/search", "POST", **form("a.mp4", clip.read_bytes(), top_k="14"))
    assert json.loads(mixed[2])["results"] != json.loads(plain[2])["results"]


def test_like_filter_and_minus(server):
    _, like = server.json("/api/search?like=3&top_k=3")
    _, described = server.json("/api/videos/3")
    assert like["results"][0]["video_id"] == described["video_id"]
    _, filtered = server.json("/api/search?q=red&filter=year=2003")
    assert [hit["video_id"] for hit in filtered["results"]] == ["clip03"]
    _, plain = server.json("/api/search?q=red+square&top_k=14")
    _, minus = server.json("/api/search?q=red+square+-dogs&top_k=14")
    assert {hit["row"] for hit in plain["results"]} == {hit["row"] for hit in minus["results"]}
    assert plain["results"][0]["score"] != minus["results"][0]["score"]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/api/search", 400, "empty"),
        ("/api/search?q=+", 400, "empty"),
        ("/api/search?q=-dog", 400, "only words to leave out"),
        (f"/api/search?q={'x' * 9000}", 400, "9000 characters"),
        ("/api/search?q=a&top_k=0", 422, "top_k"),
        ("/api/search?q=a&top_k=many", 422, "top_k"),
        ("/api/search?q=a&filter=year", 400, "not key=value"),
        ("/api/search?q=a&filter=%22", 400, "quotation"),
        ("/api/search?q=a&filter=colour=red", 400, "unknown filter colour"),
        ("/api/search?q=a&like=999999", 404, "not in this index"),
        ("/api/videos/999999/poster", 404, "not in this index"),
        ("/api/videos/-1/preview", 404, "not in this index"),
        ("/api/videos/3/preview?start=5&end=1", 400, "before"),
        ("/api/videos/3/poster?at=nan", 422, "at"),
        ("/api/videos/3/preview?start=inf", 422, "start"),
        ("/api/videos/3/poster?width=100000", 422, "width"),
        ("/api/videos/x/file", 422, "row"),
        ("/api/export?q=red&format=exe", 422, "format"),
        ("/nowhere", 404, "Not Found"),
    ],
)
def test_errors_are_json_with_a_status(server, path, status, told):
    got, reply = server.json(path)
    assert got == status and list(reply) == ["detail"] and told in reply["detail"]


def test_the_client_of_the_docs_runs_as_it_stands_there(server, index):
    """The ten lines of server.md, but for the address."""
    page = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    code = code.replace("http://127.0.0.1:7860", server.url)
    shown = subprocess.run(
        [sys.executable, "-c", code, "a", "red", "square"], capture_output=True, text=True, check=True
    )
    hits = index.search("a red square", top_k=3, text_weight=1.0)[0]
    assert shown.stdout == "".join(f"{hit.score:.3f}  {hit.path}  at {hit.moment:.1f} s\n" for hit in hits)


def test_a_search_on_this_machine_is_answered_by_the_server(server, made_index, index):
    """The same hits as without it, and torch is never imported."""
    code = "import sys, dmae.cli; dmae.cli.app(standalone_mode=False); print('torch' in sys.modules, file=sys.stderr)"
    wishes = [sys.executable, "-c", code, "search", str(made_index), "a red square", "--json", "--filter", "year>=2003"]
    shown = subprocess.run(wishes, capture_output=True, text=True, check=True)
    assert shown.stderr == "False\n", shown.stderr
    expected = index.search("a red square", top_k=5, filter={"year": ">=2003"}, text_weight=1.0)[0]
    found = json.loads(shown.stdout)["results"]
    assert [hit["video_id"] for hit in found] == [hit.video_id for hit in expected]
    assert {name: value for name, value in found[0].items() if name in FIELDS}.keys() == FIELDS


def test_posters_previews_and_files(server, index):
    """Of every format; the preview is H.264 that starts at once, and bounded."""
    for row, stored in zip(index.snapshot.ids, index.rows()):
        status, headers, body = server.ask(f"/api/videos/{row}/poster?at=0.5&width=32")
        assert status == 200 and headers["Content-Type"] == "image/webp"
        assert Image.open(io.BytesIO(body)).size == (32, 24)
        if stored["video_id"] not in ("old", "clip03"):
            continue
        status, headers, body = server.ask(f"/api/videos/{row}/preview?start=0.5&end=1.5")
        assert status == 200 and headers["Content-Type"] == "video/mp4"
        assert body.index(b"moov") < body.index(b"mdat")
        with av.open(io.BytesIO(body)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.video[0].format.name == "yuv420p"
            times = [frame.time for frame in container.decode(video=0)]
        assert times[0] == 0 and 0.75 <= times[-1] <= 1.1
        _, headers, body = server.ask(f"/api/videos/{row}/file?download=1")
        assert "attachment" in headers["Content-Disposition"]
        with open(stored["path"], "rb") as file:
            assert body == file.read()


def test_poster_is_the_frame_of_the_moment(server, index):
    """Against PyAV's own decoding from the beginning."""
    row, stored = int(index.snapshot.ids[3]), index.rows()[3]
    with av.open(stored["path"]) as container:
        frames = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    for at in (0.0, 0.3, 1.0, 99.0):
        shown = max((time for time in frames if time <= at + 1e-3), default=0.0)
        body = server.ask(f"/api/videos/{row}/poster?at={at}&width=64")[2]
        poster = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
        assert np.abs(poster - frames[shown].astype(int)).mean() < 6
        others = [
            np.abs(poster - frame.astype(int)).mean() for time, frame in frames.items() if abs(time - shown) > 0.5
        ]
        assert np.abs(poster - frames[shown].astype(int)).mean() <= min(others)


def test_openapi_docs_health_and_metrics(server):
    status, api = server.json("/openapi.json")
    assert status == 200 and {"/api/search", "/api/videos/{row}/poster", "/health"} <= set(api["paths"])
    page = server.ask("/docs")[2].decode()
    assert all(path in page for path in api["paths"])
    _, health = server.json("/health")
    assert health["status"] == "ok" and health["videos"] == 14 and health["rows"] == 14
    metrics = server.ask("/metrics")[2].decode()
    assert "dmae_index_rows 14.0" in metrics and 'dmae_requests_total{route="/api/search",status="200"}' in metrics


def test_export(server):
    _, _, body = server.ask("/api/export?q=red&format=csv&top_k=14")
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert len(rows) == 14 and {"video_id", "path", "score", "start", "end", "moment", "year"} <= set(rows[0])
    assert len(server.json("/api/export?q=red&format=json&top_k=3")[1]["results"]) == 3
    _, headers, body = server.ask("/api/export?q=red&format=edl&top_k=2")
    assert (
        body.decode().startswith("TITLE: red\nFCM: NON-DROP FRAME\n") and "hits.edl" in headers["Content-Disposition"]
    )


def test_cut_lists_count_frames_and_tables_hold_no_formulas():
    assert timecode(90, 25) == "00:00:03:15" and timecode(25 * 3725, 25) == "01:02:05:00"
    hits = [
        SearchResult("=1+1", "/v/new\nline.mp4", 0.5, 1.0, 3.0, 2.0, {"note": "@cmd"}),
        SearchResult("b", "/v/b.mp4", 0.4, 10.0, 10.0),
    ]
    lines = as_edl(hits, "a\nb", 25).splitlines()
    assert lines[0] == "TITLE: a b"
    assert lines[3] == "001  AX       V     C        00:00:01:00 00:00:03:00 00:00:00:00 00:00:02:00"
    assert lines[6] == "002  AX       V     C        00:00:10:00 00:00:10:01 00:00:02:00 00:00:02:01"
    assert lines[4] == "* FROM CLIP NAME: new line.mp4"
    assert "'=1+1" in as_csv(hits) and "'@cmd" in as_csv(hits)


def test_export_clips_writes_what_the_search_finds(made_index, tmp_path, index):
    from typer.testing import CliRunner

    from dmae.cli import app
    from dmae.commands.export import safe_name

    command = ["export-clips", str(made_index), "a red square", "-o", str(tmp_path / "out"), "--top-k", "14"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "14 clips, 0 left out" in done.stdout
    hits = index.search("a red square", top_k=14)[0]
    files = sorted((tmp_path / "out").glob("*.mp4"))
    assert len(files) == 14 and files[0].name.startswith(f"001_{safe_name(hits[0].video_id)}_")
    with av.open(str(files[0])) as container:
        assert len(list(container.decode(video=0))) == 16  # every frame of the clip
    assert len(list(csv.DictReader((tmp_path / "out" / "clips.csv").open(newline="")))) == 14
    assert CliRunner().invoke(app, command).exit_code == 1  # nothing is overwritten unasked
    assert safe_name("../../etc/pass wd\n") == "etc_pass_wd" and safe_name("//") == "clip"


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook's other end. Answers 500 once, then keeps what comes."""

    got: list = []
    failures = 1

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        failing, Hook.failures = Hook.failures > 0, Hook.failures - 1
        self.send_response(500 if failing else 204)
        self.end_headers()
        if not failing:
            self.got.append(body)

    def log_message(self, *arguments):
        pass


def test_the_index_grows_under_a_running_server(own_index, serve, tmp_path, make_clip):
    """New videos are found, deleted ones are not; news of a saved search reach its webhook, once it answers."""
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{hook.server_port}/news"
    with serve(own_index, "--webhook-host", "127.0.0.1") as server:
        wish = {"q": "a red square", "name": "squares", "webhook": "http://192.168.1.1/", "min_fit": 0.0}
        status, reply = server.json("/api/saved", wish, "POST")
        assert status == 400 and "--webhook-host 192.168.1.1" in reply["detail"]
        status, saved = server.json("/api/saved", wish | {"webhook": address}, "POST")
        assert status == 201
        assert server.json("/api/videos/2/favourite", {"kept": True, "at": 1.0}, "POST")[0] == 200
        writer = VideoIndex.open(own_index)
        first = server.json("/api/search?q=a+red+square&top_k=1")[1]["results"][0]["video_id"]
        writer.delete([first])
        writer.add([make_clip(tmp_path / "fresh.mp4", 77)])
        names = [hit["video_id"] for hit in server.json("/api/search?q=a+red+square&top_k=50")[1]["results"]]
        assert first not in names and "fresh" in names
        deadline = time.monotonic() + 800
        while not Hook.got:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert [hit["video_id"] for hit in Hook.got[0]["results"]] == ["fresh"]
        news = server.json("/api/saved")[1][0]["news"]
        assert [hit["video_id"] for hit in news] == ["fresh"]
        assert server.ask(f"/api/saved/{saved['id']}", "DELETE")[0] == 204
        assert server.ask(f"/api/saved/{saved['id']}", "DELETE")[0] == 404
    hook.shutdown()
    kept = json.loads((own_index / "page.json").read_text())
    assert kept["saved"] == [] and len(kept["favourites"]) == 1
    (own_index / "page.json").write_text("[")
    from dmae.retrieval.server.store import Store

    with pytest.raises(ValueError, match="damaged favourites"):
        Store(own_index)

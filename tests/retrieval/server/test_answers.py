"""Whole answers of the application, asked without a socket: every field, header and status of a route in one place."""

import asyncio
import io
import json
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.running import INDEX_HEADER, running
from dmae.retrieval.server import app, media, pages
from dmae.retrieval.server.files import file_response
from dmae.retrieval.server.options import ServerOptions
from dmae.retrieval.server.replies import AsciiJSON, Page
from dmae.retrieval.server.searching import Moment, Search
from dmae.retrieval.server.security import HEADERS
from dmae.retrieval.server.timeline import timeline_bars

WORDS = "a red square"
PRIVATE = "private, max-age=3600"


# ---- the REST API -----------------------------------------------------------------------------------------------


def test_an_answer_in_full(client, windowed):
    got = client.get("/api/search", params={"q": WORDS, "top_k": 3, "hits_per_video": 2})
    hits = windowed.search(WORDS, top_k=3, hits_per_video=2)[0]
    results = []
    for hit in hits:
        shown = {name: getattr(hit, name) for name in ("video_id", "path", "score", "start", "end", "moment")}
        second = int(hit.moment)
        shown |= {"reasons": [f"seen at 0:{second:02}"], "metadata": hit.metadata, "copies": list(hit.copies)}
        shown |= {"missing": False, "row": hit.row, "available": True}
        results.append(shown | {"fit": float(np.searchsorted(np.linspace(0, 1, 128), hit.score) / 128)})
    answer = got.json()
    for told, wanted in zip(answer["results"], results, strict=True):
        assert told.pop("score") == pytest.approx(wanted.pop("score"), abs=1e-4)
        assert told.pop("fit") == pytest.approx(wanted.pop("fit"), abs=1 / 128)
    assert answer == {"query": WORDS, "results": results} and got.status_code == 200
    assert got.headers[INDEX_HEADER] == windowed.manifest["id"] == client.app.state.service.live.index.manifest["id"]
    assert {name: got.headers[name] for name in HEADERS} == HEADERS
    assert [len(client.get("/api/search", params={"q": "x", "top_k": n}).json()["results"]) for n in (1, 4)] == [1, 4]


def test_every_word_of_an_address_reaches_the_search(client, monkeypatch, recorded):
    service = client.app.state.service
    ran = recorded(service.searcher, "run")
    monkeypatch.setattr(service.clips, "embeddings", lambda key: service.live.index.encode_texts([key]))
    timelines = recorded(service.searcher, "timeline")
    asked = {"q": "a", "top_k": 2, "like": 4, "filter": "year>2001", "hits_per_video": 3, "text_weight": 0.25}
    assert client.get("/api/search", params=asked).status_code == 200
    assert client.get("/api/search", params={"q": "a"}).status_code == 200
    exported = {"q": "a", "like": 4, "clip": "k", "filter": "year>2001", "top_k": 3}
    assert client.get("/api/export", params=exported).status_code == 200
    assert ran == [
        (Search(q="a", like=4, filter="year>2001", per_video=3, text_weight=0.25), 2),
        (Search(q="a"), 5),
        (Search(q="a", like=4, clip="k", filter="year>2001"), 3),
    ]
    assert timelines == [], "a program is not told the timelines that only the page draws"


def test_a_clip_in_a_form(client, clips, windowed, monkeypatch, recorded):
    service = client.app.state.service
    file = clips / "clip06.mp4"
    kept = recorded(service.clips, "keep")
    ran = recorded(service.searcher, "run")
    found = client.post("/api/search", files={"clip": ("a/b.mp4", file.read_bytes())}, data={"top_k": 2})
    expected = windowed.search_by_video(file, top_k=2)
    assert [hit["video_id"] for hit in found.json()["results"]] == [hit.video_id for hit in expected]
    assert expected[0].video_id == "clip06" and found.json()["query"] == "" and kept[0][1] == "a/b.mp4"
    assert [hit["fit"] for hit in found.json()["results"]] == [None, None]
    words = client.post("/api/search", data={"q": WORDS, "top_k": 1, "filter": "year=2004"}).json()
    assert (words["query"], [hit["row"] for hit in words["results"]]) == (WORDS, [4]) and len(kept) == 1
    (first, top_k), (second, one) = ran
    assert service.clips.name(first.clip) == "b.mp4" and first == Search(clip=first.clip) and (top_k, one) == (2, 1)
    assert second == Search(q=WORDS, filter="year=2004")
    nothing = client.post("/api/search", data={"q": " "})
    assert nothing.status_code == 400 and "the form field `clip`, words in `q`, or both" in nothing.json()["detail"]


def test_a_row_in_full(client, windowed):
    told = client.get("/api/videos/0").json()
    kept = {name: windowed.rows()[0][name] for name in ("video_id", "path", "start", "end", "metadata")}
    rows = ((1, 0.0, 1.0), (0, 0.5, 1.5), (2, 1.0, 2.0), (3, 1.5, 2.0))
    windows = [{"row": row, "start": start, "end": end} for row, start, end in rows]
    assert told == {**kept, "available": True, "row": 0, "windows": windows}
    scored = client.get("/api/videos/0", params={"q": WORDS}).json()["windows"]
    query = windowed.encode_texts([WORDS])
    expected = windowed.state.score(query, np.array([1, 0, 2, 3]))
    assert [window["score"] for window in scored] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [{name: window[name] for name in ("row", "start", "end")} for window in scored] == windows
    gone = client.get("/api/videos/8")
    assert gone.status_code == 404 and gone.json()["detail"].startswith("row 8 is not in this index")


def test_a_poster_is_of_the_middle_or_of_the_moment(client, windowed, monkeypatch, tmp_path, recorded):
    made = recorded(client.app.state.service.studio, "made")
    path = windowed.rows()[0]["path"]
    answers = [
        client.get("/api/videos/0/poster", params=params) for params in ({}, {"at": 0.128}, {"at": 0, "width": 32})
    ]
    assert made == [(media.write_poster, ".webp", path, *wish) for wish in ((1.0, 480), (0.13, 480), (0, 32))]
    media.write_poster(path, 1.0, 480, str(tmp_path / "middle.webp"))
    assert answers[0].content == (tmp_path / "middle.webp").read_bytes() != answers[1].content
    assert [Image.open(io.BytesIO(answer.content)).size for answer in answers] == [(64, 48), (64, 48), (32, 24)]
    for answer in answers:
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/webp", PRIVATE)


def test_a_preview_is_of_the_row_or_of_what_is_asked_and_bounded(client, windowed, monkeypatch, recorded):
    made = recorded(client.app.state.service.studio, "made")
    paths = [row["path"] for row in windowed.rows()]
    for row, params in (
        (0, {}),
        (0, {"start": 0.254, "end": 1.256, "width": 32}),
        (0, {"start": 1, "end": 1}),
        (5, {}),
    ):
        answer = client.get(f"/api/videos/{row}/preview", params=params)
        if row == 0:
            assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("video/mp4", PRIVATE)
            with av.open(io.BytesIO(answer.content)) as container:
                assert container.streams.video[0].width == min(params.get("width", 640), 64)
    assert made == [
        (media.write_clip, ".mp4", paths[0], 0.5, 1.5, 640, 24.0),
        (media.write_clip, ".mp4", paths[0], 0.25, 1.26, 32, 24.0),
        (media.write_clip, ".mp4", paths[0], 1.0, 1.0, 640, 24.0),
        (media.write_clip, ".mp4", paths[5], 10.0, 40.0, 640, 24.0),
    ]
    wrong = client.get("/api/videos/0/preview", params={"start": 1, "end": 0.5})
    assert (wrong.status_code, wrong.json()) == (400, {"detail": "end=0.5 is before start=1"}) and len(made) == 4


def test_the_file_itself_its_copy_and_its_absence(client, windowed, monkeypatch):
    """A video whose own file is gone is played from a copy; with none left, that is said."""
    service, rows = client.app.state.service, windowed.rows()
    whole = client.get("/api/videos/6/file")
    with open(rows[6]["path"], "rb") as file:
        assert whole.content == file.read()
    assert "content-disposition" not in whole.headers and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox"
    part = client.get("/api/videos/6/file", params={"download": 1}, headers={"Range": "bytes=4-7"})
    assert part.status_code == 206 and part.content == whole.content[4:8] == b"ftyp"
    assert part.headers["content-disposition"] == "attachment; filename*=UTF-8''clip06.mp4"
    copied = rows[6]["copies"][0]["path"]
    monkeypatch.setattr(service.live, "available", lambda path: path == copied)
    assert service.file_of(6) == (service.live.row(6)[2], copied)
    monkeypatch.setattr(service.live, "available", lambda path: False)
    gone = client.get("/api/videos/6/file")
    assert (gone.status_code, gone.json()["detail"]) == (404, "the file of 'clip06' is not there any more")
    assert client.get("/api/videos/99/file").status_code == 404


def test_hits_as_files(client, windowed):
    hits = windowed.search(WORDS, top_k=2)[0]
    listed = client.get("/api/export", params={"q": WORDS, "top_k": 2})
    assert listed.headers["content-type"] == "text/csv; charset=utf-8"
    assert listed.headers["content-disposition"] == 'attachment; filename="hits.csv"'
    lines = listed.text.splitlines()
    assert lines[0] == "video_id,path,score,start,end,moment,note,year" and len(lines) == 3
    assert lines[1].split(",")[:2] == [hits[0].video_id, hits[0].path]
    assert lines[1].split(",")[3:] == [*map(str, (hits[0].start, hits[0].end, hits[0].moment)), "'=1+1", lines[1][-4:]]
    told = client.get("/api/export", params={"q": WORDS, "top_k": 2, "format": "json"})
    assert told.headers["content-type"] == "application/json" and told.json()["query"] == WORDS
    shown = told.json()["results"]
    assert [(one["row"] if "row" in one else one["video_id"]) for one in shown] == [hit.video_id for hit in hits]
    assert [(one["moment"], one["metadata"]) for one in shown] == [(hit.moment, hit.metadata) for hit in hits]
    cut = client.get("/api/export", params={"q": WORDS, "top_k": 1, "format": "edl", "fps": 10})
    assert cut.headers["content-type"] == "text/plain; charset=utf-8"
    start, end = (f"00:00:{int(at):02}:{round(at % 1 * 10):02}" for at in (hits[0].start, hits[0].end))
    length = hits[0].end - hits[0].start
    assert cut.text.splitlines() == [
        f"TITLE: {WORDS}",
        "FCM: NON-DROP FRAME",
        "",
        f"001  AX       V     C        {start} {end} 00:00:00:00 00:00:{int(length):02}:{round(length % 1 * 10):02}",
        f"* FROM CLIP NAME: {hits[0].video_id}.mp4",
        f"* SOURCE FILE: {hits[0].path}",
    ]


def test_health_and_counters_of_an_index_that_cannot_be_read(client, monkeypatch):
    index = client.app.state.service.live.index
    counts = {
        "videos": 5,
        "rows": 8,
        "generation": index.manifest["generation"],
        "model": index.manifest["model"]["name"],
    }
    assert client.get("/health").json() == {"status": "ok", "detail": None, **counts}
    monkeypatch.setattr(index, "refresh", lambda: (_ for _ in ()).throw(ValueError("damaged")))
    client.get("/api/search", params={"q": "a"}), client.get("/nowhere")
    assert client.get("/health").json() == {"status": "stale", "detail": "damaged", **counts}
    shown = client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=")
    values = dict(re.findall(r"^([^#\s]+) (\S+)$", shown.text, re.M))
    assert values["dmae_search_seconds_count"] == "1.0" and values["dmae_stale"] == "1.0"
    assert values['dmae_requests_total{route="/health",status="200"}'] == "2.0"
    assert values['dmae_requests_total{route="other",status="404"}'] == "1.0"
    assert values["dmae_index_rows"] == "8.0" and values["dmae_waiting_searches"] == "0.0"
    assert float(values["dmae_index_generation"]) == counts["generation"] and values["dmae_cache_bytes"] == "0.0"
    assert 50e6 < float(values["dmae_resident_bytes"]) < 50e9


# ---- who is told what -------------------------------------------------------------------------------------------


def test_a_stranger_learns_that_it_lives_and_how_to_come_in(ask):
    client = ask(token="a-long-enough-token")
    assert client.get("/health").json() == {"status": "ok"}
    asked = client.get("/api/search?q=a", headers={"Accept": "text/html"})
    assert (asked.status_code, asked.headers["www-authenticate"]) == (401, "Bearer")
    assert asked.json() == {"detail": "give the token: Authorization: Bearer TOKEN"}
    page = client.get("/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert client.get("/", headers={"Accept": "application/json"}).status_code == 401
    assert client.post("/", headers={"Accept": "text/html"}).status_code == 401
    for shown in ("Bearer another-long-token", "Basic a-long-enough-token", "a-long-enough-token", "Bearer "):
        assert client.get("/api/saved", headers={"Authorization": shown}).status_code == 401
    elsewhere = client.get("/health", headers={"Host": "attacker.example"})
    told = "this server does not answer to the name 'attacker.example'; add it with: dmae serve … --name NAME"
    assert (elsewhere.status_code, elsewhere.json()) == (421, {"detail": told})
    foreign = client.post("/login", data={"token": "a"}, headers={"Origin": "http://attacker.example"})
    told = "a page of another site cannot change anything here"
    assert (foreign.status_code, foreign.json()) == (403, {"detail": told})
    assert client.get("/loginx").status_code == 401 and client.get("/static/page.css").status_code == 200
    shown = client.get("/login").text
    assert "not the token" not in shown and '<input type="password" name="token"' in shown.replace("\n", " ")


def test_a_login_gives_a_cookie_that_lasts_as_long_as_the_server(ask, monkeypatch):
    monkeypatch.setattr(pages, "WRONG_TOKEN_SECONDS", 0.0)
    token = "a-long-enough-token"
    client = ask(token=token)
    wrong = client.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401 and "That is not the token of this server." in wrong.text
    entered = client.post("/login", data={"token": token})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert re.fullmatch(r"dmae_session=[0-9a-f]{64}; HttpOnly; Path=/; SameSite=strict", cookie) and token not in cookie
    assert client.get("/api/saved").status_code == 200
    again = ask(token=token)
    again.cookies = client.cookies
    assert again.get("/api/saved").status_code == 401, "a restart ends every login"
    assert again.get("/health", headers={"Authorization": f"bearer  {token} "}).json()["rows"] == 8
    secure = ask(token=token)
    secure.base_url = "https://localhost"
    assert "; Secure" in secure.post("/login", data={"token": token}).headers["set-cookie"]


def test_an_error_is_a_page_for_a_browser_and_json_for_a_program(client):
    browser = {"Accept": "text/html"}
    shown = client.post("/videos/0", headers=browser)
    assert shown.status_code == 405 and shown.headers["content-type"].startswith("text/html")
    assert shown.headers["allow"] == "GET" and "405" in shown.text and "Method Not Allowed" in shown.text
    assert client.get("/nowhere", headers=browser).text.count("404") >= 1
    assert client.get("/api/nowhere", headers=browser).json() == {"detail": "Not Found"}
    assert client.post("/videos/0").json() == {"detail": "Method Not Allowed"}
    wrong = client.get("/api/search", params={"q": "a", "top_k": 0, "text_weight": -1})
    assert wrong.status_code == 422 and wrong.json() == {
        "detail": "top_k: Input should be greater than or equal to 1; "
        "text_weight: Input should be greater than or equal to 0"
    }
    long = client.post("/api/videos/0/favourite", json=[{"x": 1}] * 2)
    assert long.status_code == 422 and len(long.json()["detail"]) <= 2_000
    errors = [{"loc": ("query", "a", 1), "msg": "m" * 3_000}]
    told = asyncio.run(app._misunderstood(_request("/api/x"), SimpleNamespace(errors=lambda: errors)))
    assert json.loads(told.body)["detail"] == f"a 1: {'m' * 1_995}" and told.status_code == 422


def _request(path: str):
    return SimpleNamespace(headers={}, url=SimpleNamespace(path=path))


# ---- the process ------------------------------------------------------------------------------------------------


def test_a_server_is_set_up_as_it_was_told_and_takes_its_note_away(windowed, tmp_path, monkeypatch):
    windowed.save(tmp_path / "index")
    windowed.path = None  # it is shared, and stays in memory
    index = VideoIndex.open(tmp_path / "index", windowed.model, windowed.processor)
    options = ServerOptions(host="::1", port=7861, token="a-long-enough-token", cache=tmp_path / "cache", connections=3)
    made, before = [], signal.getsignal(signal.SIGTERM)

    def run(server):
        """Everything but listening, which other tests do."""
        made.append((server, signal.getsignal(signal.SIGTERM)))
        server.started = True
        monkeypatch.setattr(app.uvicorn.Server, "startup", _nothing)
        asyncio.run(server.startup())
        made.append(running(tmp_path / "index"))
        server.started = False
        app.withdraw(server.folder)
        asyncio.run(server.startup())
        made.append(running(tmp_path / "index"))
        app.announce(server.folder, "::1", 1, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(app._Server, "run", run)
    said = []
    monkeypatch.setattr(app, "print", lambda *words, **how: said.append((*words, how)), raising=False)
    try:
        with pytest.raises(KeyboardInterrupt):
            app.serve(index, options)
    finally:
        signal.signal(signal.SIGTERM, before)
    (server, ends), noted, none = made
    config = server.config
    assert (config.host, config.port, config.log_level, config.ws) == ("::1", 7861, "warning", "none")
    assert (config.server_header, config.proxy_headers, config.limit_concurrency) == (False, False, 1024)
    assert config.timeout_graceful_shutdown == app.SHUTDOWN_SECONDS
    assert config.http.__name__ == "LimitedProtocol" and config.app.state.service.live.index is index
    with pytest.raises(SystemExit) as ended:
        ends(signal.SIGTERM, None)
    assert ended.value.code == 0
    assert (noted.host, noted.port, noted.token, noted.index) == ("::1", 7861, options.token, index.manifest["id"])
    assert none is None and running(tmp_path / "index") is None
    told = f"serving {tmp_path / 'index'} (8 rows) on http://::1:7861, with a token"
    assert said == [(told, {"flush": True})], "at once, also into a file"


async def _nothing(server, sockets=None) -> None:
    """What uvicorn does to listen."""


def test_a_server_begins_and_ends_with_its_application(client, recorded):
    """Words are embedded once before the first visitor; what it began is over when it ends."""
    service = client.app.state.service
    measured = threading.Event()
    service.background.measure = measured.set
    embedded = recorded(service.live.index, "encode_texts")
    uploads = Path(service.clips._folder.name)
    with client:
        assert embedded == [(["a first query"],)] and measured.wait(600)
        assert service.news._thread.is_alive() and uploads.is_dir() and not service.news._stop.is_set()
        closed = recorded(service.studio, "close")
    assert service.news._stop.is_set() and not uploads.exists() and closed == [()]


# ---- what an answer is made of ----------------------------------------------------------------------------------


def test_any_name_has_a_place_in_json_and_no_number_that_is_none():
    assert AsciiJSON({"a": ["\udcff é", 1.5]}).body == b'{"a":["\\udcff \\u00e9",1.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        AsciiJSON({"a": float("nan")})
    assert Page("\udcff é").body == "\\udcff é".encode()


def test_only_a_regular_file_is_sent(tmp_path):
    (
        (tmp_path / "a.gif").write_bytes(b"x"),
        (tmp_path / "a.mp4").write_bytes(b"x"),
        (tmp_path / "a.png").write_bytes(b"x"),
    )
    kinds = [file_response(str(tmp_path / name), False).media_type for name in ("a.gif", "a.mp4", "a.png")]
    assert kinds == ["image/gif", "video/mp4", "application/octet-stream"]
    for path, told in ((tmp_path / "none", "is not there any more"), (tmp_path, "not a file any more")):
        with pytest.raises(HTTPException, match=told) as refused:
            file_response(str(path), False)
        assert refused.value.status_code == 404


def test_bars_stand_on_hundredths():
    bars = timeline_bars([Moment(at, at + 1, score, at) for at, score in ((0, 0.0), (1, 1 / 3), (2, 1.0))])
    assert [(bar.x, bar.width) for bar in bars] == [(0, 333.33), (333.33, 333.33), (666.67, 333.33)]
    assert [(bar.y, bar.height) for bar in bars] == [(92, 8), (61.33, 38.67), (0, 100)]
    assert [bar.x for bar in timeline_bars([Moment(3, 3, 1, 3)] * 2)] == [0, 0]


def test_what_is_no_clip_is_told_without_the_server_s_paths(client):
    refused = client.post("/api/search", files={"clip": ("a.mp4", b"no video at all")})
    told = refused.json()["detail"]
    assert refused.status_code == 400 and told.startswith("no clip or picture that can be read: the upload: ")
    assert "dmae-uploads" not in told and "re-encode" not in told

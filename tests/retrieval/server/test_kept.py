"""What a server keeps for people and for itself: favourites, saved searches and their news, fits, posters."""

import errno
import http.server
import json
import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval.server import live, news, studio
from dmae.retrieval.server.live import Background
from dmae.retrieval.server.store import Store
from dmae.retrieval.server.studio import Studio

SAVED = {"id", "name", "q", "filter", "webhook", "min_fit", "newest_row", "news", "trouble"}


def test_favourites_in_full(client, tmp_path):
    before = int(time.time())
    assert client.get("/api/favourites").json() == []
    assert client.post("/api/videos/2/favourite", json={"kept": True, "at": 1.25}).json() == {
        "video_id": "clip00", "kept": True,
    }  # fmt: skip
    assert client.post("/api/videos/4/favourite", json={"kept": True}).status_code == 200
    first, second = client.get("/api/favourites").json()
    assert (first["video_id"], first["at"], second["video_id"], second["at"]) == ("clip00", 1.25, "clip04", 0.0)
    assert first.keys() == {"video_id", "at", "since"} and before <= first["since"] <= time.time() + 1
    assert json.loads((tmp_path / "index" / "page.json").read_text())["favourites"] == [first, second]
    assert client.post("/api/videos/0/favourite", json={"kept": False}).json()["kept"] is False
    assert client.get("/api/favourites").json() == [second]
    assert client.post("/api/videos/99/favourite", json={"kept": True}).status_code == 404


def test_saved_searches_in_full(ask, windowed):
    client = ask(webhook_hosts=("hook",))
    wish = {"q": "a dog", "name": "Dogs", "filter": "year>2001", "webhook": "http://hook/x", "min_fit": 0.25}
    made = client.post("/api/saved", json=wish)
    entry = {**wish, "newest_row": 7, "news": [], "trouble": None}
    assert made.status_code == 201 and made.json() == {**entry, "id": made.json()["id"]}
    plain = client.post("/api/saved", json={"q": "a cat"}).json()
    assert plain.keys() == SAVED and (plain["name"], plain["filter"], plain["webhook"]) == ("a cat", "", None)
    assert plain["min_fit"] == 0.9 and len(plain["id"]) == 12 and plain["id"] != made.json()["id"]
    assert client.get("/api/saved").json() == [made.json(), plain]
    for bad, told in (
        ({"q": "a", "filter": "year"}, "not key=value"), ({"q": "a", "filter": '"'}, "quotation"),
        ({"q": " "}, "empty"), ({"q": "a", "webhook": "http://else/"}, "may not send to else"),
    ):  # fmt: skip
        refused = client.post("/api/saved", json=bad)
        assert refused.status_code == 400 and told in refused.json()["detail"]
    assert client.delete(f"/api/saved/{plain['id']}").status_code == 204
    again = client.delete(f"/api/saved/{plain['id']}")
    assert (again.status_code, again.json()) == (404, {"detail": "no such saved search"})
    assert client.get("/api/saved").json() == [made.json()]


def test_a_full_disk_is_the_server_s_trouble(client, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("dmae.retrieval.server.store.files.write_file", full)
    for answer in (
        client.post("/api/videos/2/favourite", json={"kept": True}), client.post("/api/saved", json={"q": "a"}),
    ):  # fmt: skip
        assert answer.status_code == 507 and "no space left" in answer.json()["detail"]
    assert client.get("/api/favourites").json() == [] and client.get("/api/saved").json() == []


def test_damaged_keepings_are_named(tmp_path):
    for content in ("[", "[]", '{"saved": 1}', '{"favourites": [1]}', '{"saved": {}}'):
        (tmp_path / "page.json").write_text(content)
        with pytest.raises(ValueError, match=r"page.json: damaged favourites and saved searches; repair the file"):
            Store(tmp_path)
    (tmp_path / "page.json").write_text('{"saved": [{"id": "x"}]}')
    store = Store(tmp_path)
    assert store.favourites() == [] and store.saved() == [{"id": "x"}]
    store.saved()[0]["id"] = "y"
    store.favourites().append("z")
    assert store.saved() == [{"id": "x"}] and store.favourites() == [], "what is given out is a copy"


def test_as_many_are_kept_as_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dmae.retrieval.server.store.MAX_ENTRIES", 2)
    store = Store(tmp_path)
    for name in "abc":
        if name == "c":
            with pytest.raises(ValueError, match="at most 2 favourites are kept; remove some"):
                store.set_favourite(name, 0.0, True)
        else:
            store.set_favourite(name, 0.0, True)
    assert [one["video_id"] for one in Store(tmp_path).favourites()] == ["a", "b"]


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook's other end."""

    status, got = 204, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, self.headers["Content-Type"], self.headers["User-Agent"], body))
        self.send_response(self.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_news_are_sent_as_json_and_never_redirected(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    hook = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    address = f"http://127.0.0.1:{hook.server_port}/x?y=1"
    for status, expected in ((204, None), (302, OSError), (307, OSError), (500, OSError)):
        Hook.status = status
        answering = threading.Thread(target=hook.handle_request, daemon=True)
        answering.start()
        if expected is None:
            news.send(address, {"name": "é", "results": []})
        else:
            with pytest.raises(expected, match=str(status)):
                news.send(address, {})
        answering.join()
    hook.server_close()
    assert Hook.got[0] == ("/x?y=1", "application/json", "dmae", b'{"name": "\\u00e9", "results": []}')
    assert len(Hook.got) == 4
    with pytest.raises(OSError):
        news.send(address, {})


def test_a_watch_goes_on_after_a_failure_until_it_is_closed(caplog):
    watch = news.NewsWatch(None, None, None, seconds=0.0)
    looks = []

    def look():
        looks.append(len(looks))
        if len(looks) == 3:
            watch.close()
        raise RuntimeError("a broken look")

    watch.look = look
    with caplog.at_level(logging.ERROR):
        watch.start()
        watch._thread.join(timeout=600)
    assert looks == [0, 1, 2] and caplog.text.count("looking for news of the saved searches failed") == 3
    assert watch._thread.daemon and news.NewsWatch(None, None, None).seconds == news.LOOK_SECONDS


def test_fits_are_measured_once_at_a_time_and_again_after_a_commit(monkeypatch, caplog):
    index = SimpleNamespace(manifest={"generation": 1})
    background = Background(SimpleNamespace(index=index))
    measured = []

    def scores(index):
        background.measure()  # while one is measured, another measuring does nothing
        measured.append(index)
        return np.array([0.1, 0.2, 0.3, 0.4])

    monkeypatch.setattr(live, "random_best_scores", scores)
    started = []
    monkeypatch.setattr(
        live.threading, "Thread", lambda **about: started.append(about) or SimpleNamespace(start=lambda: None)
    )
    assert background.fit(0.25) is None and [one["target"] for one in started] == [background.measure]
    assert started[0]["daemon"] is True
    background.measure()
    assert measured == [index] and background.generation == 1
    assert background.fit(0.25) == 0.5 and len(started) == 1
    index.manifest["generation"] = 2
    assert background.fit(0.25) == 0.5 and len(started) == 2
    monkeypatch.setattr(live, "random_best_scores", lambda index: (_ for _ in ()).throw(OSError("gone")))
    with caplog.at_level(logging.WARNING):
        background.measure()
    assert "how well hits fit is not known: gone" in caplog.text and background.generation == 1
    monkeypatch.setattr(live, "random_best_scores", scores)
    background.measure()
    assert background.generation == 2 and len(measured) == 2


def made(name: str, target: str) -> str:
    """What a worker runs here: it writes its name."""
    with open(target, "w") as file:
        file.write(name)
    return name


def test_a_worker_makes_what_it_is_asked_and_may_die(tmp_path):
    place = Studio(tmp_path / "a" / "cache", 10_000, workers=1)
    try:
        assert place.run(os.path.basename, "/x/y.mp4") == "y.mp4"
        pool = place._pool
        with pytest.raises(ValueError, match="made the decoder crash; it cannot be shown"):
            place.run(os._exit, 3)
        assert place._pool is None
        assert place.run(os.getpid) != os.getpid() and place._pool is not pool
        studio.MAKE_SECONDS, usual = 0.2, studio.MAKE_SECONDS
        try:
            with pytest.raises(ValueError, match="took more than 0 seconds; it cannot be shown"):
                place.run(time.sleep, 600)
        finally:
            studio.MAKE_SECONDS = usual
        assert place.run(os.path.basename, "/x/y.mp4") == "y.mp4" and place._pool is not None
    finally:
        place.close()
    assert place._pool is None
    place.close()


def test_a_worker_is_humble_and_ends_with_its_server(monkeypatch):
    resource = pytest.importorskip("resource")
    done, ended, sentinel = [], threading.Event(), object()
    parent = SimpleNamespace(sentinel=sentinel)
    monkeypatch.setattr(studio.signal, "signal", lambda *what: done.append(what))
    monkeypatch.setattr(studio.os, "nice", done.append)
    monkeypatch.setattr(resource, "setrlimit", lambda *what: done.append(what))
    with monkeypatch.context() as patch:
        patch.setattr(studio.multiprocessing, "parent_process", lambda: parent)
        patch.setattr(studio, "_end_with", lambda given: (done.append(given), ended.set()))
        studio._begin()
        assert ended.wait(600)
    bounds = (studio.WORKER_BYTES, studio.WORKER_BYTES)
    assert done == [(signal.SIGINT, signal.SIG_IGN), 5, (resource.RLIMIT_AS, bounds), sentinel]
    studio._begin()  # without a parent
    monkeypatch.setattr(studio.multiprocessing.connection, "wait", lambda what: done.append(("waited", what)))
    monkeypatch.setattr(studio.os, "_exit", lambda code: done.append(("ended", code)))
    studio._end_with(sentinel)
    assert done[4:] == [*done[:3], ("waited", [sentinel]), ("ended", 0)]


def test_one_poster_is_made_once_for_all_who_wait_for_it(tmp_path):
    source = tmp_path / "a.mp4"
    source.write_bytes(b"x")
    place, begun, go = Studio(tmp_path / "cache", 10_000), threading.Event(), threading.Event()
    calls = []

    def run(function, path, *arguments):
        calls.append((function, path, arguments))
        begun.set()
        assert go.wait(600)
        with open(arguments[-1], "w") as file:
            file.write("poster")

    place.run = run
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(place.made(made, ".webp", str(source), 1.0))) for _ in range(3)
    ]
    threads[0].start()
    assert begun.wait(600)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(timeout=600)
    (target,) = set(found)
    assert len(found) == 3 and calls == [(made, str(source), (1.0, str(target)))] and place._making == {}
    assert target.parent == tmp_path / "cache" and target.read_text() == "poster" and place.bytes() == 6
    os.utime(target, (1, 1))
    assert place.made(made, ".webp", str(source), 1.0) == target and target.stat().st_mtime > 1, (
        "used again: kept longer"
    )
    others = {place.made(made, *wish) for wish in ((".mp4", str(source), 1.0), (".webp", str(source), 2.0))}
    assert len(others | {target}) == 3
    with pytest.raises(FileNotFoundError):
        place.made(made, ".webp", str(tmp_path / "none"), 1.0)


def test_a_cache_that_is_full_leaves_nine_tenths(tmp_path):
    place = Studio(tmp_path, 1_000)
    for age in range(12):
        file = tmp_path / f"{age:02}"
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    place._sweep(49)
    assert place.bytes() == 1_200, "the folder is looked at once in a while"
    place._sweep(1)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{age:02}" for age in range(9)]
    place._sweep(49)
    place._sweep(1)
    assert place.bytes() == 900 and place._since_swept == 0


def test_one_thread_looks_at_the_folder_and_each_trouble_is_told_once(caplog):
    wrong = ["damaged", "damaged", "gone"]

    def refresh():
        raise OSError(wrong.pop(0))

    one = live.LiveIndex(SimpleNamespace(refresh=refresh))
    told = []
    for _ in range(3):
        assert one.fresh() is one.index
        told.append(caplog.text.count("the index cannot be read again"))
    assert told == [1, 1, 2] and one.trouble == "gone"
    with one._refreshing:  # another thread looks: nobody waits for it
        assert one.fresh() is one.index and wrong == []


def test_which_saved_searches_are_looked_at(tmp_path, monkeypatch):
    """Those with rows they do not know; nothing is measured, and nothing sent, where there is nothing new."""
    sent, asked, measured = [], [], []
    monkeypatch.setattr(news, "send", lambda *arguments: sent.append(arguments))
    store = Store(tmp_path, ("hook",))
    done = store.save_search("done", "a", "", "http://hook/", 0.0, 9)
    index = SimpleNamespace(manifest={"next_id": 10, "generation": 3})
    hits = [SimpleNamespace(row=9, to_dict=lambda: {"video_id": "v", "moment": 1.0})]
    searcher = SimpleNamespace(
        live=SimpleNamespace(fresh=lambda: index),
        run=lambda search, top_k: asked.append(search.q) or hits,
        found=lambda search, found, with_moments: [SimpleNamespace(hit=hit, fit=None) for hit in found],
    )
    background = SimpleNamespace(generation=1, measure=lambda: measured.append(1))
    watch = news.NewsWatch(searcher, background, store)
    watch.look()
    assert asked == [] == measured
    for name, webhook, least, newest in (("plain", None, 0.0, 8), ("strict", "http://hook/", 0.5, 8)):
        store.save_search(name, name, "", webhook, least, newest)
    watch.look()
    assert asked == ["plain", "strict"] and measured == [1] and sent == []
    kept = {one["name"]: one for one in store.saved()}
    assert kept["plain"]["news"] == [{"video_id": "v", "moment": 1.0, "row": 9, "fit": None}]
    assert kept["strict"]["news"] == [] and {one["newest_row"] for one in kept.values()} == {9}
    assert kept["done"] == done

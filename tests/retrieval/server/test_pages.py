"""The pages, asked without a socket: what stands on them, in which order, where their links lead."""

import re
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from dmae.retrieval.server import pages
from dmae.retrieval.server.searching import SORTS, Search

WORDS = "a red square"
NOTHING = {
    "found": [], "more": False, "trouble": None, "nothing_fits": False, "well": 0.9, "like": None, "clip_name": None,
    "recent": [], "explained": None, "sorts": SORTS, "sizes": (12, 24, 48, 96), "columns": ["note", "year"],
    "favourites": set(), "has_token": False, "stale": None,
}  # fmt: skip


def cards(page: str) -> list[int]:
    """The rows of the cards of a page."""
    return [int(row) for row in re.findall(r'<li class="card[^"]*" data-row="(\d+)"', page)]


def test_a_page_without_results_has_every_value(client, windowed):
    service = client.app.state.service
    search = Search(q="x")
    counts = {"videos": 5, "rows": 8, "model": windowed.manifest["model"]["name"]}
    assert pages._nothing(service, search) == {**NOTHING, "search": search, "index": counts}
    service.store.set_favourite("clip04", 0.5, True)
    service.live.trouble = "damaged"
    told = pages._nothing(service, search)
    assert (told["favourites"], told["stale"]) == ({"clip04"}, "damaged")
    start = client.get("/").text
    assert "5 videos, 8 moments" in start and "damaged" not in start, "the index was read again"


def test_the_start_shows_what_was_added_last_and_is_there(client, windowed, monkeypatch):
    """By its first row, the latest first, at most RECENT videos; what is stored is that row's."""
    service = client.app.state.service
    rows = windowed.rows()
    assert pages._recent(service) == [(row, rows[row]) for row in (7, 6, 5, 4, 0)]
    assert cards(client.get("/").text) == [7, 6, 5, 4, 0]
    monkeypatch.setattr(pages, "RECENT", 2)
    assert [row for row, _ in pages._recent(service)] == [7, 6]
    monkeypatch.setattr(pages, "RECENT", 5)
    service.live._seen[rows[6]["path"]] = (float("inf"), False)
    assert [row for row, _ in pages._recent(service)] == [7, 5, 4, 0]


def test_a_video_of_several_rows_is_shown_by_its_first(monkeypatch):
    rows = [{"video_id": name, "path": str(number)} for number, name in enumerate("abbcc")]
    snapshot = SimpleNamespace(rows=lambda: rows, ids=np.array([10, 11, 12, 13, 14]))
    live = SimpleNamespace(index=SimpleNamespace(snapshot=snapshot), available=lambda path: path != "1")
    assert pages._recent(SimpleNamespace(live=live)) == [(13, rows[3]), (10, rows[0])]


def test_a_page_of_results(client, windowed):
    """Its hits, links to its neighbours, its export and its parts; `part=results` is the list alone."""
    hits = windowed.search(WORDS, top_k=5)[0]
    asked = {"q": WORDS, "sort": "name", "filter": "year>1999", "size": 12}
    whole = client.get("/", params=asked).text
    assert cards(whole) == [hit.row for hit in sorted(hits, key=lambda hit: hit.video_id)]
    part = client.get("/", params={**asked, "part": "results"}).text
    assert "<!doctype html>" not in part and "<!doctype html>" in whole and cards(part) == cards(whole)
    assert 'value="year&gt;1999"' in whole and '<option value="name" selected>' in whole
    assert "/api/export?format=edl&amp;q=a+red+square&amp;filter=year%3E1999" in whole
    assert "Results 1–5" in whole and "Page 1" not in whole
    second = pages._results(client.app.state.service, Search(q=WORDS, page=2, size=2))
    assert [one.hit.row for one in second["found"]] == [hit.row for hit in hits[2:4]] and second["more"]
    third = pages._results(client.app.state.service, Search(q=WORDS, page=3, size=2))
    assert [one.hit.row for one in third["found"]] == [hits[4].row] and not third["more"]
    exact = pages._results(client.app.state.service, Search(q=WORDS, page=1, size=5))
    assert len(exact["found"]) == 5 and not exact["more"]
    like = client.get("/", params={"like": 4, "size": 12}).text
    assert "like <b>clip04</b>" in like and cards(like)[0] == 4 and "fits better" not in like


def test_what_cannot_be_searched_is_told_where_it_was_typed(client):
    long = "x" * 3_000
    for params, status, told in (
        ({"q": "-dog"}, 400, "only words to leave out"),
        ({"q": "a", "filter": "colour=red"}, 400, "unknown filter colour"),
        ({"q": "a", "like": 99}, 404, "row 99 is not in this index"),
        ({"q": "a", "clip": "gone"}, 400, "upload it again"),
    ):
        page = client.get("/", params=params)
        assert page.status_code == status and told in page.text and 'role="alert"' in page.text
        assert f'name="q" value="{params["q"]}"' in page.text and not cards(page.text)
    assert 'name="filter" value="colour=red"' in client.get("/", params={"q": "a", "filter": "colour=red"}).text
    page = client.get("/", params={"q": long, "filter": long})
    assert re.findall(r'value="(x+)"', page.text) == ["x" * 2_000] * 2 and page.status_code == 400
    assert client.get("/", params={"like": "-1", "page": "x", "size": "٣"}).status_code == 200


def test_what_an_address_says_in_its_types():
    assert pages._typed({}) == {"page": 1}
    assert pages._typed({"like": "9" * 30, "page": "3", "size": "48", "clip": "k", "filter": "a=b"}) == {
        "like": 2**60, "page": 3, "size": 48, "clip": "k", "filter": "a=b",
    }  # fmt: skip
    assert pages._typed({"like": "1.5", "page": "-3", "size": ""}) == {"page": 1}
    assert pages._search("q", 1, "c", "f", "longest", 2, 96) == Search("q", 1, "c", "f", "longest", 2, 96)
    assert [pages._search(size=size).size for size in (0, 17, 19, 71, 73, 10**9)] == [12, 12, 24, 48, 96, 96]


def test_an_upload_leads_to_the_search_with_it(client, clips, recorded):
    service = client.app.state.service
    kept = recorded(service.clips, "keep")
    files = {"clip": ("x/clip06.mp4", (clips / "clip06.mp4").read_bytes())}
    led = client.post("/clip", files=files, data={"q": "a", "filter": "year>2003"})
    address = urlsplit(led.headers["location"])
    (key,) = service.clips._kept
    assert led.status_code == 303 and address.path == "/"
    assert parse_qs(address.query) == {"q": ["a"], "clip": [key], "filter": ["year>2003"]}
    page = client.get("/", params={"clip": key}).text
    assert "like your <b>clip06.mp4</b>" in page and cards(page)[0] == 6
    assert client.post("/clip", files={"clip": ("a.mp4", b"no video")}).status_code == 400
    assert [call[1] for call in kept] == ["x/clip06.mp4"]


def test_one_video_s_page(client, windowed):
    """A window of the search's own row; bars and moments of the whole video; the heat map below."""
    service = client.app.state.service
    values = pages._video(service, 2, Search(q=WORDS), None)
    query = windowed.encode_texts([WORDS])
    (found,), score = values["found"], float(windowed.state.score(query, np.array([2]))[0])
    assert (found.hit.row, found.hit.start, found.hit.end, found.available) == (2, 1.0, 2.0, True)
    assert found.hit.score == pytest.approx(score, abs=1e-4) and found.fit == service.background.fit(found.hit.score)
    assert [bar.start for bar in found.bars] == [0.0, 0.5, 1.0, 1.5] and values["at"] == found.hit.moment
    assert (values["row"], values["stored"], values["available"]) == (2, windowed.rows()[2], True)
    assert values["explained"].score == pytest.approx(score, abs=1e-4)
    assert pages._video(service, 5, Search(), None)["at"] == 10.0 and pages._video(service, 5, Search(), 0.0)["at"] == 0
    page = client.get("/videos/6", params={"q": WORDS, "at": 0.25}).text
    assert 'data-at="0.25"' in page and 'src="/api/videos/6/file#t=0.25"' in page and "clip07.mp4" in page
    assert "<dt>year</dt><dd>2006</dd>" in page and 'href="/?q=a+red+square"' in page
    service.live._seen[windowed.rows()[6]["path"]] = (float("inf"), False)
    assert "The file is not there any more" in client.get("/videos/6").text
    assert client.get("/videos/99", headers={"Accept": "text/html"}).status_code == 404


def test_the_page_of_what_is_kept(client, windowed):
    service = client.app.state.service
    for name, at in (("clip04", 1.5), ("gone", 0.0), ("clip00", 0.5)):
        service.store.set_favourite(name, at, True)
    service.store.save_search("Squares", WORDS, "year>2001", None, 0.25, 7)
    news = [{"row": 4, "video_id": "clip04", "moment": 65.0}]
    service.store.update_saved(service.store.saved()[0]["id"], news=news, trouble="no answer")
    values = pages._saved(service)
    assert [(one["video_id"], one["at"], one["row"]) for one in values["kept"]] == [
        ("clip04", 1.5, 4), ("gone", 0.0, None), ("clip00", 0.5, 3),
    ]  # fmt: skip
    assert values["saved"] == service.store.saved() and values["columns"] == ["note", "year"]
    page = client.get("/saved").text
    assert "from 25 % fit" in page and "no answer" in page and "clip04 1:05" in page and "not in the index" in page
    assert client.get("/saved").status_code == 200 and re.findall(r"poster\?at=([\d.]+)", page) == ["1.5", "0.5"]


def test_the_docs_and_the_looks(client, ask):
    page = client.get("/docs").text
    api = client.get("/openapi.json").json()
    assert all(path in page for path in api["paths"]) and "/clip" not in api["paths"]
    shown = ask(token="x" * 12).get("/docs", headers={"Authorization": f"Bearer {'x' * 12}"}).text
    assert "Bearer TOKEN" in shown and "Bearer TOKEN" not in page
    style = client.get("/static/base.css")
    assert style.headers["content-type"].startswith("text/css") and "color" in style.text

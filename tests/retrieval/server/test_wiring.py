"""What stands beside what on the pages and in the answers, without a server of its own: order, counts, times, news."""

import json
import logging
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval.combine import MINUS_WEIGHT
from dmae.retrieval.fit import fit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult, video_as_text
from dmae.retrieval.server import news, pages, searching
from dmae.retrieval.server.clips import Clips
from dmae.retrieval.server.explaining import LEVELS, _shade, explanation
from dmae.retrieval.server.live import Background, LiveIndex, NotIndexed
from dmae.retrieval.server.options import ServerOptions, checked_options
from dmae.retrieval.server.searching import Moment, Search, Searcher, apart, in_order, reasons
from dmae.retrieval.server.store import Store
from dmae.retrieval.server.studio import Studio
from dmae.retrieval.server.timeline import timeline_bars


@pytest.fixture(scope="module")
def index(encoded, model, processor) -> VideoIndex:
    return VideoIndex.build(encoded, model, processor)


@pytest.fixture
def searcher(index) -> Searcher:
    background = SimpleNamespace(fit=lambda score: 0.5, generation=1)
    clips = SimpleNamespace(embeddings=lambda key: index.encode_texts([key]), name=lambda key: f"{key}.mp4")
    return Searcher(LiveIndex(index), background, clips)


def test_an_address_is_a_search_and_leaves_out_what_is_as_always():
    search = Search(q="a dog", like=3, clip="k", filter="a=b", sort="name", page=2, size=48, per_video=2, text_weight=0)
    assert search.query_string(page=1) == (
        "q=a+dog&like=3&clip=k&filter=a%3Db&sort=name&size=48&per_video=2&text_weight=0"
    )
    assert Search().query_string() == "" and not Search(q="  ") and Search(like=0) and Search(clip="k")
    assert Search(q='a "x" -dog -"a b"  well-known -').words() == ('a "x" well-known -', ["dog", "a b"])


def test_a_search_is_made_of_its_words_what_is_unwanted_and_its_clips(searcher, index):
    parts = searcher.parts(index, Search(q="x -x -cat", like=5, clip="key"))
    assert [part.weight for part in parts] == [1.0, MINUS_WEIGHT, MINUS_WEIGHT, 1.0, 1.0]
    for part, words in ((parts[0], "x"), (parts[1], "x"), (parts[2], "cat"), (parts[4], "key")):
        assert part.query.sentence_embeds.equal(index.encode_texts([words]).sentence_embeds)
    frames = index.snapshot.gather(index.snapshot.positions(np.array([5])))
    assert parts[3].query.word_embeds.equal(video_as_text(frames).word_embeds)
    for wrong, message in ((Search(), "empty"), (Search(q="a" + " -b" * 9), "9 phrases to leave out; at most 8")):
        with pytest.raises(ValueError, match=message):
            searcher.parts(index, wrong)
    with pytest.raises(NotIndexed, match="row 99 "):
        searcher.parts(index, Search(like=99))


def test_a_page_has_its_own_hits_and_one_more_tells_of_another(searcher, index):
    """Hits come best first; another order rearranges all of them, whatever the page."""
    best = [hit.video_id for hit in index.search("a red square", top_k=12)[0]]
    run = lambda **words: [hit.video_id for hit in searcher.run(Search(q="a red square", **words))]  # noqa: E731
    assert run(size=3) == best[:4] and run(size=3, page=2) == best[:7] and run() == best
    assert run(size=3, sort="name") == sorted(best)
    assert [hit.video_id for hit in searcher.run(Search(q="a red square", sort="newest"), 2)] == best
    assert len(searcher.run(Search(q="a red square"), 2)) >= 2
    assert [hit.video_id for hit in searcher.run(Search(q="a red square", filter="video_id=clip0[13]"))] == [
        name for name in best if name in ("clip01", "clip03")
    ]


def hit(name: str, start: float = 0.0, end: float = 1.0, **metadata) -> SearchResult:
    return SearchResult(name, name, 0.5, start, end, metadata=metadata)


def test_orders_of_hits():
    hits = [hit("b", 0, 5), hit("A", 0, 9), hit("c", 10, 15), hit("a", 3, 4)]
    assert [one.video_id for one in in_order(hits, "longest")] == ["A", "b", "c", "a"]
    assert [one.video_id for one in in_order(hits, "name")] == ["A", "a", "b", "c"]
    assert in_order(hits, "best") is hits and reasons(hits[0]) == ["seen at 0:00"]
    many = [hit(f"{number:03}") for number in range(searching.SORTED_HITS, -1, -1)]
    assert len(in_order(many, "name")) == searching.SORTED_HITS and in_order(many, "name")[0].video_id == "001"


def test_moments_of_a_person_are_seconds_apart():
    moments = [Moment(at, at + 1, score, at) for at, score in ((10, 9), (12.9, 8), (13, 7), (7.5, 6), (16, 5))]
    assert [moment.at for moment in apart(moments)] == [10, 13, 16]
    assert len(apart([Moment(at, at, 0, at) for at in range(0, 90, 3)])) == searching.MOMENTS
    bars = [Moment(at, at + 1, at % 7, at) for at in range(searching.BARS * 2 + 1)]
    thinned = searching._thinned(bars)
    assert len(thinned) == (len(bars) + 2) // 3 and thinned[2] is max(bars[6:9], key=lambda bar: bar.score)
    assert searching._thinned(bars[: searching.BARS]) == bars[: searching.BARS]


def test_bars_stand_where_their_seconds_are():
    moments = [Moment(10, 20, 0.2, 10), Moment(15, 25, 0.6, 15), Moment(30, 50, 0.4, 30)]
    bars = timeline_bars(moments)
    assert [(bar.x, bar.width) for bar in bars] == [(0, 125), (125, 375), (500, 500)]
    assert [(bar.y, bar.height) for bar in bars] == [(92, 8), (0, 100), (46, 54)]
    assert [bar.best for bar in bars] == [False, True, False] and [bar.moment for bar in bars] == moments
    (alone,) = timeline_bars(moments[:1])
    assert alone[:4] == (0, 0, 1000, 100) and alone.best and timeline_bars([]) == []
    same = timeline_bars([Moment(0, 0, 1, 0), Moment(0, 0, 1, 0)])
    assert [bar.width for bar in same] == [2, 2] and [bar.height for bar in same] == [100, 100]


def test_a_timeline_of_one_row_has_a_bar_a_frame_that_adds_up_to_the_score(searcher, index):
    found = index.search("a red square", top_k=1)[0][0]
    query = index.encode_texts(["a red square"])
    bars, moments = searcher.timeline(query, found)
    stored = index.snapshot.row(int(index.snapshot.positions(np.array([found.row]))[0]))
    assert sum(bar.score for bar in bars) == pytest.approx(found.score, abs=1e-4) and len(bars) > 1
    assert [bar.end for bar in bars[:-1]] == [bar.start for bar in bars[1:]] and bars[-1].end >= stored["end"]
    assert [bar.at for bar in bars] == [bar.start for bar in bars] == sorted(bar.start for bar in bars)
    assert moments[0].score == max(bar.score for bar in bars)
    assert searcher.timeline(query, hit("gone")) == ([], [])
    (shown,) = searcher.found(Search(q="a red square"), [found])
    assert (shown.hit, shown.available, shown.fit, shown.bars) == (found, True, 0.5, bars)
    (bare,) = searcher.found(Search(like=1), [found], with_moments=False)
    assert (
        bare.fit is None and bare.bars == [] and not searcher.found(Search(q="x"), [hit("/none")], False)[0].available
    )


def test_an_explanation_adds_up_and_names_its_queries(searcher, index):
    search = Search(q="a red square -sky", like=2, clip="key")
    found = index.search("a red square", top_k=1)[0][0]
    service = SimpleNamespace(live=searcher.live, clips=searcher.clips)
    told = explanation(service, index, search, searcher.parts(index, search), found)
    assert [table.title for table in told.tables] == ["“a red square”", "without “sky”", "like clip02", "like key.mp4"]
    assert [table.weight for table in told.tables] == [1, MINUS_WEIGHT, 1, 1] and told.interaction == "wti"
    assert told.tables[0].score == pytest.approx(found.score, abs=1e-4)
    for table in told.tables:
        assert sum(line.total for line in table.lines) == pytest.approx(table.score, abs=1e-4)
        assert [sum(line.values[n] for line in table.lines) for n in range(len(table.times))] == pytest.approx(
            table.totals, abs=1e-5
        )
        assert max(shade for line in table.lines for shade in line.shades) == LEVELS
    assert told.tables[0].lines[-1].name == "whole sentence" and told.tables[2].lines[1].name == "frame 2"
    assert "".join(line.name for line in told.tables[0].lines[:-1]) == "aredsquare"
    one = explanation(service, index, Search(q="a"), searcher.parts(index, Search(q="a")), found)
    assert one.score == one.tables[0].score != told.score
    assert [_shade(value, 1.0) for value in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0, 0, 4, 9, 9]


def test_what_people_keep(tmp_path, monkeypatch):
    store = Store(tmp_path, ("hook.example",))
    store.set_favourite("a", 1.5, True)
    store.set_favourite("b", 2.5, True)
    store.set_favourite("a", 3.5, True)
    assert [(one["video_id"], one["at"]) for one in store.favourites()] == [("b", 2.5), ("a", 3.5)]
    store.set_favourite("b", 0, False)
    saved = store.save_search("name", "q", "f=1", "https://hook.example/x", 0.75, 41)
    other = store.save_search("other", "p", "", None, 0.0, 0)
    kept = {
        name: saved[name] for name in ("name", "q", "filter", "webhook", "min_fit", "newest_row", "news", "trouble")
    }
    assert list(kept.values()) == ["name", "q", "f=1", "https://hook.example/x", 0.75, 41, [], None]
    store.update_saved(saved["id"], newest_row=50)
    assert [one["newest_row"] for one in Store(tmp_path).saved()] == [50, 0]
    assert not store.forget_saved("none") and store.forget_saved(saved["id"])
    assert [one["id"] for one in Store(tmp_path).saved()] == [other["id"]] and len(Store(tmp_path).favourites()) == 1
    for address, message in (("ftp://hook.example", "not an http"), ("http://else", r"else \(allowed: hook.example\)")):
        with pytest.raises(ValueError, match=message):
            store.save_search("n", "q", "", address, 0, 0)
    monkeypatch.setattr("dmae.retrieval.server.store.MAX_ENTRIES", 1)
    with pytest.raises(ValueError, match="at most 1 saved are kept"):
        store.save_search("n", "q", "", None, 0, 0)
    monkeypatch.setattr(store, "_write", lambda: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        store.forget_saved(other["id"])
    assert [one["id"] for one in store.saved()] == [other["id"]]


def test_news_are_new_rows_that_fit_and_are_told_once(index, tmp_path, monkeypatch):
    sent, fits = [], {3: 0.9, 5: 0.2, 7: 0.95, 1: 1.0}
    monkeypatch.setattr(news, "send", lambda *arguments: sent.append(arguments))
    store, live = Store(tmp_path, ("hook",)), LiveIndex(index)
    monkeypatch.setattr(live, "fresh", lambda: index)
    hits = [SearchResult(f"v{row}", "p", 0.5, 0.0, 1.0, moment=0.5, row=row) for row in fits]
    asked = []
    searcher = SimpleNamespace(
        live=live,
        run=lambda search, top_k: asked.append((search.q, search.filter, top_k)) or hits,
        found=lambda search, found, with_moments: [SimpleNamespace(hit=one, fit=fits[one.row]) for one in found],
    )
    background = SimpleNamespace(generation=index.manifest["generation"])
    watch = news.NewsWatch(searcher, background, store)
    watch.look()
    saved = store.save_search("mine", "a dog", "x=1", "http://hook/", 0.9, 2)
    done = store.save_search("done", "b", "", None, 0.0, int(index.manifest["next_id"]) - 1)
    store.update_saved(saved["id"], news=[{"row": 0}] * news.KEPT_NEWS)
    watch.look()
    (address, content), *_ = sent
    assert asked == [("a dog", "x=1", news.TOP_K)] and address == "http://hook/"
    assert [one["row"] for one in content["results"]] == [3, 7] and content["results"][1]["fit"] == 0.95
    assert (content["name"], content["query"], content["results"][0]["moment"]) == ("mine", "a dog", 0.5)
    entry = store.saved()[0]
    assert [one["row"] for one in entry["news"][:3]] == [3, 7, 0] and len(entry["news"]) == news.KEPT_NEWS
    assert (
        entry["newest_row"] == 11 and entry["trouble"] is None and store.saved()[1]["newest_row"] == done["newest_row"]
    )
    watch.look()
    assert len(sent) == 1 and len(asked) == 1


def test_news_that_could_not_be_sent_are_tried_again(index, tmp_path, monkeypatch, caplog):
    def refused(*arguments):
        raise OSError("no answer")

    monkeypatch.setattr(news, "send", refused)
    store = Store(tmp_path, ("hook",))
    store.save_search("mine", "a dog", "", "http://hook/", 0.0, 2)
    measured = []
    live = LiveIndex(index)
    monkeypatch.setattr(live, "fresh", lambda: index)
    searcher = Searcher(live, SimpleNamespace(fit=lambda score: 1.0), None)
    background = SimpleNamespace(generation=-1, measure=lambda: measured.append(1))
    with caplog.at_level(logging.WARNING):
        news.NewsWatch(searcher, background, store).look()
    (entry,) = store.saved()
    assert (entry["trouble"], entry["newest_row"], entry["news"]) == ("no answer", 2, []) and measured == [1]
    assert "saved search 'mine': no answer" in caplog.text


def test_a_live_index_knows_rows_windows_and_files(index, tmp_path, monkeypatch, caplog):
    live = LiveIndex(index)
    snapshot, position, stored = live.row(4)
    assert (snapshot, position, stored["video_id"]) == (index.snapshot, 4, "clip04")
    rows = [{"video_id": name, "start": start} for name, start in (("a", 5.0), ("b", 0.0), ("a", 1.0), ("a", 9.0))]
    fake = SimpleNamespace(rows=lambda: rows)
    assert live.windows(fake, "a").tolist() == [2, 0, 3] and live.windows(fake, "c").tolist() == []
    file = tmp_path / "a"
    assert not live.available(str(file))
    file.write_bytes(b"")
    assert not live.available(str(file)), "believed for a while"
    monkeypatch.setattr("dmae.retrieval.server.live.SEEN_SECONDS", 0.0)
    assert live.available(str(file)) and not live.available(str(tmp_path)) and not live.available("\0")

    def broken():
        raise ValueError("damaged")

    monkeypatch.setattr(index, "refresh", broken)
    assert live.fresh() is index and live.fresh() is index and live.trouble == "damaged"
    assert caplog.text.count("damaged") == 1
    monkeypatch.setattr(index, "refresh", lambda: None)
    assert live.fresh() is index and live.trouble is None


def test_how_well_a_hit_fits_is_its_rank_among_random_captions(index):
    assert [fit(score, np.array([0.1, 0.2, 0.3, 0.4])) for score in (0.05, 0.2, 0.25, 9)] == [0, 0.25, 0.5, 1]
    background = Background(LiveIndex(index))
    background.measure()
    scores = background.best_scores
    assert len(scores) == 128 and (np.diff(scores) >= 0).all() and background.generation == index.manifest["generation"]
    assert background.fit(float(scores[64]) + 1e-9) == pytest.approx(65 / 128, abs=0.02)


def test_an_upload_is_kept_a_while_under_its_name(monkeypatch):
    monkeypatch.setattr("dmae.retrieval.server.clips.KEPT", 2)
    clips = Clips(SimpleNamespace())
    try:
        first, second = clips.keep("one", "/secret/" + "a" * 99), clips.keep("two", "b.mp4")
        assert clips.name(first) == "a" * 80 and clips.embeddings(first) == "one"  # used: the second is now the oldest
        third = clips.keep("three", "c")
        assert (clips.embeddings(first), clips.embeddings(third)) == ("one", "three")
        with pytest.raises(ValueError, match="upload it again"):
            clips.name(second)
    finally:
        clips.close()


def test_media_are_made_once_and_the_longest_unused_go_first(tmp_path, monkeypatch):
    studio = Studio(tmp_path / "cache", 1_000)
    source = tmp_path / "a.mp4"
    source.write_bytes(b"x")
    made = []

    def run(function, path, *arguments):
        made.append(arguments[:-1])
        (tmp_path / arguments[-1]).write_bytes(bytes(300))

    def poster():
        """Stands for a function of media.py."""

    monkeypatch.setattr(studio, "run", run)
    first = studio.made(poster, ".webp", str(source), 1.0, 480)
    assert studio.made(poster, ".webp", str(source), 1.0, 480) == first and len(made) == 1 and first.suffix == ".webp"
    names = [studio.made(poster, ".webp", str(source), second, 480) for second in (2.0, 3.0)]
    for age, name in zip((100, 300, 200), (first, *names)):
        os.utime(name, (1e9 - age, 1e9 - age))
    studio.made(poster, ".webp", str(source), 4.0, 480)
    assert [name.exists() for name in (first, *names)] == [True, False, True] and studio.bytes() == 900
    source.write_bytes(b"another content")
    assert studio.made(poster, ".webp", str(source), 1.0, 480) != first


def test_who_may_come_in(monkeypatch):
    monkeypatch.delenv("DMAE_TOKEN", raising=False)
    long = "x" * 12
    assert checked_options(None, False).token is None and checked_options(long, False, host="0.0.0.0").token == long
    assert checked_options(None, True, host="0.0.0.0") == ServerOptions(host="0.0.0.0")
    weak = [(token, False, "::1") for token in ("x" * 11, "x x" * 4, "é" * 12)]
    for token, without, host in [*weak, (long, True, "::1"), (None, False, "10.0.0.1"), (None, False, "host")]:
        with pytest.raises(ValueError, match="token"):
            checked_options(token, without, host=host)
    monkeypatch.setenv("DMAE_TOKEN", "y" * 12)
    assert checked_options(None, False).token == "y" * 12 and checked_options(long, False).token == long


def test_an_address_that_makes_no_sense_is_as_if_it_were_not_there():
    found = pages._typed({"q": "a", "like": "7", "page": "0", "size": "x", "sort": "name", "other": "1"})
    assert found == {"q": "a", "sort": "name", "like": 7, "page": 1}
    assert pages._typed({"page": "99999"})["page"] == pages.MAX_RESULTS and pages._typed({"like": "٣"}) == {"page": 1}
    search = pages._search(q="a", sort="odd", size=40)
    assert (search.sort, search.size) == ("best", 48) and pages._search(size=1).size == 12


@pytest.fixture
def client(index, tmp_path):
    """The application itself, asked without a socket."""
    from fastapi.testclient import TestClient

    from dmae.retrieval.server.app import make_app

    index.save(tmp_path / "index")
    opened = VideoIndex.open(tmp_path / "index", index.model, index.processor)
    app = make_app(opened, ServerOptions(cache=tmp_path / "cache", webhook_hosts=("hook",)))
    background = app.state.service.background
    background.best_scores, background.generation = np.linspace(0, 1, 128), opened.manifest["generation"]
    background.measure = lambda: None  # no thread of its own at the end of the process
    with TestClient(app, base_url="http://localhost:7860") as asked:
        yield asked


def test_pages_and_answers_show_the_same_hits_in_the_same_order(client, index):
    best = index.search("a red square", top_k=12)[0]
    answer = client.get("/api/search", params={"q": "a red square", "top_k": 12}).json()["results"]
    assert [hit["video_id"] for hit in answer] == [hit.video_id for hit in best]
    for told, hit in zip(answer, best):
        assert (told["row"], told["moment"], told["available"]) == (hit.row, hit.moment, True)
        assert told["score"] == pytest.approx(hit.score, abs=1e-4) and told["reasons"] == [
            f"seen at 0:0{int(hit.moment)}"
        ]
    service = client.app.state.service
    for number, size in ((1, 12), (2, 5)):
        values = pages._results(service, Search(q="a red square", page=number, size=size))
        assert [one.hit.video_id for one in values["found"]] == [hit.video_id for hit in best][(number - 1) * size :][
            :size
        ]
        assert values["more"] == (number == 2)
    fits = [one.fit for one in pages._results(service, Search(q="a red square"))["found"]]
    assert fits == sorted(fits, reverse=True)
    shown = client.get("/", params={"q": "a red square"}).text
    names = re.findall(r'data-name="(clip\d\d)"', shown)
    assert list(dict.fromkeys(names)) == [hit.video_id for hit in best]


def test_that_nothing_fits_is_said_of_the_first_page_alone(client, monkeypatch):
    service = client.app.state.service
    monkeypatch.setattr(service.background, "fit", lambda score: 0.3)
    assert pages._results(service, Search(q="x"))["nothing_fits"]
    assert not pages._results(service, Search(q="x", page=2, size=5))["nothing_fits"]


def test_counts_states_and_columns_are_the_index_s(client, index, tmp_path):
    health = client.get("/health").json()
    assert (health["status"], health["videos"], health["rows"]) == ("ok", 12, 12) and health["detail"] is None
    assert health["generation"] == json.loads((tmp_path / "index" / "manifest.json").read_text())["generation"]
    shown = client.get("/metrics").text
    assert "dmae_index_rows 12.0" in shown and "dmae_stale 0.0" in shown and 'route="/health"' in shown
    recent = pages._recent(client.app.state.service)
    assert [row for row, _ in recent] == list(range(11, -1, -1)) and recent[0][1]["video_id"] == "clip11"
    assert client.post("/api/videos/3/favourite", json={"at": 1.5, "kept": True}).json() == {
        "video_id": "clip03",
        "kept": True,
    }
    saved = client.post("/api/saved", json={"q": "a dog", "webhook": "http://hook/x"}).json()
    assert (saved["name"], saved["newest_row"], saved["webhook"]) == ("a dog", 11, "http://hook/x")
    kept = pages._saved(client.app.state.service)
    assert [one["row"] for one in kept["kept"]] == [3] and kept["saved"][0]["id"] == saved["id"]
    told = client.get("/api/videos/3", params={"q": "a red square"}).json()
    assert (told["row"], told["video_id"], told["available"]) == (3, "clip03", True)
    (window,) = told["windows"]
    score = {hit.row: hit.score for hit in index.search("a red square", top_k=12)[0]}[3]
    assert window["score"] == pytest.approx(score, abs=1e-4) and "score" not in client.get("/api/videos/3").text
    assert client.get("/api/videos/99").status_code == 404 and client.get("/nowhere").json()["detail"] == "Not Found"


def test_one_video_s_page_plays_from_the_moment_that_was_found(client, index):
    service = client.app.state.service
    found = index.search("a red square", top_k=12)[0][3]
    values = pages._video(service, found.row, Search(q="a red square"), None)
    assert values["at"] == values["found"][0].hit.moment == found.moment and values["available"]
    assert values["found"][0].hit.score == pytest.approx(found.score, abs=1e-4)
    assert values["explained"].score == pytest.approx(found.score, abs=1e-4)
    plain = pages._video(service, found.row, Search(), None)
    assert plain["at"] == plain["stored"]["start"] and plain["found"] == [] and plain["explained"] is None
    assert pages._video(service, found.row, Search(q="x"), 1.25)["at"] == 1.25
    shown = client.get(f"/videos/{found.row}", params={"q": "a red square"}).text
    told = re.search("Score <b>(.*?)</b>", shown)
    assert float(told[1]) == pytest.approx(found.score, abs=2e-4) and f'data-row="{found.row}"' in shown

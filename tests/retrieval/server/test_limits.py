"""What a server does at its limits: too many who wait, what takes too long, a full cache, what is not there."""

import asyncio
import hashlib
import resource
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastapi import HTTPException

from dmae.retrieval.combine import Part
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.server import clips, explaining, export, live, news, service, studio
from dmae.retrieval.server.options import ServerOptions, cache_folder
from dmae.retrieval.server.service import Service
from dmae.retrieval.server.store import Store
from dmae.retrieval.server.studio import Studio


def refused(coroutine) -> tuple:
    """(status, detail, headers) of what a coroutine raises."""
    with pytest.raises(HTTPException) as error:
        asyncio.run(coroutine)
    return error.value.status_code, error.value.detail, error.value.headers


def test_a_service_is_made_of_its_own_parts(windowed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"^an index in memory cannot be served: `index.save\(folder\)`, then open"):
        Service(windowed, ServerOptions())
    index = VideoIndex.open(windowed.save(tmp_path / "index").path, windowed.model, windowed.processor)
    windowed.path = None  # it is shared, and stays in memory
    own = Service(index, ServerOptions())
    assert own.studio.folder == cache_folder(tmp_path / "index")
    assert own.news.searcher is own.searcher and own.news.background is own.background and own.news.store is own.store
    assert Service(index, ServerOptions(cache=tmp_path / "cache")).studio.folder == tmp_path / "cache"
    begun = []
    monkeypatch.setattr(
        service, "threading", SimpleNamespace(Thread=lambda **about: SimpleNamespace(start=lambda: begun.append(about)))
    )
    own.news = SimpleNamespace(start=lambda: begun.append("news"))
    own.start()
    assert begun == [{"target": own.background.measure, "daemon": True, "name": "fit"}, "news"]


def test_who_waits_too_long_or_with_too_many_is_told_so(monkeypatch):
    busy = SimpleNamespace(_waiting=service.WAITING, _slots=asyncio.Semaphore(1))
    told = "too many searches are waiting; try again"
    assert refused(Service.work(busy, pytest.fail, "searched")) == (503, told, {"Retry-After": "2"})
    busy._waiting = service.WAITING - 1
    assert asyncio.run(Service.work(busy, max, 3, 4)) == 4 and busy._waiting == service.WAITING - 1
    monkeypatch.setattr(service, "QUERY_SECONDS", 0.0)
    go = threading.Event()

    async def late():
        try:
            await Service.work(busy, go.wait, 600)
        finally:
            go.set()

    assert refused(late()) == (504, "this took more than 0 seconds; try again", None)
    assert busy._waiting == service.WAITING - 1


def test_what_cannot_be_shown_is_told():
    def made(error):
        raise error

    shown = SimpleNamespace(studio=SimpleNamespace(made=made))
    assert refused(Service.make(shown, FileNotFoundError("x")))[:2] == (404, "the video's file is not there any more")
    for error in (ValueError("no frame"), OSError("no frame")):
        assert refused(Service.make(shown, error))[:2] == (422, "this video cannot be shown: no frame")


def test_memory_is_what_the_system_says(monkeypatch):
    status = "VmPeak:\t  9 kB\nVmRSS:\t  5 kB\nVmData:\t 3 kB\n"
    monkeypatch.setattr(
        service, "Path", lambda path: SimpleNamespace(read_text=lambda: {"/proc/self/status": status}[path])
    )
    assert service.resident_bytes() == 5 * 1024
    monkeypatch.setattr(
        service, "Path", lambda path: SimpleNamespace(read_text=lambda: (_ for _ in ()).throw(OSError()))
    )
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=[77, who]))
    assert service.resident_bytes() == [77, resource.RUSAGE_SELF]


def test_a_look_at_a_file_is_believed_for_a_while_and_not_for_ever(tmp_path, monkeypatch):
    now, known = [0.0], live.LiveIndex(None)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    file = tmp_path / "a"
    file.write_text("")
    assert known.available(str(file)), "the first look is a look"
    file.unlink()
    now[0] = 29.9
    assert known.available(str(file))
    now[0] = 30.0
    assert not known.available(str(file))
    known._seen = dict.fromkeys(range(100_000), (0.0, True))
    assert not known.available(str(file)) and len(known._seen) == 100_001
    assert not known.available("/none") and known._seen == {"/none": (30.0, False)}


def test_a_snapshot_is_read_once_for_the_windows_of_its_videos():
    read, rows = [], [{"video_id": "a", "start": 1.0}, {"video_id": "a", "start": 0.0}]
    one, other = (SimpleNamespace(rows=lambda: read.append(1) or rows) for _ in range(2))
    known = live.LiveIndex(None)
    assert [known.windows(one, "a").tolist() for _ in range(3)] == [[1, 0]] * 3 and read == [1]
    known.windows(other, "a")
    assert read == [1, 1]


def test_what_people_keep_is_a_file_that_people_can_read(tmp_path):
    Store(tmp_path).set_favourite("a", 0.0, True)
    assert (tmp_path / "page.json").read_text().startswith('{\n "favourites": [\n  {\n')


def made(path: str, target: str) -> None:
    """What would run in a worker."""


def test_a_cache_begins_tidy_and_its_names_are_short(tmp_path, monkeypatch):
    (tmp_path / ".a.webp.dmae-new").write_text("left by a killed server")
    place = Studio(tmp_path, 10_000)
    assert list(tmp_path.iterdir()) == []
    place.run = lambda function, path, target: open(target, "w").close()
    (tmp_path / "a.mp4").write_text("")
    target = place.made(made, ".webp", str(tmp_path / "a.mp4"))
    assert len(target.stem) == 32 and target.suffix == ".webp"


def test_workers_that_hang_are_ended_at_once(tmp_path):
    done, place = [], Studio(tmp_path, 10_000)
    pool = SimpleNamespace(
        _processes={n: SimpleNamespace(kill=lambda n=n: done.append(n)) for n in range(2)},
        shutdown=lambda **how: done.append(how),
    )
    place._pool = other = SimpleNamespace()
    place._drop(pool)
    assert place._pool is other
    place._pool = pool
    place._drop(pool)
    assert place._pool is None and done == [0, 1, {"wait": True, "cancel_futures": True}] * 2


@pytest.mark.parametrize(
    ("sizes", "left"),
    [
        ([500, 500], 2),  # as much as it may hold
        ([1, 500, 500], 1),
        ([105, 5, 5, 890], 3), ([105, 900], 1),  # nine tenths are left
        ([100, 5, 900], 1), ([99, 7, 899], 1), ([5, 95, 905], 0),  # a little more would be left
    ],
)  # fmt: skip
def test_the_longest_unused_go_until_a_tenth_is_free(tmp_path, sizes, left):
    place, gone = Studio(tmp_path, 1_000), []
    files = [
        (age, size, SimpleNamespace(unlink=lambda missing_ok, age=age: gone.append((age, missing_ok))))
        for age, size in enumerate(sizes)
    ]
    place._files = lambda: files[::-1]
    place._sweep(50)
    assert gone == [(age, True) for age in range(len(sizes) - left)]


def test_a_worker_s_watch_on_its_server_keeps_nobody_alive(monkeypatch):
    begun = []
    thread = lambda **about: SimpleNamespace(start=lambda: begun.append(about))  # noqa: E731
    monkeypatch.setattr(studio, "threading", SimpleNamespace(Thread=thread))
    monkeypatch.setattr(studio.signal, "signal", lambda *what: None)
    monkeypatch.setattr(studio.os, "nice", lambda by: None)
    monkeypatch.setattr(resource, "setrlimit", lambda *what: None)
    monkeypatch.setattr(studio.multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=3))
    studio._begin()
    assert begun == [{"target": studio._end_with, "args": (3,), "daemon": True}]


def test_an_upload_s_frames_are_chosen_once(tmp_path, monkeypatch):
    asked = []

    def decode(pictures, **how):
        asked.append((pictures, how))
        return SimpleNamespace(frames="frames", timestamps="times")

    sampler = SimpleNamespace(num_frames=2, sampling="uniform", fps=None, decode=decode)
    index = SimpleNamespace(model="m", processor=SimpleNamespace(feature_extractor=sampler))
    run = lambda function, name, *more: np.arange(4.0) if not more else ("pictures", more[0].tolist())  # noqa: E731
    monkeypatch.setattr(
        clips, "choose_frames", lambda times, *how: np.array([1, 3]) if how == (2, "uniform", None) else None
    )
    monkeypatch.setattr(clips, "encode_frames", lambda *what: what)
    monkeypatch.setattr(clips, "video_as_text", lambda video: ("query", video))
    kept = clips.Clips(SimpleNamespace(run=run))
    try:
        with (tmp_path / "a").open("w+b") as upload:
            assert kept.embed(upload, index) == ("query", ("m", index.processor, "frames", "times"))
        assert asked == [(("pictures", [1.0, 3.0]), {"do_sample_frames": False})]
        assert len(kept.keep("query", "a.mp4")) == 16, "twelve random bytes"
    finally:
        kept.close()


def explained(monkeypatch, values: list) -> list:
    """(name, total, shades) of the lines of a table of these parts: two frames, a row a word, the sentence last."""
    video = SimpleNamespace(video_mask=torch.tensor([[True, True]]))
    snapshot = SimpleNamespace(gather=lambda at: video, tensor=lambda name, at: torch.tensor([[0.5, 1.5]]))
    monkeypatch.setattr(explaining, "score_parts", lambda *what: torch.tensor([values], dtype=torch.float64))
    words = len(values) - 1
    query = SimpleNamespace(word_mask=torch.ones(1, words, dtype=torch.bool))
    index, state = SimpleNamespace(config=None), SimpleNamespace(snapshot=snapshot)
    table = explaining._table(index, state, Part(query, 1.0), "like a", np.array([0]))
    assert table.times == [0.5, 1.5] and table.score == pytest.approx(sum(map(sum, values)))
    return [(line.name, line.total, line.shades) for line in table.lines]


def test_lines_that_say_nothing_are_left_out_and_shades_span_what_is_there(monkeypatch):
    assert explained(monkeypatch, [[1, 1], [0, 0], [2, 0]]) == [("frame 1", 2, [4, 4]), ("whole sentence", 2, [9, 0])]
    assert explained(monkeypatch, [[0, 0], [1, 3], [0, 0]]) == [("frame 2", 4, [3, 9])]
    assert explained(monkeypatch, [[0, 0], [0, 0], [0, 0]]) == [("whole sentence", 0, [0, 0])]
    assert explained(monkeypatch, [[-1, 2], [2, 1]]) == [("frame 1", 1, [0, 6]), ("whole sentence", 3, [6, 3])]


def test_where_posters_are_kept_by_default(tmp_path, monkeypatch):
    """In the user's cache, by a hash of where the index is."""
    name = hashlib.sha256(str((tmp_path / "my.index").resolve()).encode()).hexdigest()[:16]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder(tmp_path / "x" / ".." / "my.index") == tmp_path / "caches" / "dmae" / "previews" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(tmp_path / "my.index") == tmp_path / ".cache" / "dmae" / "previews" / name


def test_exports_count_slow_frames_and_can_be_read():
    assert [export.timecode(3661, fps) for fps in (1, 0.4, 2)] == ["01:01:01:00", "01:01:01:00", "00:30:30:01"]
    assert export.exported([], "a", "json") == (b'{\n "query": "a",\n "results": []\n}', "application/json")


def test_the_newest_row_that_is_known_is_no_news(tmp_path):
    """And no moments are looked for that nobody sees."""
    store, hits = Store(tmp_path), [SimpleNamespace(row=row, moment=1.0, to_dict=dict) for row in (7, 8, 9)]

    def found(search, hits, with_moments):
        assert with_moments is False
        return [SimpleNamespace(hit=hit, fit=1.0) for hit in hits]

    index = SimpleNamespace(manifest={"next_id": 10, "generation": 1})
    searcher = SimpleNamespace(live=SimpleNamespace(fresh=lambda: index), run=lambda *asked: hits, found=found)
    store.save_search("mine", "a", "", None, 0.0, 8)
    news.NewsWatch(searcher, SimpleNamespace(generation=1), store).look()
    assert [one["row"] for one in store.saved()[0]["news"]] == [9]

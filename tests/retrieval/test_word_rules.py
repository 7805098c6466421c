"""The small rules of words, times and servers: what a video's texts are, what was heard, how a server is asked."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval import repair, running, text_search, transcripts
from dmae.retrieval.results import SearchResult
from dmae.retrieval.spoken import Cue, Sidecars
from dmae.retrieval.text_search import Passage
from dmae.retrieval.timeline import _facts

# ---- words ------------------------------------------------------------------------------------------------------


def test_every_text_of_a_video(tmp_path, monkeypatch):
    """Without a clip, everything said is its own; the video's own tracks count where the file is there."""
    (tmp_path / "Great Film_2.mp4").write_bytes(b"x")
    cues = {"a.srt": [Cue(0.1, 0.5, "early")], "Great Film_2.mp4": [Cue(5000.0, 5001.0, "late")]}
    monkeypatch.setattr(text_search, "read_cues", lambda path: cues[Path(path).name])
    metadata = {"title": "T", "n": 3, "tags": ["x", 4, {"no": 1}], "captions": ["no"], "empty": "", "none": None}
    row = {
        "video_id": "id",
        "path": str(tmp_path / "Great Film_2.mp4"),
        "metadata": metadata,
        "file": {"duration": 9, "captured": "2020"},
    }
    said = [("said", "early", 0.1, 0.5), ("said", "late", 5000.0, 5001.0)]
    rest = [
        ("name", "id Great Film 2", None, None),
        ("title", "T", None, None),
        ("n", "3", None, None),
        ("tags", "x 4", None, None),
    ]
    told = lambda row: [passage[1:] for passage in text_search.passages_of(row, [Path("a.srt")])]  # noqa: E731
    assert told(row) == said + rest
    assert told({**row, "path": str(tmp_path / "gone.mp4")})[0] == said[0]
    assert told({**row, "path": str(tmp_path / "gone.mp4")})[1][0] == "name"
    assert [one[1] for one in told({**row, "clip": [0.2, 0.4]})[:2]] == ["early", "id Great Film 2"]
    assert told({**row, "clip": [0.6, None]})[0] == said[1]


def test_the_sources_and_the_stamp_of_a_video_s_texts(tmp_path):
    for name in ("a.srt", "b.en.vtt", "b.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "transcripts").mkdir()
    row = {
        "video_id": "v",
        "path": str(tmp_path / "a.mp4"),
        "content": "c1",
        "copies": [{"path": str(tmp_path / "b.mp4")}],
    }
    beside = [tmp_path / "a.srt", tmp_path / "b.en.vtt"]
    assert text_search._sources(row, tmp_path, Sidecars()) == beside
    heard = tmp_path / "transcripts" / "c1.vtt"
    heard.write_text("x")
    assert text_search._sources(row, tmp_path, Sidecars()) == [*beside, heard]
    os.utime(heard, (5, 5))
    stamp = text_search._stamp({**row, "signature": [1, 2], "metadata": {"b": 1, "a": 2}}, [heard])
    assert json.loads(stamp) == [row["path"], [1, 2], {"a": 2, "b": 1}, [[str(heard), 5_000_000_000]]]


def test_a_base_of_texts_follows_the_rows(tmp_path):
    rows = [
        {"video_id": name, "path": "", "metadata": {"title": title}}
        for name, title in (("a", "red fox"), ("b", "red hen"))
    ]
    text_search.refresh_texts(tmp_path, rows, in_process=True)
    found = lambda words: [(one.video_id, one.kind, one.text) for one in text_search.find_passages(tmp_path, words)]  # noqa: E731
    assert sorted(found("the RED")) == [("a", "title", "red fox"), ("b", "title", "red hen")]
    assert found("fox hen") == [] and found("fox") == [("a", "title", "red fox")] and found(" ") == []
    rows[0] = {**rows[0], "metadata": {"title": "blue \ud800 fox"}}
    text_search.refresh_texts(tmp_path, rows[:1], in_process=True)
    assert found("red") == [] and found("hen") == [] and found("fox") == [("a", "title", "blue ? fox")]
    assert text_search.find_passages(tmp_path / "none", "fox") == []
    assert text_search._match("The a") == '"the" "a"' and text_search._match('The "Fox" OR 9') == '"fox" "9"'


def test_a_hit_begins_where_its_words_are_said():
    hit = SearchResult("v", "p", 0.5, 10.0, 20.0, moment=12.0, reasons=("seen",))
    found = [
        Passage("v", "title", "x"), Passage("v", "said", "y", 3.0, None), Passage("v", "title", "z"),
        Passage("v", "n", "w"),
    ]  # fmt: skip
    shown = text_search._with_reasons(hit, found, seen=True, begin_where_said=True)
    assert (shown.start, shown.end, shown.moment) == (3.0, 3.0, 3.0)
    assert shown.reasons == ("in the title", "said at 0:03", "seen")
    other = text_search._with_reasons(hit, found, seen=False, begin_where_said=False)
    assert (other.start, other.end, other.moment, other.reasons) == (10.0, 20.0, 12.0, shown.reasons[:2])
    until = text_search._with_reasons(hit, [Passage("v", "said", "y", None, 4.0)], seen=False, begin_where_said=True)
    assert (until.start, until.end, until.reasons) == (0.0, 4.0, ("said at 0:00",))


def test_what_was_heard_in_seconds_of_the_video(tmp_path):
    heard = [
        (2.0, None, " b "),
        (-1.0, 1.0, "a"),
        (None, 0.5, "c"),
        (3.0, 1.0, "no"),
        (4.0, 99.0, " "),
        (9.5, 20.0, "d"),
    ]
    assert transcripts._cues(heard, 600.0, 10.0) == [
        Cue(600.0, 600.5, "c"), Cue(600.0, 601.0, "a"), Cue(602.0, 610.0, "b"), Cue(609.5, 610.0, "d"),
    ]  # fmt: skip
    for duration, blocks in ((None, 1), (0.0, 1), (600.0, 1), (600.1, 2), (1800.0, 3)):
        assert transcripts._blocks({"file": {"duration": duration}}) == blocks
    assert transcripts._blocks({}) == 1 and transcripts._stamp(3_723.4567) == "01:02:03.457"
    sound = np.zeros(transcripts.RATE, np.float32)
    hear = lambda samples: [(0.0, None, str(len(samples)))]  # noqa: E731
    parts = [((None, 0), sound, None), ((None, 2), sound[:1600], None), ((None, 3), sound[:0], None)]
    cues = [Cue(0.0, 1.0, "16000"), Cue(1200.0, 1200.1, "1600")]
    assert transcripts._heard(hear, parts) == (cues, None)
    assert transcripts._heard(hear, [((None, 0), None, "first"), *parts, ((None, 4), None, "second")]) == ([], "first")
    rows = [
        {"content": "x", "path": "p", "n": 1},
        {"content": None, "path": "p"},
        {"content": "x", "path": "q", "n": 2},
        {"content": "y", "path": ""},
    ]
    assert [row["n"] for row in transcripts._videos(rows)] == [2]
    video = tmp_path / "v.mp4"
    row = {"content": "c", "path": str(video)}
    assert not transcripts._is_missing(tmp_path, row, "m"), "there is no file to hear"
    video.write_bytes(b"x")
    assert transcripts._is_missing(tmp_path, row, "m")
    (tmp_path / "transcripts").mkdir()
    transcripts.transcript_of(tmp_path, row).write_text(transcripts.as_vtt([], "m"))
    assert not transcripts._is_missing(tmp_path, row, "m") and transcripts._is_missing(tmp_path, row, "other")


def test_what_a_file_says_of_itself():
    def said(stream, container):
        holder = SimpleNamespace(metadata=stream), SimpleNamespace(metadata=container)
        return _facts(SimpleNamespace(stream=holder[0], container=holder[1]), 1.23456)

    assert said({}, {}) == {"duration": 1.235} == said({"date": "today"}, {"creation_time": ""})
    assert said({"creation_time": "2001-01-01"}, {"creation_time": "2020-02-03T04:05:06.789Z", "date": "1999"}) == {
        "captured": "2020-02-03T04:05:06", "duration": 1.235,
    }  # fmt: skip
    assert said({"date": "1999"}, {})["captured"] == "1999"


# ---- a server that is asked -------------------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    status, index, body, asked = 200, "one", b'{"results": [1]}', []

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.status)
        self.send_header(running.INDEX_HEADER, self.index)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments):
        pass


def test_what_a_running_server_answers(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Answering)
    own = os.getpid()
    note = running.Running(own, running._began(own), "0.0.0.0", server.server_port, "secret", "one")

    def ask(note=note, **answer):
        for name, value in {"status": 200, "index": "one", "body": b'{"results": [1]}', **answer}.items():
            setattr(Answering, name, value)
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        try:
            return note.ask("a b", top_k=3, filter=["x=1", "y=2"])
        finally:
            thread.join(timeout=600)

    assert ask() == [1] and ask(note._replace(token=None, host="127.0.0.1")) == [1]
    address = "/api/search?q=a+b&top_k=3&filter=x%3D1&filter=y%3D2"
    assert Answering.asked == [(address, "Bearer secret"), (address, None)]
    for answer, error, told in (
        ({"status": 400, "body": b'{"detail": "too long"}'}, ValueError, "too long"),
        ({"status": 503, "body": b'{"detail": "busy"}'}, running.NotAnswering, "it answered 503, busy"),
        ({"index": "two"}, running.NotAnswering, "serves another index"),
        ({"body": b"no json"}, running.NotAnswering, "does not answer"),
    ):  # fmt: skip
        with pytest.raises(error, match=told):
            ask(**answer)
    server.server_close()
    with pytest.raises(running.NotAnswering, match=f"0.0.0.0:{note.port} does not answer"):
        note.ask("a")
    with pytest.raises(running.NotAnswering, match=f"the process {own} has ended"):
        note._replace(began="another").ask("a")
    monkeypatch.setattr(running.os, "kill", lambda pid, signal: (_ for _ in ()).throw(ProcessLookupError()))
    assert not running._alive(own, note.began)


def test_names_of_rows_that_can_still_be_read():
    lines = b'{"video_id": "a"}\n{"video_id": 7}\nbroken\n{"other": 1}\n{"video_id": "deleted"}'
    segment = SimpleNamespace(file="s.bin", arrays=SimpleNamespace(arrays={"rows": np.frombuffer(lines, np.uint8)}))
    assert repair._names(segment, [0, 1]) == ["a", "7"]
    assert repair._names(segment, [0, 2, 3, 9]) == ["a", "3 rows of s.bin, whose names cannot be read"]

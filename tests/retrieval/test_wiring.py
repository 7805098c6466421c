"""What a search is made of reaches its result: the right rows, windows, weights, filters, whatever the way to them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.inference.embedding import encode_texts, encode_videos
from dmae.modeling_dmae.embeddings_dmae import VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import combine, state
from dmae.retrieval.asking import check_query, clock, parse_filter, read_lines, require_free, require_index
from dmae.retrieval.combine import Part, search_combined
from dmae.retrieval.explain import best_frames
from dmae.retrieval.filters import described, filtered_ids, holds
from dmae.retrieval.fit import random_best_scores, random_captions
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import best_hits, best_moments, video_as_text
from dmae.retrieval.rows import as_item, index_rows
from dmae.retrieval.snapshot import Snapshot
from dmae.retrieval.spoken import Cue
from dmae.retrieval.text_search import Passage, _joined, passages_of
from dmae.retrieval.text_weight import learn_text_weight
from dmae.retrieval.windows import Hit, WindowPlan, merge_hits

QUERIES = ["a red square moves left", "the sky is blue", "two dogs run"]


@pytest.fixture(scope="module")
def windows(encoded, model, processor):
    """Ten windows of each of two files and one of ten others, all under their own spans."""
    items = [
        {**encoded.items[number], "start": 0.1 * turn, "end": 1 + 0.1 * turn}
        for turn, number in itertools.product(range(10), range(2))
    ]
    items += encoded.items[2:]
    return VideoIndex.build(encode_videos(model, processor, items, num_workers=0), model, processor)


def shown(hits):
    return [(hit.video_id, hit.row, round(hit.score, 5), hit.start, hit.end, hit.moment) for hit in hits]


def test_the_engine_and_a_look_at_every_row_answer_alike(windows, monkeypatch):
    """With one candidate to begin with, and every query asked apart, it must look further by itself."""
    filters = [None, {"video_id": "clip0[13579]"}]
    exact = [windows.search(QUERIES, top_k=12, filter=filter, exact=True) for filter in filters]
    assert len(exact[0][0]) == 12 and {hit.video_id for hit in exact[1][0]} == {f"clip0{n}" for n in (1, 3, 5, 7, 9)}
    monkeypatch.setattr(state, "EXACT_UP_TO", 0)
    monkeypatch.setattr(state, "TOGETHER", 2)
    for filter, expected in zip(filters, exact):
        found = windows.search(QUERIES, top_k=12, filter=filter, candidates=30)
        assert [shown(hits) for hits in found] == [shown(hits) for hits in expected]
        few = windows.search(QUERIES, top_k=12, filter=filter, candidates=1)
        assert [{hit.video_id for hit in hits} for hits in few] == [{hit.video_id for hit in hits} for hits in expected]
    monkeypatch.setattr(combine, "EXACT_UP_TO", 0)
    monkeypatch.setattr(combine, "CANDIDATES", 30)
    text = encode_texts(windows.model, windows.processor, QUERIES[:1])
    allowed = filtered_ids(windows.snapshot, filters[1])
    mixed = search_combined(windows.state, [Part(text)], 12, allowed)
    assert [hit.video_id for hit in mixed] == [hit.video_id for hit in exact[1][0]]


def test_the_engine_is_asked_once_where_that_is_enough_and_never_of_few_rows(windows, monkeypatch):
    asked, really = [], state.IndexState._engine_positions
    monkeypatch.setattr(
        state.IndexState, "_engine_positions", lambda self, *of: (asked.append(of[1]), really(self, *of))[1]
    )
    assert len(windows) == 30
    for most, engine in ((30, []), (29, [25])):
        monkeypatch.setattr(state, "EXACT_UP_TO", most)
        asked.clear()
        assert len(windows.search(QUERIES[0], top_k=2, candidates=25)[0]) == 2 and asked == engine


def test_a_result_names_its_row_by_the_id_that_stays(encoded, model, processor):
    index = VideoIndex.build(encoded, model, processor)
    index.delete(["clip00", "clip04"])
    index.add(encoded.split("clip04".__eq__)[0])
    for hit in index.search(QUERIES[0], top_k=12)[0]:
        (position,) = index.snapshot.positions(np.array([hit.row]))
        assert index.snapshot.row(position)["video_id"] == hit.video_id
    assert len(index.snapshot.positions(np.array([0, 4, 99]))) == 0, "ids of deleted rows are nowhere"


def test_a_clip_is_searched_by_the_seconds_that_were_asked_for(windows, encoded, model, processor):
    path = encoded.items[5]["path"]
    item = {"video_id": "x", "path": path, "start": 1.0, "end": 2.0}
    part = encode_videos(model, processor, [item], num_workers=0).embeddings
    expected = windows.search_embeddings(video_as_text(part), top_k=5)[0]
    assert shown(windows.search_by_video(path, start=1.0, end=2.0, top_k=5)) == shown(expected)
    assert shown(windows.search_by_video(path, top_k=5)) != shown(expected)


def test_a_video_as_a_query_is_its_weighted_real_frames():
    frames = unit(torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)))
    mask = torch.tensor([[True, True, True, False]])
    weights = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    query = video_as_text(VideoEmbeddings(2 * frames.half(), frames, weights, mask))
    mean = 0.7 * frames[0, 0] + 0.2 * frames[0, 1] + 0.1 * frames[0, 2]
    torch.testing.assert_close(query.sentence_embeds[0], mean / mean.norm(), atol=2e-3, rtol=0)
    torch.testing.assert_close(query.word_embeds, frames, atol=2e-3, rtol=0)
    assert torch.equal(query.word_weights, weights) and torch.equal(query.word_mask, mask)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_hits_of_some_rows_are_those_of_all(seed):
    """Many touching windows with ties: reading only as many as can matter changes nothing."""
    random = np.random.default_rng(seed)
    count = 300
    rows = [{"video_id": f"v{n % 9}", "start": 5.0 * (n // 9), "end": 5.0 * (n // 9) + 10} for n in range(count)]
    scores = np.round(random.normal(0.5, 0.05, count), 2)
    snapshot, positions = Read(rows), np.arange(count)
    hits = [Hit(row["video_id"], float(scores[n]), row["start"], row["end"], n) for n, row in enumerate(rows)]
    hits = [hits[n] for n in np.argsort(-scores, kind="stable")]
    for top_k, per_video in ((1, 1), (4, 2), (9, 1), (20, 3)):
        assert best_hits(snapshot, positions, scores, top_k, per_video) == merge_hits(hits, top_k, per_video)


def test_moments_are_told_to_a_thousandth(make_videos, model, processor):
    videos = make_videos("abcdef")
    index = VideoIndex.build(videos._replace(timestamps=videos.timestamps / 7), model, processor)
    text, rows = encode_texts(model, processor, QUERIES[:1]), np.arange(6)
    found = best_moments(index.snapshot, text, rows, model.config)
    frames = best_frames(text, index.snapshot.gather(rows), model.config).tolist()
    assert found == [round(frame / 7, 3) for frame in frames] and len(set(found)) > 1
    assert best_moments(index.snapshot, text, rows[:0], model.config) == []


def test_a_moment_spans_the_windows_that_it_is_made_of(make_videos, model, processor):
    videos = make_videos("aab")
    rows = [0, 0, 2]  # two windows that show the same
    items = [{**item, "start": 2.0 * row, "end": 2.0 * row + 3} for row, item in enumerate(videos.items)]
    index = VideoIndex.build(videos._replace(embeddings=videos.embeddings[rows], items=items), model, processor)
    hits = {hit.video_id: hit for hit in index.search(QUERIES[0], top_k=2)[0]}
    assert [(hits[name].start, hits[name].end) for name in "ab"] == [(0.0, 5.0), (4.0, 7.0)]
    assert all(
        hit.moment == index.state.described(encode_texts(model, processor, QUERIES[:1]), [hit.row])[0].moment
        for hit in hits.values()
    )


class Read(Snapshot):
    """Rows that are counted as they are read."""

    def __init__(self, rows: list[dict]):
        self.held, self.read = rows, []

    def row(self, position: int) -> dict:
        self.read.append(position)
        return self.held[position]


def test_only_rows_that_can_matter_are_read():
    """Twice as many as are asked for, then those within the margin of the last moment; more where moments merge."""
    apart = [{"video_id": f"v{n}", "start": 0.0, "end": 1.0} for n in range(40)]
    scores = 0.5 - 0.01 * np.arange(40)
    told = Read(apart)
    assert [hit.position for hit in best_hits(told, np.arange(40), scores, 3, 1)] == [0, 1, 2]
    assert told.read == [0, 1, 2, 3, 4, 5]
    near = np.where(np.arange(40) < 9, 0.5 - 0.0001 * np.arange(40), 0.1)
    told = Read(apart)
    assert [hit.position for hit in best_hits(told, np.arange(40), near, 3, 1)] == [0, 1, 2]
    assert told.read == list(range(9)), "all that could widen a moment"
    told = Read([{**row, "video_id": f"v{n // 20}"} for n, row in enumerate(apart)])
    assert [hit.position for hit in best_hits(told, np.arange(40), scores, 2, 1)] == [0, 20]
    assert told.read == list(range(40)), "4, 16, then all of them"
    told = Read(apart[:5])
    assert len(best_hits(told, np.arange(5), scores[:5], 9, 1)) == 5 and told.read == list(range(5))


def test_what_is_given_to_an_index_has_a_name(tmp_path):
    (tmp_path / "a.b.mp4").write_bytes(b"")
    path = str(tmp_path / "a.b.mp4")
    assert as_item(path) == as_item(tmp_path / "a.b.mp4") == {"video_id": "a.b", "path": path}
    named, nameless = {"video_id": 0, "video": "frames"}, {"path": path, "start": 1.0}
    assert as_item(named) is named and as_item(nameless) == {"video_id": "a.b", "path": path, "start": 1.0}
    with pytest.raises(ValueError, match="a video in memory has no file to be named after; give it a 'video_id'"):
        as_item({"video": [np.zeros((2, 2, 3))]})
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'none.mp4'}: no such video file"):
        as_item(tmp_path / "none.mp4")


def test_spans_are_stored_to_a_thousandth(encoded):
    items = [{**encoded.items[0], "start": 1 / 3, "end": 2 / 3}]
    one = encoded._replace(embeddings=encoded.embeddings[[0]], items=items, timestamps=encoded.timestamps[:1])
    assert [(row["start"], row["end"]) for row in index_rows(one)] == [(0.333, 0.667)]


@pytest.mark.parametrize(
    ("value", "condition"),
    [
        ("2019-12-24 18:00:00", "<=2019-12-24T18:00"), ("2019-12-24T18:00:00", ">=2019-12-24 18:00"),
        ("2019-12-24 18:00:00", ">2019-12-24T17"), ("2019-12-24T18:00:00", "<2019-12-24 19"),
    ],
)  # fmt: skip
def test_a_date_may_have_a_space_before_its_hour(value, condition):
    assert holds(value, condition)


def test_a_window_without_a_stride_moves_by_half_of_itself():
    assert list(WindowPlan(10).cut((0, 20))) == [(0, 10), (5, 15), (10, 20)]


def test_a_row_names_its_file_wherever_it_was_given_from(make_videos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    window = {"start": 0.0, "end": 1.0}
    items = [
        {"video_id": 7, "path": "x/../y.mp4", **window, "last": False, "metadata": {"n": 1}, "content": "c", "odd": 1},
        {"video_id": "in memory", "video": [], **window, "clip": [2, 3], "metadata": {}},
        {"video_id": "whole", "path": "/z.mp4", "span": (0.0, 1.0), "last": True},
    ]
    rows = index_rows(make_videos("abc")._replace(items=items))
    assert rows == [
        {
            "video_id": "7",
            "path": str(tmp_path.resolve() / "y.mp4"),
            **window,
            "last": False,
            "metadata": {"n": 1},
            "content": "c",
        },
        {"video_id": "in memory", "path": "", **window, "clip": [2, 3]},
        {"video_id": "whole", "path": "/z.mp4", **window},
    ]


def test_frames_that_are_padding_have_no_time(make_videos):
    videos = make_videos("abcd")
    mask = torch.tensor([[True, True, False, False]]).repeat(1, 2).expand(4, -1).clone()
    mask[1, 0] = mask[2, 5] = False
    videos.embeddings.video_mask[:] = mask
    items = [{name: item[name] for name in ("video_id", "path")} for item in videos.items]
    rows = index_rows(videos._replace(items=items, timestamps=videos.timestamps + 0.25))
    assert [(row["start"], row["end"]) for row in rows] == [(0.25, 5.25), (1.25, 5.25), (0.25, 4.25), (0.25, 5.25)]


def test_a_row_has_the_span_of_its_window_its_file_or_its_frames(encoded):
    base = encoded.items[0]
    items = [{**base, "start": 0.0, "end": 1.2345}, {**base, "span": (0.25, 7.5)}, base]
    three = encoded._replace(
        embeddings=encoded.embeddings[[0, 0, 0]], items=items, timestamps=encoded.timestamps[[0, 0, 0]] + 0.5
    )
    times = three.timestamps[2][three.embeddings.video_mask[2]]
    spans = [(row["start"], row["end"]) for row in index_rows(three)]
    assert spans == [(0.0, 1.234), (0.25, 7.5), (round(float(times[0]), 3), round(float(times[-1]), 3))]


ROWS = [
    {"video_id": "a", "path": "/v/a.mp4", "metadata": {"Year": 2019, "tags": ["Beach", "sun"], "captured": "own"}},
    {"video_id": "b", "path": "/v/b.mp4", "metadata": {"Year": "2021"}, "file": {"captured": "2019-12-24T18:00:00"}},
    {"video_id": "c", "path": "/w/c.mp4", "metadata": {}, "file": {"captured": "2020-01-01"}},
]


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        (["year>=2019"], "ab"), (["year>2019"], "b"), (["year<2021"], "a"), (["year!=2019"], "bc"),
        (["tags=BEACH"], "a"), (["tags=s*"], "a"), (["tags!=sun"], "bc"), (["captured<=2019"], "b"),
        (["captured<2019-12-24"], ""), (["captured>2019-12"], "c"), (["captured=own"], "a"),
        (["video_id=B"], "b"), (["path=/V/*"], "ab"), (["path=/v/*", "year<2020"], "a"),
        (["year>=2019", "year<=2020"], "a"), (["year=20?1"], "b"),
    ],
)  # fmt: skip
def test_filters_let_through_what_they_say(pairs, found):
    snapshot = SimpleNamespace(rows=lambda: ROWS, ids=np.array([10, 20, 30]))
    assert filtered_ids(snapshot, parse_filter(pairs)).tolist() == [10 * (1 + "abc".index(name)) for name in found]


def test_a_column_of_the_metadata_comes_before_what_the_file_says():
    assert described({"file": {"captured": "2019", "duration": 3}, "metadata": {"captured": "own"}}) == {
        "captured": "own",
        "duration": 3,
    }
    assert not holds(None, ">3") and holds(None, "!=3") and not holds("x", ">3")


def test_what_is_said_outside_a_clip_is_not_its_own(tmp_path, monkeypatch):
    cues = [Cue(0.0, 1.0, "before"), Cue(1.5, 2.5, "over"), Cue(3.0, 4.0, "inside"), Cue(9.0, 10.0, "after")]
    monkeypatch.setattr("dmae.retrieval.text_search.read_cues", lambda path: cues)
    row = {"video_id": "TheFilm_2", "path": "", "clip": [2.0, 5.0], "metadata": {"captions": ["x"], "title": "T"}}
    found = list(passages_of(row, [tmp_path / "a.srt"]))
    said = [(passage.text, passage.start) for passage in found if passage.kind == "said"]
    assert said == [("over inside", 1.5), ("inside", 3.0)]
    assert [(p.kind, p.text.split()) for p in found if p.kind != "said"] == [
        ("name", ["The", "Film", "2"]),
        ("title", ["T"]),
    ]
    assert [cue.text for cue in _joined([Cue(0, 1, "a"), Cue(3.9, 4, "b"), Cue(7.1, 8, "c")])] == ["a b", "b", "c"]
    assert Passage("v", "said", "x", 65.0).reason == "said at 1:05"


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "q.txt").write_text("\ufeffa dog\n\n  a cat \n", encoding="utf-8")
    assert read_lines(tmp_path / "q.txt", "queries") == ["a dog", "a cat"]


def test_what_is_typed_is_refused_with_a_reason(tmp_path):
    long = "has 2001 characters; at most 2000"
    for query, message in (("  ", "empty"), ("a" * 2001, long), ("\ud800", "not valid UTF")):
        with pytest.raises(ValueError, match=message):
            check_query(query)
    check_query("a" * 2000)
    (tmp_path / "none.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name, error, message in (
        ("gone.txt", FileNotFoundError, "gone.txt: no such file of queries"),
        ("none.txt", ValueError, "no queries in it"),
        ("latin.txt", ValueError, "at byte 0"),
    ):
        with pytest.raises(error, match=message):
            read_lines(tmp_path / name, "queries")
    with pytest.raises(ValueError, match="'year' is not key=value"):
        parse_filter(["a=b", "year"])
    assert parse_filter(["a = b", "a!=c=d", "n>=2", "n<=3", "m>1", "m<2"]) == {
        "a": ["b", "!=c=d"], "n": [">=2", "<=3"], "m": [">1", "<2"],
    }  # fmt: skip
    with pytest.raises(ValueError, match="is not empty and holds no index"):
        require_free(tmp_path)
    with pytest.raises(FileNotFoundError, match="make one with `dmae index`"):
        require_index(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").write_text("")
    require_free(tmp_path / "new"), require_free(tmp_path / "absent")
    assert [clock(seconds) for seconds in (-3, 59.9, 60, 3599, 3600, 36_061)] == [
        "0:00", "0:59", "1:00", "59:59", "1:00:00", "10:01:01",
    ]  # fmt: skip


# ---- several queries at once -------------------------------------------------------------------------------------


class Told:
    """A state whose scores and candidates are as they are told."""

    def __init__(self, rows: int, scores: dict):
        self.snapshot, self.scores, self.asked = range(rows), scores, []

    def score(self, query, positions):
        return np.array(self.scores[query], dtype=np.float32)[positions]

    def candidates(self, query, wanted, allowed):
        self.asked.append((query, wanted, allowed))
        return np.array([2, 0] if query == "x" else [3])


def test_scores_of_several_queries_are_measured_against_their_own_spread(monkeypatch):
    parts = [Part("x", 2.0), Part("y", -0.5), Part("flat"), Part("none", 0.0)]
    scores = {"x": [1, 2, 3, 6], "y": [0, 4, 0, 4], "flat": [7, 7, 7, 7], "none": [0, 0, 1, 9]}
    x, y = (np.array([1.0, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6]), np.array([-1.0, 1, -1, 1])
    found = combine.combined_scores(Told(4, scores), parts, np.array([3, 0]))
    np.testing.assert_allclose(found, ((2 * x - 0.5 * y) / 3)[[3, 0]], rtol=1e-6)
    monkeypatch.setattr(combine, "REFERENCE_ROWS", 1)
    assert combine.combined_scores(Told(4, scores), [Part("x")], np.arange(4)).tolist() == [0, 1, 2, 5]


def test_candidates_come_from_all_that_is_wanted(monkeypatch):
    monkeypatch.setattr(combine, "EXACT_UP_TO", 4)
    parts = [Part("x"), Part("y", -0.5), Part("z", 0.0), Part("w", 0.5)]
    for rows, allowed, wanted in ((4, None, None), (5, None, 1_000), (9, np.arange(4), None), (4, np.arange(5), 1_000)):
        told = Told(rows, {})
        assert combine._candidates(told, parts, allowed).tolist() == [0, 2, 3]
        assert told.asked == [("x", wanted, allowed), ("w", wanted, allowed)]
    with pytest.raises(ValueError, match="only words to leave out; say what to look for too"):
        search_combined(Told(4, {}), [Part("x", 0.0), Part("y", -0.5)], 1)


# ---- how much words count ----------------------------------------------------------------------------------------


class Ranked:
    """An index in which the video of query q is at rank `places[q][weight]`, None: not found."""

    video_ids = ["a", "b"]

    def __init__(self, **places: dict):
        self.places, self.kept = places, {}

    def encode_texts(self, queries):
        return [f"embedded {query}" for query in queries]

    def search_embeddings(self, embedded, top_k):
        assert top_k == 100
        return [self._hits(self.places[query.removeprefix("embedded ")].get(0.0)) for query in embedded]

    def with_texts(self, query, hits, weight, filter, row):
        assert row == [f"embedded {query}"] and filter is None and hits == self._hits(self.places[query].get(0.0))
        return self._hits(self.places[query].get(weight))

    def _hits(self, place):
        return [SimpleNamespace(video_id="a" if rank == place else "other") for rank in range(1, 13)]

    def keep(self, **values):
        self.kept |= values


@pytest.mark.parametrize(
    ("places", "best"),
    [
        (({0.125: 1, 8.0: 2}, {0.125: 10, 8.0: 2}), 0.125),  # 1 + 1/10 > 1/2 + 1/2
        (({0.5: 3, 4.0: 1}, {0.5: 3}), 4.0),  # what is not found counts nothing
        (({0.0: 1, 1.0: 1}, {0.0: 1, 1.0: 1}), 1.0),
        (({0.125: 1, 2.0: 1}, {}), 2.0),
        (({0.25: 1, 8.0: 1}, {}), 0.25),
        (({0.0: 1}, {1.0: 2}), 0.0),
        (({}, {}), 1.0),
    ],
)
def test_words_count_as_much_as_finds_the_known_videos_best(places, best):
    index = Ranked(p=places[0], q=places[1])
    assert learn_text_weight(index, ["p", "q"], ["a", "a"]) == best and index.kept == {"text_weight": best}


def test_queries_that_teach_nothing_are_refused():
    index = Ranked()
    for queries, videos, told in (
        ([], [], "as many queries in words as videos, not 0"), (["p"], ["a", "a"], "videos, not 2"),
        ([3], ["a"], "not 1"),
        (["p"] * 8, list("zyxwvuab"), "not in the index: u, v, w, x, y; name the videos"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            learn_text_weight(index, queries, videos)
    assert index.kept == {}


def test_nothing_is_known_of_the_fit_in_an_empty_index():
    assert random_best_scores([]).shape == (0,)
    assert len({*random_captions(200)}) == 200 and random_captions(3) == random_captions(200)[:3]

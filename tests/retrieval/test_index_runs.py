"""What a run of `dmae index` commits and when, whose rows go, and what it says of files that it could not read."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from dmae.inference.embedding import EncodedVideos
from dmae.retrieval import indexing, storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import IndexSummary
from dmae.retrieval.timeline import Timeline
from dmae.retrieval.windows import WindowPlan


@pytest.fixture
def index(make_videos, model, processor) -> VideoIndex:
    return VideoIndex.build(make_videos("abc"), model, processor)


def todo(names: str, megabytes: int = 0, **more) -> list[dict]:
    return [
        {"video_id": n, "path": f"/videos/{n}.mp4", "signature": [megabytes * 2**20, 1], "copies": [], **more}
        for n in names
    ]


def skipping(*names: str, path: str = "") -> EncodedVideos:
    entries = [{"video_id": name, "path": path or f"/{name}", "error": f"{name} is bad"} for name in names]
    return EncodedVideos(None, [], torch.empty(0, 0), entries)


@pytest.fixture
def embed(monkeypatch, model, processor):
    """embed(batches, …) -> (summary, the videos of each commit), with a clock that goes on by `seconds` a batch."""

    def embed(batches, seconds=0.0, into=None, items=None, end=None, **options):
        now, commits, asked = [100.0], [], []
        into = VideoIndex.empty(model, processor) if into is None else into

        def decoded(*arguments):
            asked.append(arguments)
            for batch in batches:
                now[0] += seconds
                yield batch
            if end is not None:
                raise end

        add = into.add
        monkeypatch.setattr(into, "add", lambda ready, **how: (commits.append(ready.video_ids), add(ready, **how)))
        monkeypatch.setattr(indexing, "iter_videos", decoded)
        monkeypatch.setattr(indexing, "_items", lambda *arguments: arguments)
        monkeypatch.setattr(indexing, "time", SimpleNamespace(monotonic=lambda: now[0]))
        summary = IndexSummary()
        try:
            indexing._embed(into, todo("abcde") if items is None else items, 3, options.get("workers", 2), summary)
        except KeyboardInterrupt:
            summary.seconds = -1
        return summary, commits, asked

    return embed


def test_a_commit_comes_every_ten_seconds_and_with_the_last_batch(embed, make_videos, monkeypatch):
    batches = [make_videos(name) for name in "abcde"]
    for seconds, sizes in ((0.0, [5]), (4.9, [3, 2]), (5.0, [2, 2, 1]), (10.0, [1] * 5)):
        summary, commits, _ = embed(batches, seconds)
        assert [len(ids) for ids in commits] == sizes and [name for ids in commits for name in ids] == list("abcde")
        assert (summary.embedded, summary.skipped) == (5, [])
    monkeypatch.setattr(indexing, "SEGMENT_ROWS", 2)
    assert [len(ids) for ids in embed(batches)[1]] == [2, 2, 1]


def test_what_was_embedded_before_ctrl_c_is_kept(embed, make_videos, model, processor):
    into = VideoIndex.empty(model, processor)
    summary, commits, _ = embed([make_videos("a"), make_videos("b")], into=into, end=KeyboardInterrupt())
    assert (summary.seconds, summary.embedded, commits) == (-1, 2, [["a", "b"]]) and into.video_ids == ["a", "b"]
    assert embed([], items=[])[1:] == ([], []), "nothing to do"
    assert embed([])[1] == []


def test_how_many_embed_at_once(embed, monkeypatch, model, processor):
    """A few long films are work for workers too."""
    monkeypatch.setattr(indexing, "default_workers", lambda clips: ("for", clips))
    into = VideoIndex.empty(model, processor)
    for given, megabytes, workers in ((2, 100, 2), (0, 100, 0), (None, 0, ("for", 5)), (None, 41, ("for", 51))):
        items = todo("abcde", megabytes)
        _, _, (asked,) = embed([], into=into, items=items, workers=given)
        expected = (into.model, into.processor, 3, workers, "indexing", 5)
        assert asked[:2] + asked[3:] == expected
        assert asked[2] == (items, WindowPlan(), into.processor.feature_extractor, given)
    into = VideoIndex.empty(model, processor, window=[3, 2])
    assert embed([], into=into)[2][0][2][1] == WindowPlan(3, 2)


def test_files_that_failed_are_told_once_with_their_copies(embed, make_videos):
    batches = [
        make_videos("a"),
        skipping("b"),
        skipping("a", "a", path="/videos/a.mp4"),
        skipping("c", path="/videos/c.mp4"),
    ]
    items = todo("abc")
    items[0]["copies"] = [{"path": "/copy of a", "signature": [1, 1]}]
    items[2]["copies"] = [{"path": "/copy of c", "signature": [2, 2]}]
    summary, _, _ = embed(batches, items=items)
    assert summary.embedded == 1
    assert summary.skipped == [
        {"video_id": "b", "path": "/b", "error": "b is bad", "signature": None},
        {"video_id": "a", "path": "/videos/a.mp4", "error": "2 of its moments left out; a is bad", "signature": None},
        {"video_id": "c", "path": "/videos/c.mp4", "error": "c is bad", "signature": None},
        {"video_id": "c", "path": "/copy of c", "error": "c is bad", "signature": [2, 2]},
    ]


def test_windows_of_a_video_that_was_begun_are_added_to_those_that_are_there(embed, make_videos, index):
    items = todo("a", done=[(0.0, 2.0)]) + todo("b")
    embed([make_videos("ab", seed=1)], into=index, items=items)
    assert [row["video_id"] for row in index.rows()] == ["a", "c", "a", "b"]


def test_rows_of_a_file_that_became_damaged_go_in_the_same_commit(index, make_videos):
    begun, before = {"c"}, index.manifest["generation"]
    indexing._commit(index, make_videos("de")._replace(skipped=skipping("a", "c", "d", "x").skipped), begun)
    assert (index.video_ids, begun, index.manifest["generation"]) == (["b", "c", "d", "e"], {"c", "d", "e"}, before + 1)
    indexing._commit(index, skipping("x", "c"), begun)
    assert index.manifest["generation"] == before + 1, "nobody's rows"
    indexing._commit(index, skipping("b", "c"), begun)
    assert index.video_ids == ["c", "d", "e"] and begun == {"c", "d", "e"}


def test_videos_without_a_file_are_counted_and_forgotten_when_asked(make_videos, model, processor, tmp_path):
    index = VideoIndex.build(make_videos("abcd"), model, processor)
    (tmp_path / "there.mp4").write_bytes(b"")
    there = str(tmp_path / "there.mp4")
    copies = [{"path": "/lost", "signature": []}, {"path": there, "signature": []}]
    index.rewrite({"b": {"copies": copies}, "c": {"path": ""}, "d": {"path": there, "copies": copies[:1]}})
    for prune, found, left in ((False, (0, 1), "abcd"), (True, (1, 0), "bcd"), (True, (0, 0), "bcd")):
        summary = IndexSummary()
        indexing._forget_missing(index, prune, summary)
        assert (summary.removed, summary.gone) == found and sorted(index.video_ids) == list(left)


def test_what_earlier_runs_left(tmp_path):
    assert indexing._read_skipped(tmp_path) == {} and indexing._kept_patterns(tmp_path) == ()
    entries = [{"path": "/a\u2028b", "error": "x"}, {"path": "/c", "error": "y"}]
    lines = [json.dumps(entries[0], ensure_ascii=False), "", json.dumps(entries[1]), ""]
    (tmp_path / "skipped.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert indexing._read_skipped(tmp_path) == {entry["path"]: entry for entry in entries}
    model = {"name": "m", "weights": "w", "processor": "p"}
    for exclude, kept in ((["raw", 3], ("raw", "3")), (None, ())):
        storage.write_manifest(tmp_path, storage.new_manifest(model=model, config={}, exclude=exclude))
        assert indexing._kept_patterns(tmp_path) == kept
    (tmp_path / "file").write_bytes(b"four")
    os.utime(tmp_path / "file", ns=(1, 5_000_000_007))
    assert indexing._signature(str(tmp_path / "file")) == [4, (tmp_path / "file").stat().st_mtime_ns]
    assert indexing._signature(str(tmp_path / "none")) is None
    assert indexing._first_reason(IndexSummary()) == "there is nothing to embed"
    assert indexing._first_reason(IndexSummary(skipped=skipping("a", "b").skipped)) == "the first: a is bad"


def test_where_videos_lie_and_what_is_left_out_is_kept(index, tmp_path):
    (tmp_path / "films").mkdir(), (tmp_path / "new").mkdir()
    films, new = str(tmp_path / "films"), str(tmp_path / "new")
    indexing._keep_places(index, tmp_path / "films" / "list.csv", (), IndexSummary())
    assert index.roots == {"films": films} and "exclude" not in index.manifest
    indexing._keep_places(index, films, [f"films={new}"], IndexSummary(excluded=("raw",)))
    assert index.roots == {"films": new, "films-2": films} and index.manifest["exclude"] == ["raw"]
    before = index.manifest["generation"]
    indexing._keep_places(index, films, (), IndexSummary(excluded=("raw",)))
    assert index.manifest["generation"] == before, "nothing has changed"
    indexing._keep_places(index, films, (), IndexSummary())
    assert index.manifest["exclude"] == []


def test_what_is_known_of_a_file_goes_with_its_windows(monkeypatch):
    asked, sampler = [], SimpleNamespace(limits="limits")
    found = [(Timeline(0.0, 2.0, facts={"duration": 2.0}), None), (None, "bad")]
    monkeypatch.setattr(indexing, "read_timelines", lambda *read, **how: (asked.append((read, how)), found)[1])
    monkeypatch.setattr(indexing, "stretches_of", lambda *stretch: [stretch])
    items = [{"path": "/a", "done": [[0.0, 1.0]]}, {"path": "/b"}]
    plan = WindowPlan(1, 1)
    first, second = indexing._items(items, plan, sampler, 0)
    assert first == ({"path": "/a", "error": None, "file": {"duration": 2.0}}, found[0][0], plan, sampler, {(0.0, 1.0)})
    assert second == ({"path": "/b", "error": "bad", "file": {}}, None, plan, sampler, set())
    list(indexing._items([], plan, sampler, None)), list(indexing._items([], plan, sampler, 1))
    assert [(read, how["in_process"]) for read, how in asked] == [
        ((["/a", "/b"], "limits"), True), (([], "limits"), False), (([], "limits"), False),
    ]  # fmt: skip

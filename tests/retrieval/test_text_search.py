"""What is said or written finds a video too, says why, and changes nothing at weight 0."""

import json
import shutil

import av
import pytest

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.results import SearchResult
from dmae.retrieval.spoken import Sidecars, read_cues
from dmae.retrieval.text_search import FILE, Passage, find_passages, fuse

SRT = "1\n00:00:00,500 --> 00:00:01,000\nThe <i>engine</i> is on fire!\n\n2\n00:00:01,200 --> 00:00:01,900\n{}\n"


def with_track(clip, subtitles, target):
    with av.open(str(subtitles)) as words, av.open(str(clip)) as video, av.open(str(target), "w") as container:
        inputs = [words.streams.subtitles[0], video.streams.video[0]]
        outputs = [container.add_stream_from_template(stream) for stream in inputs]
        for source, stream, output in zip((words, video), inputs, outputs):
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = output
                    container.mux(packet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clips, model_folder):
    folder = tmp_path_factory.mktemp("spoken")
    videos = folder / "videos"
    videos.mkdir()
    for number, name in enumerate(["ship.mp4", "Holiday in Lisbon.mp4", "noise.mp4"]):
        shutil.copy(clips / f"clip{number:02d}.mp4", videos / name)
    (videos / "ship.en.srt").write_text(SRT.format("call the captain"))
    (folder / "x.srt").write_text(SRT.format("gravity is gone"))
    with_track(clips / "clip05.mp4", folder / "x.srt", videos / "space.mkv")
    rows = [{"file_name": "noise.mp4", "title": 'A "quoted" NEAR OR* title', "captions": ["a zebra"]}]
    (videos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index_videos(videos, folder / "index", str(model_folder), num_workers=0)
    return folder


def first(folder, query, **options):
    return VideoIndex.open(folder / "index").search(query, top_k=4, **{"text_weight": 1.0, **options})[0][0]


@pytest.mark.parametrize(
    "query, video, reason",
    [
        ("engine on fire: call", "ship", "said at 0:00"),  # over the end of a line
        ("the captain", "ship", "said at 0:01"),
        ("gravity", "space", "said at 0:01"),
        ("Lisbon holidáy", "Holiday in Lisbon", "in the name"),
        ("quoted title", "noise", "in the title"),
    ],
)
def test_words_find_their_video_and_say_why(folder, query, video, reason):
    hit = first(folder, query)
    assert (hit.video_id, hit.reasons[0]) == (video, reason)
    if reason.startswith("said"):
        assert hit.start == hit.moment and hit.start in (0.5, 1.2)


def test_weight_0_is_search_by_pictures_exactly(folder):
    index = VideoIndex.open(folder / "index")
    for query in ("engine on fire", "a red square"):
        plain = index.search(query, top_k=4)
        assert index.search(query, top_k=4, text_weight=0.0) == plain
        assert {hit.score for hit in index.search(query, top_k=4, text_weight=1.0)[0]} == {h.score for h in plain[0]}
    assert index.search("a zebra", text_weight=1.0) == index.search("a zebra")  # captions prove nothing
    for wrong in (-1, float("nan"), float("inf")):  # NaN would put the hits in no order at all
        with pytest.raises(ValueError, match=f"text_weight={wrong} must not be negative, and finite"):
            index.search("red", text_weight=wrong)


def test_each_query_is_fused_with_its_own_words_however_few_are_shown(folder, monkeypatch):
    """What is first of many is first of one; a video that only words found has the score of its own query."""
    index = VideoIndex.open(folder / "index")
    queries = ["gravity", "Lisbon holiday", "quoted title", "the captain"]
    whole = index.search(queries, top_k=4, text_weight=1.0)
    assert [hits[0].video_id for hits in whole] == ["space", "Holiday in Lisbon", "noise", "ship"]
    for few in (1, 2):
        assert index.search(queries, top_k=few, text_weight=1.0) == [hits[:few] for hits in whole]
    monkeypatch.setattr("dmae.retrieval.index.FUSED_HITS", 1)
    seen = [{hit.video_id: hit.score for hit in hits} for hits in index.search(queries, top_k=4)]
    for hits, score in zip(index.search(queries, top_k=1, text_weight=9.0), seen):
        assert [hit.score for hit in hits] == pytest.approx([score[hit.video_id] for hit in hits], abs=1e-6)


@pytest.mark.parametrize("query", ['"', "NEAR(", "title:x OR *", "a'b -- ;", "the a of", "\N{SNOWMAN}", "und " * 300])
def test_nothing_in_a_query_is_an_operator(folder, query):
    assert len(VideoIndex.open(folder / "index").search(query, text_weight=1.0)[0]) == 4


def test_words_keep_to_the_filter(folder):
    found = VideoIndex.open(folder / "index").search("engine", text_weight=1.0, filter={"path": "*space*"})[0]
    assert [hit.video_id for hit in found] == ["space"]


def test_texts_follow_their_files(folder, tmp_path):
    shutil.copytree(folder / "videos", tmp_path / "videos")
    shutil.copytree(folder / "index", tmp_path / "index")
    (tmp_path / "videos" / "ship.en.srt").write_text(SRT.format("mutiny"))
    index_videos(tmp_path / "videos", tmp_path / "index", num_workers=0)
    words = ("mutiny", "captain", "engine")
    found = {word: {p.video_id for p in find_passages(tmp_path / "index", word)} for word in words}
    assert found == {"mutiny": {"ship"}, "captain": {"ship"}, "engine": {"ship", "space"}}  # a file and its copy
    (tmp_path / "videos" / "ship.en.srt").unlink()
    index_videos(tmp_path / "videos", tmp_path / "index", num_workers=0)
    assert find_passages(tmp_path / "index", "mutiny") == []
    (tmp_path / "index" / FILE).write_bytes(b"no base" * 100)
    with pytest.raises(ValueError, match="run `dmae index` again"):
        find_passages(tmp_path / "index", "mutiny")
    index_videos(tmp_path / "videos", tmp_path / "index", num_workers=0)
    assert find_passages(tmp_path / "index", "captain")


def test_latin_1_and_broken_subtitles(tmp_path):
    (tmp_path / "a.srt").write_bytes(SRT.format("déjà vu").encode("latin-1"))
    assert [cue.text for cue in read_cues(tmp_path / "a.srt")] == ["The engine is on fire!", "déjà vu"]
    (tmp_path / "b.srt").write_bytes(b"\0\1\2" * 100)
    assert read_cues(tmp_path / "b.srt") == []
    assert [path.name for path in Sidecars().of(tmp_path / "a.mp4")] == ["a.srt"]


def hits(*names):
    return [SearchResult(name, name, 1 - place / 10, 0, 1, reasons=("seen",)) for place, name in enumerate(names)]


def test_reciprocal_ranks():
    passages = [Passage("c", "name", "x"), Passage("d", "said", "x", 7.0, 8.0)]
    fused = fuse(hits("a", "b", "c"), passages, {"d": hits("d")[0]}, weight=1.0)
    share = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
    assert [hit.video_id for hit in fused] == sorted(share, key=lambda name: -share[name])
    assert [hit.reasons for hit in fused if hit.video_id in "cd"] == [("in the name", "seen"), ("said at 0:07",)]
    assert [hit.video_id for hit in fuse(hits("a", "b", "c"), passages, {}, weight=1e-9)][:2] == ["a", "b"]
    third = [Passage(name, "name", "x") for name in "xyc"]
    assert fuse(hits("a", "b", "c"), third, {}, weight=1.0)[0].video_id == "c", "third by both, before first by one"


def test_the_weight_of_words_is_learned_from_queries_whose_video_is_known(folder, tmp_path):
    index = VideoIndex.open(shutil.copytree(folder / "index", tmp_path / "index"))
    assert index.text_weight == 1.0
    words = ["engine call the captain", "gravity is gone", "Lisbon holiday", "quoted title"]
    named = ["ship", "space", "Holiday in Lisbon", "noise"]
    index.calibrate(words, videos=named)
    assert index.text_weight >= 1.0  # words name the video, a random model sees nothing
    assert [hits[0].video_id for hits in index.search(words, text_weight=index.text_weight)] == named
    best_seen = [hits[0].video_id for hits in index.search(words)]
    index.calibrate(words, videos=best_seen)  # what is asked for is what is seen
    assert VideoIndex.open(tmp_path / "index").text_weight == index.text_weight < 1.0
    for queries, videos, told in [(words, ["ship"], "not 1"), (["a"], ["nowhere"], "not in the index: nowhere")]:
        with pytest.raises(ValueError, match=told):
            index.calibrate(queries, videos=videos)

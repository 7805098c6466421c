"""A search beside its answer: how well mixed queries fit, and the order of time."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from dmae.retrieval.asking import MAX_QUERY_CHARACTERS
from dmae.retrieval.fit import fit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult
from dmae.retrieval.server import searching
from dmae.retrieval.server.live import LiveIndex
from dmae.retrieval.server.media import write_clip, write_poster
from dmae.retrieval.server.searching import Found, Search, Searcher, in_order, nothing_fits


@pytest.fixture
def searcher(encoded, model, processor):
    searcher = Searcher(LiveIndex(VideoIndex.build(encoded, model, processor)), None, None)

    def asked(q: str, random_scores):
        searcher.background = SimpleNamespace(fit=lambda score: fit(score, np.array(random_scores)))
        return searcher.found(Search(q=q), searcher.run(Search(q=q), 12), with_moments=False)

    return asked


def test_words_to_leave_out_have_a_fit_too_so_that_they_make_news(searcher):
    """Else a saved search with a minus would never find anything new."""
    plain = {one.hit.video_id: one.hit.score for one in searcher("a red square", [0.0])}
    unwanted = {one.hit.video_id: one.hit.score for one in searcher("the sky is blue", [0.0])}
    bound = float(np.median([*unwanted.values()]))
    for one in searcher('a red square -"the sky is blue"', [bound]):
        name = one.hit.video_id
        assert one.fit == (0.0 if unwanted[name] > bound else float(plain[name] > bound))


def test_newest_is_by_the_date_that_the_file_itself_tells():
    said = {
        "a": {"captured": "2021-05-01"},
        "b": {"year": 2023},
        "c": {},
        "d": {"captured": "2022-01-01", "year": 1990},
    }
    hits = [SearchResult(name, name, 0.5, 0.0, 1.0, metadata=metadata) for name, metadata in said.items()]
    assert [hit.video_id for hit in in_order(hits, "newest")] == ["b", "d", "a", "c"]


def test_nothing_fits_where_even_the_best_is_like_a_caption_about_anything():
    hit = SearchResult("a", "a", 0.5, 0.0, 1.0)
    assert nothing_fits([Found(hit, True, 0.5), Found(hit, True, 0.89)])
    assert not nothing_fits([Found(hit, True, 0.2), Found(hit, True, 0.95)])
    assert not nothing_fits([Found(hit, True, None)]) and not nothing_fits([])
    assert nothing_fits([Found(hit, True, 0.5), Found(hit, True, None)])
    assert not nothing_fits([Found(hit, True, searching.WELL)])


@pytest.fixture
def index(encoded, model, processor) -> VideoIndex:
    return VideoIndex.build(encoded, model, processor)


@pytest.fixture
def plain(index) -> Searcher:
    """Everything fits by half."""
    clips = SimpleNamespace(embeddings=lambda key: index.encode_texts([key]))
    return Searcher(LiveIndex(index), SimpleNamespace(fit=lambda score: 0.5), clips)


def test_what_is_said_in_a_video_counts_for_words_alone(plain, index, monkeypatch):
    asked, found = [], index.search("a red square", top_k=12)[0]
    monkeypatch.setattr(index, "with_texts", lambda *words: asked.append(words) or words[1])
    monkeypatch.setitem(index.manifest, "text_weight", 0.5)
    run = lambda **words: [hit.video_id for hit in plain.run(Search(**words), 2)]  # noqa: E731
    best = [hit.video_id for hit in found]
    assert run(q="a red square") == run(q="a red square", text_weight=0.25) == best[:2]
    assert [(words, [hit.video_id for hit in hits], weight, filters) for words, hits, weight, filters, _ in asked] == [
        ("a red square", best, 0.5, {}), ("a red square", best, 0.25, {})
    ]  # fmt: skip
    assert asked[0][4].sentence_embeds.equal(index.encode_texts(["a red square"]).sentence_embeds)
    asked.clear()
    assert run(q="a red square", text_weight=0) == best[:2]
    for others in ({"like": 3}, {"clip": "k"}, {"q": "a", "like": 3}, {"q": "a -b"}):
        assert len(run(**others)) >= 2
    assert asked == []


def test_eight_phrases_may_be_left_out(plain, index):
    assert len(plain.parts(index, Search(q="a" + " -b" * 8))) == 9
    too_long = "x" * (MAX_QUERY_CHARACTERS + 1)
    for wrong, told in (
        ("a" + " -b" * 9, "9 phrases to leave out; at most 8 are accepted"), ("", "the query is empty"),
        (too_long, f"the query has {len(too_long)} characters"), (f"a -{too_long}", f"has {len(too_long)} characters"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            plain.parts(index, Search(q=wrong))


def test_a_video_that_was_deleted_meanwhile_fits_no_mixed_search(plain, index):
    here = index.search("a red square", top_k=1)[0][0]
    gone = SearchResult("gone", "gone", 0.5, 0.0, 1.0, row=99)
    for query, fits in (("a red square -sky", [0.5, 0.0]), ("a red square", [0.5, 0.5])):
        assert [one.fit for one in plain.found(Search(q=query), [here, gone], with_moments=False)] == fits


def test_of_a_video_s_windows_twice_as_many_as_are_shown_are_looked_at(plain, windowed, recorded):
    """Near ones fall away."""
    plain.live.index = windowed
    merged = recorded(searching, "merge_hits")
    (found,) = windowed.search("a red square", top_k=1, filter={"video_id": windowed.rows()[0]["video_id"]})[0]
    bars, moments = plain.timeline(windowed.encode_texts(["a red square"]), found)
    assert [bar.start for bar in bars] == [0.0, 0.5, 1.0, 1.5]
    assert moments and all(one.start < one.end for one in moments)
    assert [words[1:] for words in merged] == [(2 * searching.MOMENTS, 2 * searching.MOMENTS)]


def test_a_filter_holds_for_mixed_searches_and_their_hits_may_be_of_one_video(plain):
    asked = {"q": "a red square", "like": 3}
    assert {hit.video_id for hit in plain.run(Search(**asked, filter="video_id=clip0[13]"))} == {"clip01", "clip03"}
    assert len(plain.run(Search(**asked))) == 12


def test_only_words_have_a_fit_and_what_is_unwanted_counts_from_where_it_fits_well(plain, index):
    (hit,) = index.search("a red square", top_k=1)[0]
    for known, found in ((searching.WELL, 0.0), (searching.WELL - 0.01, searching.WELL - 0.01), (None, None)):
        plain.background.fit = lambda score, known=known: known
        assert [one.fit for one in plain.found(Search(q="a red square -sky"), [hit], with_moments=False)] == [found]
    plain.background.fit = lambda score: 0.5
    for others in ({"clip": "k"}, {"q": "a", "clip": "k"}, {"q": "a", "like": 1}, {"q": "a -b", "like": 1}):
        assert plain.found(Search(**others), [hit], with_moments=False)[0].fit is None
    assert plain.found(Search(q="a"), [hit], with_moments=False)[0].fit == 0.5


@pytest.mark.parametrize(("end", "last"), [(4.0, 4.0), (2.0, 3.0)])
def test_a_frame_s_bar_lasts_until_the_next_frame_or_the_end(monkeypatch, end, last):
    """What is no frame has no bar; a file may claim to end before its last frame."""
    shares = torch.tensor([[[0.25, 0.5, 9.0, 0.5], [0.25, 0.25, 9.0, 0.0]]])
    monkeypatch.setattr(searching, "score_parts", lambda query, video, config: shares)
    snapshot = SimpleNamespace(
        gather=lambda positions: SimpleNamespace(video_mask=torch.tensor([[True, True, False, True]])),
        tensor=lambda name, positions: torch.tensor([[0.0, 1.0, 9.0, 3.0]]),
        row=lambda position: {"end": end},
    )
    bars = searching._frame_bars(SimpleNamespace(snapshot=snapshot, config=None), None, np.array([7]))
    assert bars == [
        searching.Moment(0.0, 1.0, 0.5, 0.0), searching.Moment(1.0, 3.0, 0.75, 1.0),
        searching.Moment(3.0, last, 0.5, 3.0),
    ]  # fmt: skip


FORMATS = {  # what browsers do not play, where FFmpeg can write it
    "mpeg4.avi": "mpeg4", "mjpeg.avi": "mjpeg", "ms.avi": "msmpeg4", "a.wmv": "wmv2", "a.mpg": "mpeg2video",
    "b.mpeg": "mpeg1video", "a.flv": "flv", "hevc.mkv": "libx265", "a.ogv": "libtheora", "prores.mov": "prores_ks",
    "ffv1.mkv": "ffv1", "a.ts": "mpeg2video", "a.gif": "gif", "dnxhd.mxf": "mpeg2video",
}  # fmt: skip


def test_what_browsers_do_not_play_becomes_a_poster_and_a_preview(tmp_path):
    written = 0
    for name, codec in FORMATS.items():
        if codec not in av.codecs_available:
            continue
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            kinds = [one.name for one in stream.codec_context.codec.video_formats or ()]
            stream.width, stream.height, stream.pix_fmt = 64, 48, kinds[0] if kinds else "yuv420p"
            for number in range(25):
                image = np.full((48, 64, 3), 9 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        with av.open(str(tmp_path / name)) as container:
            begin = max(0.0, (container.start_time or 0) / av.time_base)  # MPEG streams begin later than at 0
        write_poster(str(tmp_path / name), begin + 0.5, 480, str(tmp_path / "poster.webp"))
        write_clip(str(tmp_path / name), begin + 0.2, begin + 0.8, 640, 24.0, str(tmp_path / "preview.mp4"))
        with av.open(str(tmp_path / "preview.mp4")) as made:
            assert (made.streams.video[0].codec_context.name, made.streams.video[0].pix_fmt) == ("h264", "yuv420p"), (
                name
            )
            assert 10 <= len(list(made.decode(video=0))) <= 18, name
        assert (tmp_path / "poster.webp").read_bytes()[8:12] == b"WEBP", name
        written += 1
    assert written >= 11

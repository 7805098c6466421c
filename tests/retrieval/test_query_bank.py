"""A bank beside an index gives each live query what the matrix form of QB-Norm gives it."""

import os
import shutil

import numpy as np
import pytest

from dmae import VideoIndex
from dmae.inference.embedding import encode_texts
from dmae.metrics.text_video_retrieval.postprocessing import QB_NORM_TEMPERATURE, QueryBank, qb_norm
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.retrieval import query_bank
from dmae.retrieval.asking import read_lines
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.query_bank import (
    CAPTIONS_FILE,
    FILE,
    LiveBank,
    build_query_bank,
    open_query_bank,
    refresh_query_bank,
)
from dmae.retrieval.windows import Hit

BANK = ["a red square moves left", "two dogs run", "the sky is blue", "a green circle moves up", "grass"]
QUERIES = ["a blue square moves up", "dogs on the grass"]


def test_live_queries_are_ranked_as_by_the_matrix_form(encoded, model, processor, tmp_path):
    index = VideoIndex.build(encoded, model, processor).save(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="--query-bank"):
        index.search(QUERIES, qb_norm=True)
    bank = build_query_bank(index, BANK)
    # as stored, in float16: rounding may decide which of two clips that score alike is a hub
    video = index.snapshot.gather(np.arange(len(index)))
    scores = [
        similarity(encode_texts(model, processor, texts), video, model.config).numpy() for texts in (QUERIES, BANK)
    ]
    expected = qb_norm(*scores, bank.temperature)
    assert (expected.argmax(1) != scores[0].argmax(1)).any()  # else plain search would pass too
    for results, row in zip(index.search(QUERIES, top_k=5, qb_norm=True), expected):
        best = np.argsort(-row)[:5]
        assert [result.video_id for result in results] == [encoded.video_ids[number] for number in best]
        assert [result.score for result in results] == pytest.approx(row[best].tolist(), abs=1e-4)


def test_a_bank_of_an_index_that_has_changed_is_refused(encoded, model, processor, tmp_path):
    index = VideoIndex.build(encoded, model, processor).save(tmp_path / "index")
    build_query_bank(index, BANK)
    assert index.search(QUERIES[0], qb_norm=True)[0]
    assert index._query_bank(index.state) is index._query_bank(index.state), "read once"
    plain = index.search(QUERIES[0], qb_norm=True)
    build_query_bank(index, BANK[:2], temperature=3.0)
    os.utime(index.path / FILE, ns=(1, 1))
    assert index.search(QUERIES[0], qb_norm=True) != plain, "another file"
    index.delete([encoded.video_ids[0]])
    with pytest.raises(ValueError, match="other videos"):
        index.search(QUERIES[0], qb_norm=True)


def test_clips_are_not_ranked_by_captions(encoded, model, processor, clips):
    with pytest.raises(ValueError, match="not clips"):
        VideoIndex.build(encoded, model, processor).search_by_video(clips / "clip00.mp4", qb_norm=True)


def test_the_stored_bank_follows_the_videos(model_folder, clips, make_clip, tmp_path):
    videos = shutil.copytree(clips, tmp_path / "videos")
    captions, output = tmp_path / "captions.txt", tmp_path / "index"
    captions.write_text("\n".join(BANK) + "\n\n")
    index_videos(videos, output, str(model_folder), num_workers=0, query_bank=captions)
    built = (output / FILE).stat().st_mtime_ns
    index_videos(videos, output, num_workers=0)
    assert (output / FILE).stat().st_mtime_ns == built
    make_clip(videos / "new.mp4", seed=99)
    index_videos(videos, output, num_workers=0)
    assert len(VideoIndex.open(output).search(QUERIES[0], top_k=20, qb_norm=True)[0]) == 13


def test_a_file_without_captions_changes_nothing(model_folder, clips, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no captions"):
        index_videos(clips, tmp_path / "index", str(model_folder), query_bank=tmp_path / "empty.txt")
    assert not (tmp_path / "index").exists()


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "q.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"q.txt is not UTF-8 text"):
        read_lines(tmp_path / "q.txt", "queries")
    with pytest.raises(FileNotFoundError, match="no such file of queries"):
        read_lines(tmp_path / "none.txt", "queries")


def test_a_hub_is_ranked_by_what_it_has_more_than_others():
    """A best hit that is no hub of the bank: the similarities in the bank's temperature, in their order."""
    bank = LiveBank(QueryBank(np.array([3.0, 0.5, 1.0]), np.array([True, False, False]), 2.0, ["a", "b", "c"]))
    hits = [Hit(name, score, 0.0, 1.0, row) for row, (name, score) in enumerate((("a", 2.0), ("c", 1.5), ("b", 1.0)))]
    assert [(hit.video, hit.score, hit.position) for hit in bank.rank(hits)] == [
        ("c", 2.0, 1),
        ("b", 1.5, 2),
        ("a", 1.0, 0),
    ]
    assert [(hit.video, hit.score) for hit in bank.rank(hits[1:])] == [("c", 3.0), ("b", 2.0)]
    assert bank.rank([]) == []


def test_a_bank_is_of_the_best_window_of_every_video(make_videos, model, processor, tmp_path, monkeypatch):
    """Captions and rows are scored some at a time; in memory, nothing is written."""
    index = VideoIndex.build(make_videos("cabac"), model, processor)
    text = encode_texts(model, processor, BANK)
    rows = similarity(text, index.snapshot.gather(np.arange(5)), model.config).numpy()
    best = np.stack([rows[:, owners].max(1) for owners in ([1, 3], [2], [0, 4])], 1)
    monkeypatch.setattr(query_bank, "CAPTIONS", 2)
    monkeypatch.setattr(query_bank, "ROWS", 2)
    for options, temperature, top_k in (
        ({}, QB_NORM_TEMPERATURE / model.config.score_scale, 1),
        ({"temperature": 7.0, "top_k": 2}, 7.0, 2),
    ):
        bank = build_query_bank(index, (caption for caption in BANK), **options)
        whole = QueryBank.build([best], temperature, top_k)
        assert bank.temperature == temperature and bank.gallery_ids.tolist() == ["a", "b", "c"]
        np.testing.assert_allclose(bank.log_mass, whole.log_mass, rtol=1e-4)
        assert bank.activated.tolist() == whole.activated.tolist()
    with pytest.raises(FileNotFoundError, match=r"^an index in memory has no query bank; make one from training"):
        open_query_bank(None, index.snapshot)


def test_a_bank_is_built_when_captions_or_videos_are_others(make_videos, model, processor, tmp_path):
    index = VideoIndex.build(make_videos("ab"), model, processor).save(tmp_path / "index")
    assert refresh_query_bank(index, None) is False and not (index.path / FILE).exists()
    with pytest.raises(FileNotFoundError, match=f"^{index.path} has no query bank"):
        open_query_bank(index.path, index.snapshot)
    assert refresh_query_bank(index, ["a  red\tsquare", "two\ndogs"]) is True
    assert (index.path / CAPTIONS_FILE).read_text() == "a red square\ntwo dogs\n"
    assert refresh_query_bank(index, None) is False
    first = open_query_bank(index.path, index.snapshot).bank
    (index.path / FILE).unlink()
    assert refresh_query_bank(index, None) is True
    again = open_query_bank(index.path, index.snapshot).bank
    assert again.log_mass.tolist() == first.log_mass.tolist()
    index.add(make_videos("c"))
    assert refresh_query_bank(index, None) is True
    assert open_query_bank(index.path, index.snapshot).place == {"a": 0, "b": 1, "c": 2}
    assert refresh_query_bank(index, ["the sky"]) is True
    assert (index.path / CAPTIONS_FILE).read_text() == "the sky\n"

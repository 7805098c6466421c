"""A bank beside an index gives each live query what the matrix form of QB-Norm gives it."""

import shutil

import numpy as np
import pytest

from dmae import VideoIndex
from dmae.inference.embedding import encode_texts
from dmae.metrics.text_video_retrieval.postprocessing import qb_norm
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.retrieval.asking import read_lines
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.query_bank import FILE, build_query_bank

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

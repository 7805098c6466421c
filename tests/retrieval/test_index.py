"""What the index answers is exactly what `similarity()` says of the stored embeddings."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from dmae.inference.embedding import encode_texts
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.retrieval import storage
from dmae.retrieval.index import SearchPlan, VideoIndex

QUERIES = ["a red square moves left", "the sky is blue"]


@pytest.fixture
def index(encoded, model, processor) -> VideoIndex:
    return VideoIndex.build(encoded, model, processor)


def expected(model, processor, encoded, query):
    scores = similarity(encode_texts(model, processor, [query]), encoded.embeddings, model.config)[0].numpy()
    order = np.argsort(-scores, kind="stable")
    return [encoded.video_ids[place] for place in order], scores[order]


@pytest.mark.parametrize("query", QUERIES)
def test_search_is_exact(index, model, processor, encoded, query):
    ids, scores = expected(model, processor, encoded, query)
    hits = index.search([query], top_k=12)[0]
    assert sorted(hit.video_id for hit in hits) == sorted(ids)
    exact = dict(zip(ids, scores))
    np.testing.assert_allclose([hit.score for hit in hits], [exact[hit.video_id] for hit in hits], atol=2e-3)
    found = [hit.score for hit in hits]
    assert found == sorted(found, reverse=True)
    # frames are stored in float16: only videos that score alike may change places
    np.testing.assert_allclose([exact[hit.video_id] for hit in hits], scores, atol=2e-3)


def test_saved_and_opened_answers_the_same(index, model, processor, tmp_path):
    before = index.search(QUERIES, top_k=4)
    index.save(tmp_path / "index")
    opened = VideoIndex.open(tmp_path / "index", model, processor)
    assert opened.search(QUERIES, top_k=4) == before
    assert len(opened) == 12


def test_open_loads_the_model_that_the_manifest_names(encoded, processor, model, model_folder, tmp_path):
    from dmae.inference.loading import load_model_and_processor

    loaded, its_processor = load_model_and_processor(str(model_folder))
    built = VideoIndex.build(encoded, loaded, its_processor).save(tmp_path / "index")
    assert VideoIndex.open(tmp_path / "index").search(QUERIES) == built.search(QUERIES)


def test_another_model_is_refused_with_both_values(index, processor, make_model, tmp_path):
    index.save(tmp_path / "index")
    other = make_model(seed=1, interaction="wti")
    with pytest.raises(ValueError) as refusal:
        VideoIndex.open(tmp_path / "index", other, processor)
    from dmae.inference.identity import weights_hash

    assert weights_hash(other) in str(refusal.value) and index.manifest["model"]["weights"] in str(refusal.value)


def test_bfloat16_is_the_same_model(index, model, processor, tmp_path):
    import copy

    index.save(tmp_path / "index")
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    assert VideoIndex.open(tmp_path / "index", narrow, processor).search(QUERIES)


def test_a_clip_finds_itself(index, clips):
    assert index.search_by_video(clips / "clip03.mp4", top_k=1)[0].video_id == "clip03"


def test_delete_and_add(index, encoded):
    assert index.delete(["clip00", "clip05"]) == 2
    assert "clip05" not in [hit.video_id for hit in index.search(QUERIES[0], top_k=12)[0]]
    assert len(index) == 10
    index.add(encoded)
    assert len(index) == 12 and sorted(index.video_ids) == sorted(encoded.video_ids)


def test_what_is_deleted_is_known_no_more(index):
    index.delete("clip00")
    with pytest.raises(ValueError, match=r"^not in the index: clip00; nothing was deleted$"):
        index.delete(["clip00", "clip01"])
    assert len(index) == 11 and "clip01" in index.video_ids


def test_rows_come_and_go_in_one_commit(index, encoded):
    one = encoded.split("clip03".__eq__)[0]
    generation, added = index.manifest["generation"], one._replace(items=[{**one.items[0], "video_id": "new"}])
    assert index.add(added, also_delete=["clip05", "nobody"]) == [] and index.manifest["generation"] == generation + 1
    assert index.video_ids == [f"clip{n:02d}" for n in range(12) if n != 5] + ["new"]
    index.add(added._replace(items=[{**added.items[0], "start": 7.0}]), extend=["new"])
    assert [row["start"] for row in index.rows()[-2:]] == [0.0, 7.0] and len(index) == 13
    index.add(added)
    assert len(index) == 12


def test_a_result_shows_the_file_that_is_there_and_its_copies(index, tmp_path):
    (tmp_path / "there.mp4").write_bytes(b"")
    gone, there, lost = (str(tmp_path / name) for name in ("gone.mp4", "there.mp4", "lost.mp4"))
    copies = [{"path": path, "signature": [1, 2]} for path in (there, lost)]
    index.rewrite(
        {
            "clip02": {"path": gone, "copies": copies, "metadata": {"title": "T"}, "file": {"duration": 2.0}},
            "clip04": {"path": gone, "copies": copies[1:]},
        }
    )
    hits = {hit.video_id: hit for hit in index.search(QUERIES[0], top_k=12)[0]}
    first, second, third = (hits[name] for name in ("clip02", "clip04", "clip06"))
    assert (first.path, first.copies, first.missing) == (there, (gone, lost), False)
    assert (second.path, second.copies, second.missing) == (gone, (lost,), True)
    assert (third.copies, third.missing, third.metadata) == ((), False, {})
    assert second.to_dict() == {
        "video_id": "clip04", "path": gone, "score": second.score, "start": second.start, "end": second.end,
        "moment": second.moment, "reasons": second.reasons, "metadata": {}, "copies": (lost,), "missing": True,
    }  # fmt: skip
    assert first.metadata == {"title": "T", "duration": 2.0} and first.reasons == (f"seen at 0:0{int(first.moment)}",)


def test_what_an_index_says_of_itself(index, model, processor, tmp_path):
    told = {
        "path": None, "model": index.manifest["model"], "roots": {}, "interaction": "wti", "videos": 12, "rows": 12,
        "frames": model.config.max_frames, "dimension": model.config.projection_dim, "stored_as": "float16",
        "window": None, "backend": "flat", "plan": asdict(SearchPlan()), "bytes": None, "generation": 1,
    }  # fmt: skip
    assert index.info() == told
    index.save(tmp_path / "index")
    size = sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    assert index.info() == told | {"path": str(tmp_path / "index"), "bytes": size, "generation": 2}
    none = VideoIndex.empty(model, processor).info()
    assert [none[name] for name in ("videos", "rows", "frames", "dimension")] == [0, 0, None, None]


def test_an_index_that_is_replaced_while_it_is_read_again_is_refused(index, tmp_path, monkeypatch):
    index.save(tmp_path / "index")
    manifest = storage.read_manifest(tmp_path / "index")
    later = {**manifest, "generation": 9}
    monkeypatch.setattr(storage, "read_manifest", lambda path: later)
    monkeypatch.setattr(storage, "read_state", lambda path, known: ({**later, "id": "another"}, []))
    with pytest.raises(ValueError, match="holds another index now: another"):
        index.refresh()
    assert len(index) == 12


def test_unknown_ids_are_refused_and_nothing_is_deleted(index):
    with pytest.raises(ValueError, match="nope"):
        index.delete(["clip00", "nope"])
    assert len(index) == 12


def test_results_tell_where_to_look(index):
    hit = index.search(QUERIES[0], top_k=1)[0][0]
    assert 0 <= hit.start <= hit.moment <= hit.end <= 2
    assert list(hit.to_dict())[:5] == ["video_id", "path", "score", "start", "end"]


@pytest.mark.parametrize("query, message", [("", "empty"), ("  ", "empty"), ("x" * 10_000, "10000 characters")])
def test_bad_queries_are_refused(index, query, message):
    with pytest.raises(ValueError, match=message):
        index.search([query])


def test_filters(encoded, model, processor):
    items = [{**item, "metadata": {"colour": ["red", "blue"][n % 2]}} for n, item in enumerate(encoded.items)]
    index = VideoIndex.build(encoded._replace(items=items), model, processor)
    hits = index.search(QUERIES[0], top_k=12, filter={"colour": "red"})[0]
    assert sorted(hit.video_id for hit in hits) == encoded.video_ids[::2]
    assert [hit.video_id for hit in index.search(QUERIES[0], filter={"video_id": "*07"})[0]] == ["clip07"]
    with pytest.raises(ValueError, match="unknown filter size; this index has: colour, path, video_id"):
        index.search(QUERIES[0], filter={"size": "1"})

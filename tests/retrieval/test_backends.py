"""Engines return the best ids by the maximum over the query vectors; the index on each finds what exact search does."""

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import backends, calibration, state
from dmae.retrieval.backends import FaissBackend, FlatBackend
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.qdrant import QdrantBackend

ENGINES = [FlatBackend, lambda: FaissBackend(16, nprobe=1000)]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


@pytest.mark.parametrize("make", ENGINES)
def test_candidates_are_the_best_by_the_maximum(make):
    rows, queries = vectors(500), torch.from_numpy(vectors(3, seed=1))
    engine = make()
    engine.upsert(np.arange(500) + 1000, rows)
    expected = np.argsort(-(rows @ queries.numpy().T).max(1))[:20] + 1000
    found = engine.candidates(queries, 20)
    assert len(set(found) & set(expected)) >= 19  # 8-bit vectors may swap the last ones
    assert found[0] == expected[0]


@pytest.mark.parametrize("make", ENGINES)
def test_deleted_replaced_and_filtered_rows(make):
    engine, queries = make(), torch.from_numpy(vectors(1, seed=1))
    engine.upsert(np.arange(500), vectors(500))
    best = engine.candidates(queries, 10)
    engine.delete(best[:5])
    assert not set(engine.candidates(queries, 10)) & set(best[:5])
    engine.upsert(best[5:6], -100 * queries.numpy())  # now the worst
    assert best[5] not in engine.candidates(queries, 10)
    assert set(engine.candidates(queries, 10, allowed=np.array([3, 4]))) == {3, 4}


@pytest.mark.parametrize("make", ENGINES)
def test_an_empty_engine_answers_nothing(make):
    assert len(make().candidates(torch.ones(1, 16), 5)) == 0


def random_videos(count: int, model, seed: int = 0) -> EncodedVideos:
    rng = torch.Generator().manual_seed(seed)
    frames, dim = model.config.max_frames, model.config.projection_dim
    centre = torch.randn(count, 1, dim, generator=rng)
    embeds = unit(centre + 0.5 * torch.randn(count, frames, dim, generator=rng))
    mask = torch.ones(count, frames, dtype=torch.bool)
    items = [{"video_id": f"{seed}-{row}", "path": f"{seed}-{row}.mp4"} for row in range(count)]
    videos = VideoEmbeddings(embeds, embeds, mask / frames, mask)
    return EncodedVideos(videos, items, torch.arange(frames).float().expand(count, -1), [])


def random_texts(count: int, model, seed: int = 9) -> TextEmbeddings:
    rng = torch.Generator().manual_seed(seed)
    sentence = unit(torch.randn(count, model.config.projection_dim, generator=rng))
    words = unit(sentence[:, None] + torch.randn(count, 6, model.config.projection_dim, generator=rng))
    mask = torch.ones(count, 6, dtype=torch.bool)
    return TextEmbeddings(sentence, words, mask / 6, mask)


@pytest.mark.parametrize("backend", ["flat", "faiss"])
def test_calibrated_search_finds_what_exact_search_finds(backend, model, processor, tmp_path):
    index = VideoIndex.build(random_videos(3000, model), model, processor, backend=backend).save(tmp_path / "index")
    plan = index.calibrate(random_texts(40, model), target_recall=0.95)
    assert plan.recall >= 0.95 and plan.candidates < 3000
    index.save_backend()
    opened = VideoIndex.open(tmp_path / "index", model, processor)
    assert opened.plan == plan
    fresh = random_texts(20, model, seed=77)
    exact = opened.search_embeddings(fresh, exact=True)
    quick = opened.search_embeddings(fresh)
    shared = [len({hit.video_id for hit in a} & {hit.video_id for hit in b}) for a, b in zip(exact, quick)]
    assert np.mean(shared) >= 9
    scores = {hit.video_id: hit.score for hits in exact for hit in hits}
    found = [hit for hits in quick for hit in hits if hit.video_id in scores]
    assert found and all(type(hit.score) is float for hit in found)


@pytest.mark.parametrize("backend", ["flat", "faiss"])
def test_engines_follow_additions_and_deletions(backend, model, processor, tmp_path):
    index = VideoIndex.build(random_videos(2500, model), model, processor, backend=backend).save(tmp_path / "index")
    reader = VideoIndex.open(tmp_path / "index", model, processor)
    text = random_texts(1, model)
    best = [hit.video_id for hit in index.search_embeddings(text, top_k=3)[0]]
    index.delete(best)
    index.add(random_videos(300, model, seed=1))
    assert reader.refresh() and len(reader) == 2797
    for opened in (index, reader, VideoIndex.open(tmp_path / "index", model, processor)):
        quick = opened.search_embeddings(text, top_k=10, candidates=1500)[0]
        exact = opened.search_embeddings(text, top_k=10, exact=True)[0]
        assert not {hit.video_id for hit in quick} & set(best)
        assert [hit.video_id for hit in quick[:5]] == [hit.video_id for hit in exact[:5]]


def test_compressed_frames_are_taken_where_the_plan_says_so(model, processor):
    index = VideoIndex.build(random_videos(2500, model), model, processor)
    index._commit(index.snapshot.segments, 2500, plan={"coarse": "frames", "candidates": 400})
    text = random_texts(5, model)
    for quick, exact in zip(index.search_embeddings(text), index.search_embeddings(text, exact=True)):
        assert len({hit.video_id for hit in quick} & {hit.video_id for hit in exact}) >= 9


def test_lists_that_lose_too_much_are_given_up_for_a_scan(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "FLAT_UP_TO", 100)
    monkeypatch.setattr(calibration, "PROBES", (1,))
    index = VideoIndex.build(random_videos(3000, model), model, processor).save(tmp_path / "index")
    assert index.info()["backend"] == "faiss"
    plan = index.calibrate(random_texts(20, model), target_recall=0.95)
    assert plan.scan == "all" and plan.recall >= 0.95
    opened = VideoIndex.open(tmp_path / "index", model, processor)
    assert opened.plan == plan and opened.info()["backend"] == index.info()["backend"] == "flat"
    assert len(opened.search_embeddings(random_texts(1, model))[0]) == 10


def in_memory():
    return QdrantBackend(QdrantClient(":memory:"), "videos")


def test_qdrant_gives_the_candidates_and_follows_the_index(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "EXACT_UP_TO", 0)
    index = VideoIndex.build(random_videos(320, model), model, processor).save(tmp_path / "index")
    engine, text = in_memory(), random_texts(3, model)
    connected = VideoIndex.open(tmp_path / "index", model, processor).with_engine(engine)
    assert connected.info()["backend"] == "qdrant"
    for quick, exact in zip(connected.search_embeddings(text, top_k=5), index.search_embeddings(text, exact=True)):
        assert [hit.video_id for hit in quick] == [hit.video_id for hit in exact[:5]]
    best = [hit.video_id for hit in index.search_embeddings(text, top_k=2)[0]]
    index.delete(best)
    index.add(random_videos(30, model, seed=1))
    assert connected.refresh() and engine.client.count("videos").count == 348
    assert not {hit.video_id for hit in connected.search_embeddings(text)[0]} & set(best)
    again = VideoIndex.open(tmp_path / "index", model, processor).with_engine(engine)  # nothing is left to send
    assert again.calibrate(random_texts(10, model, seed=5), target_recall=0.9).recall >= 0.9
    assert again.info()["backend"] == "qdrant"


def test_qdrant_reads_only_what_is_allowed():
    engine = in_memory()
    assert len(engine.ids(16)) == 0
    engine.upsert(np.arange(50), vectors(50))
    queries = torch.from_numpy(vectors(2, seed=1))
    expected = np.argsort(-(vectors(50) @ queries.numpy().T).max(1))[:7]
    assert engine.candidates(queries, 7).tolist() == expected.tolist()
    assert set(engine.candidates(queries, 7, allowed=np.array([3, 4]))) == {3, 4}
    engine.delete(expected[:2])
    assert not set(engine.ids(16)) & set(expected[:2].tolist())
    with pytest.raises(ValueError, match="needs one vector of 8"):
        engine.ids(8)


def test_a_server_that_does_not_answer_is_one_line(model, processor, tmp_path):
    index = VideoIndex.build(random_videos(3, model), model, processor).save(tmp_path / "index")
    with pytest.raises(OSError, match=r"^Qdrant collection 'videos' could not be reached: [^\n]+$"):
        VideoIndex.connect("qdrant://127.0.0.1:1/videos", index.path, model, processor)
    with pytest.raises(ValueError, match="qdrant://host:6333/name"):
        VideoIndex.connect("qdrant://127.0.0.1:1", index.path, model, processor)


def test_an_unknown_backend_is_refused(model, processor):
    with pytest.raises(ValueError, match="valid: auto, flat, faiss"):
        VideoIndex.build(random_videos(3, model), model, processor, backend="hnsw")

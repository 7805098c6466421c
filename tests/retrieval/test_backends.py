"""Engines return the ids with the largest products; the index on each finds what exact search does."""

import sys
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import backends, state
from dmae.retrieval.backends import FaissBackend, FlatBackend, build_cascade, choose_backend, follow, open_backend
from dmae.retrieval.calibration import recall_bound
from dmae.retrieval.cascade import Parts
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.qdrant import QdrantBackend
from dmae.retrieval.repair import repair

ENGINES = [FlatBackend, FaissBackend]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


@pytest.mark.parametrize("rows", [500, 3000])  # FAISS scans 500 rows in 8 bits and codes 3,000
@pytest.mark.parametrize("make", ENGINES)
def test_candidates_are_those_with_the_largest_products(make, rows):
    held, queries = vectors(rows), torch.from_numpy(vectors(3, seed=1))
    engine = make()
    engine.upsert(np.arange(rows) + 1000, held)
    for codes in (0, 600):
        for query, found in zip(queries.numpy(), engine.candidates(queries, 20, codes=codes), strict=True):
            expected = np.argsort(-(held @ query))[:20] + 1000
            assert len(set(found) & set(expected)) >= 19  # 8-bit vectors may swap the last ones
            assert found[0] == expected[0] and len(set(found)) == 20


@pytest.mark.parametrize("make", ENGINES)
def test_added_deleted_and_filtered_rows(make):
    engine, queries = make(), torch.from_numpy(vectors(1, seed=1))
    engine.upsert(np.arange(3000), vectors(3000))
    (best,) = engine.candidates(queries, 10, codes=500)
    engine.delete(best[:5])
    (left,) = engine.candidates(queries, 10, codes=500)
    assert not set(left) & set(best[:5]) and set(best[5:]) <= set(left)
    engine.upsert(np.array([7000]), 2 * vectors(3000)[best[:1]])
    assert engine.candidates(queries, 10, codes=500)[0][0] == 7000
    (allowed,) = engine.candidates(queries, 10, np.array([3, 4, 7000, best[0]]), codes=500)
    assert set(allowed) == {3, 4, 7000}


@pytest.mark.parametrize("make", ENGINES)
def test_an_empty_engine_answers_nothing(make):
    assert [len(ids) for ids in make().candidates(torch.ones(2, 16), 5)] == [0, 0]


def test_a_file_is_mapped_and_goes_on(tmp_path):
    engine, queries = FaissBackend(), torch.from_numpy(vectors(4, seed=1))
    engine.upsert(np.arange(3000) + 7, vectors(3000))
    engine.save(tmp_path / "codes")
    mapped = FaissBackend.load(tmp_path / "codes")
    for other in (engine, mapped):
        other.upsert(np.arange(60) + 9000, vectors(60, seed=3))
        other.delete(np.arange(7, 27))
    for one, two in zip(engine.candidates(queries, 50, codes=700), mapped.candidates(queries, 50, codes=700)):
        assert one.tolist() == two.tolist()
    assert not mapped.crowded
    mapped.upsert(np.arange(200) + 10_000, vectors(200, seed=4))
    assert mapped.crowded
    (tmp_path / "codes").write_bytes((tmp_path / "codes").read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged FAISS index"):
        FaissBackend.load(tmp_path / "codes")


def test_a_file_is_made_anew_when_a_twentieth_of_its_rows_came_or_went():
    none = np.empty(0, np.int64)
    for coded, came, gone, expected in (
        (100, 3, 2, False), (100, 3, 3, True), (100, 0, 6, True), (100, 6, 0, True), (0, 999, 0, False),
        (0, 999, 1, True), (0, 1_000, 0, True), (0, 0, 0, False),
    ):  # fmt: skip
        engine = FaissBackend()
        engine.parts = Parts(None, np.arange(coded), None, np.arange(came), np.arange(gone))
        assert engine.crowded is expected and len(engine) == coded + came, (coded, came, gone)
    assert FaissBackend().file is None and [part.tolist() for part in FaissBackend().parts[1::2]] == [[], []]
    assert FaissBackend().parts.dead.tolist() == none.tolist()


@pytest.mark.parametrize("scanned", [2, 3, 1_024])
def test_a_flat_engine_is_a_sort_of_all_products(scanned, monkeypatch):
    """Rows of several blocks, whatever the size of the part that is scanned at once."""
    monkeypatch.setattr(backends, "SCAN_ROWS", scanned)
    engine, held = FlatBackend(), np.float16(vectors(13))
    names = np.array([70, 3, 5, 11, 2, 90, 41, 8, 9, 10, 33, 1, 4])
    for start, stop in ((0, 5), (5, 6), (6, 13)):
        engine.upsert(names[start:stop], held[start:stop])
    queries = torch.from_numpy(vectors(3, seed=1))
    products = held.astype(np.float32) @ queries.numpy().T

    def expected(rows, top_k):
        return [[int(names[r]) for r in sorted(rows, key=lambda r: -column[r])[:top_k]] for column in products.T]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where a product does not fit the part that it is written to
        engine.candidates(queries, 1)
    for top_k in (1, 4, 13, 99):
        assert [ids.tolist() for ids in engine.candidates(queries, top_k)] == expected(range(13), top_k)
        some = engine.candidates(queries, top_k, np.array([3, 41, 4, 1000]))
        assert [ids.tolist() for ids in some] == expected([1, 6, 12], top_k)
    assert [ids.dtype for ids in engine.candidates(queries, 2)] == [np.int64] * 3
    running = engine.blocks
    engine.delete(np.array([90, 3, 12345]))
    assert [len(ids) for ids, _ in engine.blocks] == [4, 7] and [len(ids) for ids, _ in running] == [5, 1, 7]
    assert [ids.tolist() for ids in engine.candidates(queries, 13)] == expected(sorted({*range(13)} - {1, 5}), 13)
    engine.delete(names)
    assert engine.blocks == [] and [ids.tolist() for ids in engine.candidates(queries, 3)] == [[], [], []]


def test_which_engine_is_taken(monkeypatch):
    most = 20_000
    assert [choose_backend(name, 10**9) for name in ("flat", "faiss", "auto")] == ["flat", "faiss", "faiss"]
    assert [choose_backend("auto", rows) for rows in (0, most, most + 1)] == ["flat", "flat", "faiss"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert choose_backend("auto", most + 1) == "flat" and choose_backend("faiss", 0) == "faiss"
    with pytest.raises(ValueError, match="unknown backend 'hnsw'; valid: auto, flat, faiss"):
        choose_backend("hnsw", 1)


class Rows:
    """A snapshot of these rows of 3,000 vectors, under ids that begin with 100."""

    def __init__(self, rows):
        self.ids = np.array(list(rows), dtype=np.int64) + 100
        self.held = vectors(3_000)

    def __len__(self):
        return len(self.ids)

    def positions(self, ids):
        return np.searchsorted(self.ids, ids)

    def tensor(self, name, positions):
        assert name == "coarse"
        return torch.from_numpy(self.held[self.ids[positions] - 100])


def holds(engine, snapshot, codes: int = 0) -> bool:
    """Whether the engine finds the rows that lie best for some queries, and has these rows and no others."""
    some = torch.from_numpy(vectors(10, seed=5))
    found = engine.candidates(some, len(snapshot) + 1_000, codes=codes)
    best = snapshot.held[snapshot.ids - 100] @ some.numpy().T
    first = [snapshot.held[ids[0] - 100] @ query.numpy() for ids, query in zip(found, some)]
    return all(sorted(ids) == snapshot.ids.tolist() for ids in found) and bool((best.max(0) - first < 1).all())


def test_an_engine_is_brought_to_the_rows_of_a_snapshot():
    asked = []
    engine = SimpleNamespace(
        delete=lambda ids: asked.append(("delete", ids.tolist())),
        upsert=lambda ids, held: asked.append(("upsert", ids.tolist(), held.tolist())),
    )
    snapshot = Rows([1, 2, 3])
    assert follow(engine, snapshot.ids, snapshot) is engine and asked == []
    follow(engine, np.array([101, 99, 103, 200]), snapshot)
    assert asked == [("delete", [99, 200]), ("upsert", [102], snapshot.held[2:3].tolist())]
    asked.clear()
    follow(engine, np.array([101, 102, 103, 7]), snapshot), follow(engine, np.array([], np.int64), snapshot)
    assert asked == [("delete", [7]), ("upsert", [101, 102, 103], snapshot.held[1:4].tolist())]


def test_a_flat_engine_follows_the_last_one():
    first, second = Rows(range(9)), Rows(range(4, 12))
    engine = open_backend("flat", {}, first, None, None)
    assert type(engine) is FlatBackend and holds(engine, first)
    assert open_backend("auto", {}, second, None, (engine, first)) is engine and holds(engine, second)
    other = open_backend("flat", {}, second, None, (build_cascade(first), first))
    assert type(other) is FlatBackend and holds(other, second)


def test_a_faiss_engine_is_mapped_followed_or_built(tmp_path):
    """Mapped from its file and completed; the last state's engine where it is of that file; built anew where the file
    is of an earlier format, is not there, or covers less than a quarter of the rows."""
    most = Rows(range(2_400))
    build_cascade(Rows(range(1_200))).save(tmp_path / "codes")
    manifest = {"faiss": {"file": "codes", "sum": 1}}
    mapped = open_backend("faiss", manifest, most, tmp_path, None)
    assert (mapped.file, len(mapped.parts.ids), len(mapped.parts.tail_ids)) == ("codes", 1_200, 1_200)
    assert holds(mapped, most)
    for about, path in (
        ({}, tmp_path),
        ({"faiss": {"file": "codes"}}, tmp_path),
        (manifest, None),
        ({"faiss": None}, tmp_path),
    ):
        built = open_backend("faiss", about, most, path, None)
        assert (built.file, len(built.parts.ids)) == (None, 2_400) and holds(built, most)
    lost = open_backend("faiss", {"faiss": {"file": "gone", "sum": 1}}, most, tmp_path, None)
    assert (lost.file, len(lost.parts.ids)) == ("gone", 2_400)
    fewer = Rows(range(300, 2_400))
    again = open_backend("faiss", manifest, fewer, tmp_path, (mapped, most))
    assert again is mapped and holds(again, fewer)
    kept = open_backend("faiss", manifest, fewer, tmp_path, (built, fewer))
    assert kept is not built and kept.file == "codes" and holds(kept, fewer), "another process made a file"
    assert open_backend("faiss", {}, fewer, tmp_path, (built, most)) is built and holds(built, fewer)
    other = open_backend("faiss", manifest, fewer, tmp_path, (open_backend("flat", {}, fewer, None, None), fewer))
    assert other.file == "codes" and holds(other, fewer)


def test_an_engine_that_learnt_from_too_few_is_built_anew(monkeypatch):
    monkeypatch.setattr(backends.FaissBackend, "build", telling_build(backends.FaissBackend.build, built := []))
    small = build_cascade(Rows(range(500)))
    assert built == [500] and holds(small, Rows(range(500)))
    same = open_backend("faiss", {}, Rows(range(2_000)), None, (small, Rows(range(500))))
    assert same is small and built == [500], "four times as many are not too many"
    small = build_cascade(Rows(range(500)))
    more = open_backend("faiss", {}, Rows(range(2_001)), None, (small, Rows(range(500))))
    assert more is not small and built == [500, 500, 2_001] and holds(more, Rows(range(2_001)))
    empty = build_cascade(Rows([]))
    assert len(empty) == 0 and built == [500, 500, 2_001]


def telling_build(build, told: list):
    def tell(self, ids, blocks):
        told.append(len(ids))
        return build(self, ids, blocks)

    return tell


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
    plan = index.calibrate(random_texts(100, model), target_recall=0.95)
    assert plan.recall > plan.recall_low >= 0.95 and plan.candidates < 3000
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


def test_the_faiss_file_is_made_anew_in_the_background_and_taken_over(model, processor, tmp_path):
    index = VideoIndex.build(random_videos(2000, model), model, processor, backend="faiss").save(tmp_path / "index")
    index.save_backend()
    first = index.manifest["faiss"]["file"]
    reader = VideoIndex.open(tmp_path / "index", model, processor)
    index.add(random_videos(300, model, seed=1))
    for thread in threading.enumerate():
        if thread.name == "dmae-faiss":
            thread.join()
    assert index.manifest["faiss"]["file"] != first and not (tmp_path / "index" / first).exists()
    assert reader.refresh()
    for opened in (index, reader, VideoIndex.open(tmp_path / "index", model, processor)):
        assert len(opened._state.backend.parts.ids) == 2300 and not opened._state.backend.crowded


def test_a_damaged_faiss_file_is_built_again(model, processor, tmp_path):
    index = VideoIndex.build(random_videos(2000, model), model, processor, backend="faiss").save(tmp_path / "index")
    index.save_backend()
    path = tmp_path / "index" / index.manifest["faiss"]["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert repair(tmp_path / "index") == []
    opened = VideoIndex.open(tmp_path / "index", model, processor)
    assert opened.manifest.get("faiss") is None and len(opened) == 2000
    opened.save_backend()
    assert opened.manifest["faiss"]["file"] != path.name


@pytest.mark.parametrize("shares, low", [([1.0] * 400, 0.99), ([1.0] * 50, 0.96), ([1.0, 0.8] * 100, 0.87)])
def test_the_promised_recall_is_below_the_measured_one(shares, low):
    bound = recall_bound(np.array(shares), 10)
    assert low < bound < np.mean(shares)


def test_the_promised_recall_holds_on_other_queries_nineteen_times_of_twenty():
    random = np.random.default_rng(0)
    ease = lambda queries: random.beta(30, 1, (queries, 1))  # noqa: E731  queries differ, hits of one go together
    shares = lambda queries: random.binomial(1, np.broadcast_to(ease(queries), (queries, 10))).mean(1)  # noqa: E731
    truth = 30 / 31
    kept = [recall_bound(shares(200), 10) <= truth for _ in range(600)]
    assert 0.92 <= np.mean(kept) <= 0.99


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


def test_a_qdrant_collection_has_no_graph_whoever_made_it(monkeypatch):
    """Its graph loses candidates. The client's in-memory mode keeps no such setting, so what is asked of it is read."""
    client, asked = QdrantClient(":memory:"), []
    for name in ("create_collection", "update_collection"):
        monkeypatch.setattr(client, name, telling(getattr(client, name), asked))
    backend = QdrantBackend(client, "videos")
    assert backend.ids(4).tolist() == []
    backend.upsert([3, 1], np.eye(4)[:2])
    assert QdrantBackend(client, "videos").ids(4).tolist() == [1, 3]
    assert [(name, options["hnsw_config"].m) for name, options in asked] == [
        ("create_collection", 0),
        ("update_collection", 0),  # the in-memory mode says 16, as a server's default
    ]


def telling(call, asked: list):
    def told(*arguments, **options):
        asked.append((call.__name__, options))
        return call(*arguments, **options)

    return told


def test_qdrant_reads_only_what_is_allowed():
    engine = in_memory()
    assert len(engine.ids(16)) == 0
    engine.upsert(np.arange(50), vectors(50))
    queries = torch.from_numpy(vectors(2, seed=1))
    expected = np.argsort(-(vectors(50) @ queries.numpy().T), axis=0)[:7]
    assert [ids.tolist() for ids in engine.candidates(queries, 7)] == expected.T.tolist()
    assert set(engine.candidates(queries, 7, allowed=np.array([3, 4]))[0]) == {3, 4}
    expected = expected[:, 0]
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

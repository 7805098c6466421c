"""An index over actors answers what it answers alone; a node that dies under load is named and replaced."""

import logging
import threading

import numpy as np
import pytest
import torch

from dmae.inference.embedding import EncodedVideos, encode_texts
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import state
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.ray_shards import Shard

SEGMENTS, ROWS = 6, 150


def videos(config, seed: int, rows: int = ROWS) -> EncodedVideos:
    rng = torch.Generator().manual_seed(seed)
    frames = unit(torch.randn(rows, config.max_frames, config.projection_dim, generator=rng))
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    items = [{"video_id": f"v{seed}_{n}", "path": f"v{seed}_{n}.mp4", "span": (0.0, 2.0)} for n in range(rows)]
    return EncodedVideos(
        VideoEmbeddings(frames, frames, mask / mask.shape[1], mask), items, torch.zeros(mask.shape), []
    )


@pytest.fixture
def folder(model, processor, tmp_path, monkeypatch):
    """An index of several segments, which is asked by its engine however small it is."""
    monkeypatch.setattr(state, "EXACT_UP_TO", 0)
    index = VideoIndex.empty(model, processor, path=tmp_path / "index")
    for seed in range(SEGMENTS):
        index.add(videos(model.config, seed))
    return tmp_path / "index"


def answers(index: VideoIndex, text: TextEmbeddings, **options) -> list:
    return [[(hit.video_id, round(hit.score, 5)) for hit in hits] for hits in index.search_embeddings(text, **options)]


def test_two_shards_hold_what_one_index_holds(folder, model, processor):
    index = VideoIndex.open(folder, model, processor)
    index.delete(["v1_3", "v4_9"])
    text = encode_texts(model, processor, ["two dogs run on the grass", "the sky is blue"])
    entries = [segment.manifest_entry() for segment in index.snapshot.segments]
    shards = [Shard(str(folder), number) for number in range(2)]
    flat = {name: tensor.numpy() for name, tensor in text.flat("").items()}
    assert shards[0].scored(1, flat, None, None) is None  # told nothing yet
    for number, shard in enumerate(shards):
        shard.take(1, {**index.manifest, "segments": []}, index.config.to_dict(), entries[number::2])
    parts = [shard.scored(1, flat, None, None) for shard in shards]
    for query in range(2):
        ids = np.concatenate([part[query][0] for part in parts])
        scores = np.concatenate([part[query][1] for part in parts])[np.argsort(ids)]
        positions, exact = list(index.state.scored(text, None, None))[query]
        assert np.array_equal(np.sort(ids), index.snapshot.ids[positions])
        np.testing.assert_allclose(scores, exact, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_that_dies_under_load_is_named_and_replaced(folder, model, processor, tmp_path, caplog, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default (15) actors starve beside other work
    from fastapi.testclient import TestClient
    from ray.cluster_utils import Cluster

    from dmae.retrieval.server.app import make_app
    from dmae.retrieval.server.options import ServerOptions

    alone = VideoIndex.open(folder, model, processor)
    text = encode_texts(model, processor, ["two dogs run on the grass", "the sky is blue"])
    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(3)]
    cluster.wait_for_nodes()
    try:
        index = VideoIndex.on_ray(folder, 2, cluster.address, model, processor)
        shards = index.state.backend.shards
        shards.patience = 900.0  # where other tests run, a new process takes minutes to import what it needs
        expected = answers(alone, text)
        assert answers(index, text) == expected and len({name for name in shards.nodes}) == 2
        wrong, asked, stop = [], [], threading.Event()

        def ask():
            while not stop.is_set():
                try:
                    asked.append(answers(index, text))
                    wrong.extend([] if asked[-1] == expected else [asked[-1]])
                except Exception as error:  # whatever it is, the test must see it
                    wrong.append(error)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        # the driver's own node cannot go without the driver
        mine = ray._private.worker.global_worker.node.raylet_socket_name
        others = [node for node in nodes if node.raylet_socket_name != mine]
        sockets = {node["NodeID"][:8]: node["RayletSocketName"] for node in ray.nodes()}
        home = [sockets[name.split("(")[1][:8]] for name in shards.nodes]
        victim = next(node for node in others if node.raylet_socket_name in home)
        lost = home.index(victim.raylet_socket_name)
        dying = shards.nodes[lost]
        with caplog.at_level(logging.WARNING):
            cluster.remove_node(victim, allow_graceful=False)
            before = len(asked)
            while len(asked) < before + 20 and not wrong:
                stop.wait(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong and (lost, dying) in shards.lost and dying in caplog.text
        assert shards.nodes[lost] != dying
        index.add(videos(model.config, 99))  # commits reach the shards
        index.delete(["v0_0"])
        alone.refresh()
        assert answers(index, text) == answers(alone, text)
        assert answers(index, text, exact=True) == answers(alone, text, exact=True)
        assert index.calibrate(text, 0.9).queries == 2
        alone.refresh()
        asking = "/api/search?q=the+sky+is+blue&top_k=5"
        replies = []
        for each in (alone, index):
            with TestClient(
                make_app(each, ServerOptions(cache=tmp_path / "cache")), base_url="http://127.0.0.1"
            ) as web:
                replies.append(web.get(asking).json()["results"])
        assert [hit["video_id"] for hit in replies[0]] == [hit["video_id"] for hit in replies[1]]
        shards.close()
        with pytest.raises(OSError, match="were closed"):
            index.search_embeddings(text)
        assert len(shards.lost) == 1  # what was closed is no loss
    finally:
        ray.shutdown()
        cluster.shutdown()

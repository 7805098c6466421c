"""The Qdrant backend against the Rust engine itself (qdrant-edge-py, no server): filters, deletes, recall.

    pip install qdrant-edge-py && python benchmarks/qdrant_engine.py      # writes benchmarks/results/qdrant_engine.json

`EdgeClient` answers the calls that `QdrantBackend` makes of a `QdrantClient` from one shard on disk, so the backend's
own code runs unchanged. Recall is of the exact inner products of float32, within the first 10 and 300, before and after
the engine's optimizer has built its 8-bit vectors: as the backend asks it, and with the graph that is Qdrant's default.
What goes over the network is not tested by this.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import qdrant_edge as edge
import torch
from search_corpus import DIM, make_queries, make_videos, topics

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.retrieval.bound import coarse_queries, coarse_vectors
from dmae.retrieval.qdrant import QdrantBackend

RESULTS = Path(__file__).parent / "results" / "qdrant_engine.json"


class EdgeClient:
    """The part of QdrantClient that the backend uses, over an EdgeShard."""

    def __init__(self, path: str, edges: int | None):
        self.path, self.edges, self.shard = path, edges, None

    def collection_exists(self, name: str) -> bool:
        return self.shard is not None

    def create_collection(self, name: str, vectors, quantization_config, hnsw_config) -> None:
        quantized = edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=True)
        dense = edge.EdgeVectorParams(vectors.size, edge.Distance.Dot, on_disk=vectors.on_disk)
        edges = hnsw_config.m if self.edges is None else self.edges
        graph = edge.HnswIndexConfig(edges, ef_construct=100, full_scan_threshold=10_000)
        config = edge.EdgeConfig(vectors=dense, quantization_config=quantized, hnsw_config=graph)
        self.shard = edge.EdgeShard.create(self.path, config)

    def upsert(self, name: str, batch, wait: bool) -> None:
        points = [edge.Point(number, vector) for number, vector in zip(batch.ids, batch.vectors)]
        self.shard.update(edge.UpdateOperation.upsert_points(points))

    def delete(self, name: str, ids: list[int], wait: bool) -> None:
        self.shard.update(edge.UpdateOperation.delete_points(ids))

    def query_batch_points(self, name: str, requests) -> list:
        answers = []
        for request in requests:
            only = None
            if request.filter is not None:
                ids = {number for condition in request.filter.must for number in condition.has_id}
                only = edge.Filter(must=[edge.HasIdCondition(ids)])
            query = edge.Query.Nearest(list(request.query))
            points = self.shard.query(edge.QueryRequest(request.limit, query=query, filter=only))
            answers.append(SimpleNamespace(points=points))
        return answers


def recalls(
    backend: QdrantBackend, queries: torch.Tensor, vectors: torch.Tensor, alive: np.ndarray, allowed=None
) -> dict:
    """Shares of the exact best 10 and 300 among the first 300, within what lives and is allowed."""
    may = alive if allowed is None else np.intersect1d(alive, allowed)
    exact = may[(queries @ vectors[may].T).topk(300).indices.numpy()]
    started = time.perf_counter()
    found = backend.candidates(queries, 300, allowed)
    seconds = time.perf_counter() - started
    strays = sum(int((~np.isin(ids, may)).sum()) for ids in found)
    share = lambda k: float(np.mean([np.isin(true[:k], ids).mean() for true, ids in zip(exact, found)]))  # noqa: E731
    return {"of_first_10": share(10), "of_first_300": share(300), "strays": strays, "ms": seconds * 1000 / len(queries)}


def measured(edges: int | None, vectors: torch.Tensor, queries: torch.Tensor) -> dict:
    """As written, optimized, filtered to a seventh, without a third; `edges` of the graph, None: the backend's own."""
    alive, record = np.arange(len(vectors)), {}
    with tempfile.TemporaryDirectory() as folder:
        backend = QdrantBackend(EdgeClient(folder, edges), "videos")
        backend.ids(DIM)
        started = time.perf_counter()
        backend.upsert(alive, vectors.numpy())
        record["upsert_seconds"] = time.perf_counter() - started
        record["as_written"] = recalls(backend, queries, vectors, alive)
        started = time.perf_counter()
        record["optimized"] = backend.client.shard.optimize()
        record["optimize_seconds"] = time.perf_counter() - started
        record["after"] = recalls(backend, queries, vectors, alive)
        record["filtered"] = recalls(backend, queries, vectors, alive, alive[::7])
        backend.delete(alive[::3])
        record["third_deleted"] = recalls(backend, queries, vectors, np.setdiff1d(alive, alive[::3]))
        backend.client.shard.close()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--queries", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config, rng, subjects = DMAEConfig.tiny(projection_dim=DIM), torch.Generator().manual_seed(3), topics()
    parts = [make_videos("hard", 500, rng, subjects) for _ in range(args.rows // 500)]
    vectors = torch.cat([coarse_vectors(videos, config) for videos, _ in parts])
    queries = coarse_queries(make_queries("hard", torch.cat([told for _, told in parts])[: args.queries], 5), config)
    record: dict = {"rows": args.rows, "queries": args.queries, "engine": "qdrant-edge-py 0.9.0"}
    record["no graph, as the backend asks"] = measured(None, vectors, queries)
    record["graph, 16 edges a node"] = measured(16, vectors, queries)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

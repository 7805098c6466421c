"""Candidates from a Qdrant server, for a corpus whose coarse vectors outgrow one machine.

    index = VideoIndex.connect("qdrant://host:6333/videos", "my.index")

The server holds one vector per row, with the row's id; the frames stay in the index folder, where the exact score is
computed. One collection serves one index. An API key is read from QDRANT_API_KEY. Qdrant's own multi-vector score is
one-directional and is not used.
"""

import os
from collections.abc import Callable
from urllib.parse import urlparse

import numpy as np

BATCH = 512
PAGE = 10_000
SECONDS = 60


class QdrantBackend:
    """The `Backend` protocol over one collection; `client` is a qdrant_client.QdrantClient."""

    name = "qdrant"

    def __init__(self, client, collection: str):
        self.client, self.collection = client, collection

    @classmethod
    def connect(cls, url: str) -> "QdrantBackend":
        """qdrant://host:6333/collection, or http(s)://…; OSError where no server answers."""
        address = urlparse(url)
        collection = address.path.strip("/")
        if address.scheme not in ("qdrant", "http", "https") or not address.hostname or not collection:
            raise ValueError(f"{url!r} is not the address of a collection; write qdrant://host:6333/name")
        client_class, _ = import_qdrant()
        scheme = "https" if address.scheme == "https" else "http"
        client = client_class(
            url=f"{scheme}://{address.hostname}:{address.port or 6333}",
            api_key=os.environ.get("QDRANT_API_KEY"),
            timeout=SECONDS,
            check_compatibility=False,  # it only warns, and it asks the server before anything else can
        )
        backend = cls(client, collection)
        backend._ask(client.get_collections)
        return backend

    def ids(self, dimension: int) -> np.ndarray:
        """The rows that the collection holds; it is created where there is none. ValueError: of another width.

        The collection gets no graph: the server's HNSW would lose a quarter of the best 10 from 300 candidates, where
        its scan of 8-bit vectors loses none (benchmarks/qdrant_engine.py).
        """
        _, models = import_qdrant()
        if not self._ask(self.client.collection_exists, self.collection):
            vectors = models.VectorParams(size=dimension, distance=models.Distance.DOT, on_disk=True)
            quantized = models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            )
            self._ask(
                self.client.create_collection,
                self.collection,
                vectors,
                quantization_config=quantized,
                hnsw_config=models.HnswConfigDiff(m=0),
            )
            return np.empty(0, np.int64)
        config = self._ask(self.client.get_collection, self.collection).config
        vectors = config.params.vectors
        if getattr(vectors, "size", None) != dimension or vectors.distance != models.Distance.DOT:
            raise ValueError(
                f"collection {self.collection!r} holds {vectors}, and this index needs one vector of {dimension} with "
                f"the dot product; name a new collection"
            )
        if config.hnsw_config.m:  # made by others
            graphless = models.HnswConfigDiff(m=0)
            self._ask(self.client.update_collection, self.collection, hnsw_config=graphless)
        found, offset = [], None
        while True:
            points, offset = self._ask(
                self.client.scroll, self.collection, limit=PAGE, offset=offset, with_payload=False, with_vectors=False
            )
            found += [point.id for point in points]
            if offset is None:
                return np.array(sorted(found), dtype=np.int64)

    def upsert(self, ids, vectors, payload=None) -> None:
        _, models = import_qdrant()
        vectors = np.asarray(vectors, dtype=np.float32)
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            batch = models.Batch(
                ids=[int(number) for number in ids[part]],
                vectors=vectors[part].tolist(),
                payloads=None if payload is None else payload[part],
            )
            self._ask(self.client.upsert, self.collection, batch, wait=True)

    def delete(self, ids) -> None:
        for start in range(0, len(ids), PAGE):
            numbers = [int(number) for number in ids[start : start + PAGE]]
            self._ask(self.client.delete, self.collection, numbers, wait=True)

    def candidates(self, queries, top_k, allowed=None, codes=0) -> list[np.ndarray]:
        """Per query, the best top_k ids by the server's own 8-bit vectors."""
        _, models = import_qdrant()
        only = None
        if allowed is not None:
            only = models.Filter(must=[models.HasIdCondition(has_id=[int(number) for number in allowed])])
        requests = [
            models.QueryRequest(query=query, filter=only, limit=top_k, with_payload=False)
            for query in queries.float().tolist()
        ]
        answers = self._ask(self.client.query_batch_points, self.collection, requests)
        ranked = [sorted(answer.points, key=lambda point: (-point.score, point.id)) for answer in answers]
        return [np.array([point.id for point in points], dtype=np.int64) for points in ranked]

    def _ask(self, call: Callable, *arguments, **options):
        """A request whose failure is one line with the collection and the reason."""
        from qdrant_client.http.exceptions import ApiException

        try:
            return call(*arguments, **options)
        except (ApiException, ConnectionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(f"Qdrant collection {self.collection!r} could not be reached: {reason}") from error


def import_qdrant():
    """(QdrantClient, its models)."""
    try:
        from qdrant_client import QdrantClient, models
    except ImportError as error:
        raise ImportError("connecting to Qdrant needs its client; install it: pip install 'dmae[qdrant]'") from error
    return QdrantClient, models

"""An index on several machines: shards of it as Ray actors, each with codes, 8-bit vectors and frames of its own rows.

    index = VideoIndex.on_ray("/shared/my.index", shards=4)      # then every call of VideoIndex, and the server's API

The folder is one that all nodes see (a network file system), or a copy in the same place on each. Whoever opened the
index is its only writer and says which shard holds which segments; a shard reads from disk what it is told to and keeps
it in its node's memory. A query goes to all shards at once, each runs the whole cascade on its rows, and the answers
are merged by the exact score. Needs the extra `dmae[ray]`.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval.segments import open_segments

logger = logging.getLogger(__name__)
PATIENCE = 120.0  # seconds in which a lost shard must answer again from another node
STARTING = 900.0  # seconds for the first answers: each actor loads torch, all of them on one machine in a test
KEPT_STATES = 2  # commits that a shard can answer for: searches that run while the next one arrives


class Shard:
    """What an actor holds: the segments that it was given, of the last commits."""

    def __init__(self, path: str, number: int):
        torch.set_num_threads(1)
        self.path, self.number = Path(path), number
        self.states: dict[int, Any] = {}

    def node(self) -> str:
        """The address of the machine that this runs on, and Ray's name of it."""
        import ray  # pyright: ignore[reportMissingImports]

        return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"

    def take(self, generation: int, manifest: dict, config: dict, entries: list[dict]) -> None:
        """Hold these segments from now on; what is open already is not read again."""
        from dmae.retrieval.state import IndexState

        last = self.states[max(self.states)] if self.states else None
        segments = open_segments(self.path, entries, last.snapshot.segments if last else ())
        made = IndexState.make(manifest, segments, DMAEConfig.from_dict(config), None, last)
        self.states[generation] = made
        for old in sorted(self.states)[:-KEPT_STATES]:
            del self.states[old]

    def scored(self, generation: int, text: dict, wanted: int | None, allowed) -> list | None:
        """Per query (ids, exact scores) of this shard's candidates; None where the commit is not known here."""
        state = self.states.get(generation)
        if state is None:
            return None
        allowed = None if allowed is None else np.intersect1d(allowed, state.snapshot.ids)
        queries = TextEmbeddings.from_flat({name: torch.from_numpy(array.copy()) for name, array in text.items()}, "")
        return [(state.snapshot.ids[at], scores) for at, scores in state.scored(queries, wanted, allowed)]

    def candidates(self, generation: int, queries: np.ndarray, top_k: int, allowed, codes: int) -> list | None:
        """Per query (ids, products with their coarse vectors), for calibration; None where the commit is not known."""
        state = self.states.get(generation)
        if state is None:
            return None
        asked, found = torch.from_numpy(queries.copy()), []
        for query, ids in zip(asked, state.backend.candidates(asked, top_k, allowed, codes)):
            coarse = state.snapshot.tensor("coarse", state.snapshot.positions(ids)).float()
            found.append((ids, (coarse @ query).numpy()))
        return found


class RayShards:
    """The actors of an index. lost: [(shard, node)], what died and was replaced."""

    def __init__(self, path: Path, shards: int, address: str | None = None, patience: float = PATIENCE):
        if shards < 1:
            raise ValueError(f"shards={shards} must be at least 1")
        ray = import_ray()
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        actor = ray.remote(Shard).options(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")
        self.actors = [actor.remote(str(Path(path).resolve()), number) for number in range(shards)]
        self.patience, self.lost, self._lock, self.closed = patience, [], threading.Lock(), False
        self.owner: dict[str, int] = {}  # segment file -> shard
        self.nodes = ["a node that has not answered yet"] * shards
        self.nodes = self.each(lambda shard: self.actors[shard].node.remote(), None, STARTING)

    def close(self) -> None:
        """Stop the actors. Whoever still searches is told; it must not start a Ray of its own in their place."""
        self.closed = True
        ray = import_ray()
        for actor in self.actors:
            ray.kill(actor)

    def each(self, ask, state, patience: float | None = None) -> list:
        """`ask(shard)` of all shards at once; each is asked again until it answers or patience ends."""
        self._check_open()
        pending = {shard: ask(shard) for shard in range(len(self.actors))}
        end = time.monotonic() + (patience or self.patience)
        return [self._answer(shard, reference, ask, state, end) for shard, reference in pending.items()]

    def _answer(self, shard: int, reference, ask, state, end: float):
        ray = import_ray()
        while True:
            try:
                answer = ray.get(reference, timeout=max(0.0, end - time.monotonic()))
                if answer is not None:
                    return answer
                self._give(shard, state, end)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                self._check_open()
                self._note_loss(shard, error, end)
            self._check_open()
            reference = ask(shard)

    def _check_open(self) -> None:
        if self.closed:
            raise OSError("the shards of this index were closed; open it again with VideoIndex.on_ray")

    def _give(self, shard: int, state, end: float) -> None:
        """Tell a shard what it holds in this state: after a commit, or after it was started anew."""
        ray = import_ray()
        with self._lock:
            self._assign(state.snapshot.segments)
        entries = [s.manifest_entry() for s in state.snapshot.segments if self.owner[s.file] == shard]
        manifest = {**state.manifest, "segments": [], "faiss": None}
        config, actor = state.config.to_dict(), self.actors[shard]
        taken = actor.take.remote(manifest["generation"], manifest, config, entries)
        ray.get([taken], timeout=max(0.0, end - time.monotonic()))
        self.nodes[shard] = ray.get(actor.node.remote(), timeout=max(0.0, end - time.monotonic()))

    def _assign(self, segments) -> None:
        """New segments go to the shards with the fewest rows; the others stay where they are."""
        rows = [0] * len(self.actors)
        for segment in segments:
            if segment.file in self.owner:
                rows[self.owner[segment.file]] += len(segment)
        for segment in segments:
            if segment.file not in self.owner:
                self.owner[segment.file] = int(np.argmin(rows))
                rows[self.owner[segment.file]] += len(segment)

    def _note_loss(self, shard: int, error: Exception, end: float) -> None:
        name = f"shard {shard} of {len(self.actors)} on {self.nodes[shard]}"
        if time.monotonic() >= end:
            raise OSError(
                f"{name} has not answered in time and no other node has taken its place; "
                f"start one, or open the index with fewer shards"
            ) from error
        if (shard, self.nodes[shard]) not in self.lost:
            self.lost.append((shard, self.nodes[shard]))
            logger.warning("%s was lost; it is started again on another node", name)
        time.sleep(0.2)


@dataclass
class RayBackend:
    """The `Backend` of one commit over the actors, which score too. It follows commits by `at`."""

    shards: RayShards
    manifest: dict
    snapshot: Any
    config: Any
    name: str = "ray"

    def at(self, manifest: dict, snapshot, config) -> "RayBackend":
        return RayBackend(self.shards, manifest, snapshot, config)

    def upsert(self, ids, vectors, payload=None) -> None:
        """Nothing: the shards read committed segments."""

    def delete(self, ids) -> None:
        """Nothing: the shards are told which rows of a segment are deleted."""

    def scored(self, text: TextEmbeddings, wanted: int | None, allowed) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query (positions in the snapshot, exact scores) of the candidates of all shards, `wanted` of each."""
        flat = {name: tensor.numpy() for name, tensor in text.flat("").items()}
        merged = []
        for parts in zip(*self._all("scored", flat, wanted, allowed)):
            ids, scores = (np.concatenate(columns) for columns in zip(*parts))
            order = np.argsort(ids)
            merged.append((self.snapshot.positions(ids[order]), scores[order]))
        return merged

    def candidates(self, queries: torch.Tensor, top_k: int, allowed=None, codes: int = 0) -> list[np.ndarray]:
        found = []
        for parts in zip(*self._all("candidates", queries.float().numpy(), top_k, allowed, codes)):
            ids, products = (np.concatenate(columns) for columns in zip(*parts))
            found.append(ids[np.argsort(-products, kind="stable")][:top_k])
        return found

    def _all(self, method: str, *arguments) -> list:
        generation = self.manifest["generation"]
        return self.shards.each(
            lambda shard: getattr(self.shards.actors[shard], method).remote(generation, *arguments), self
        )


def import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("searching on several machines needs Ray; install it: pip install 'dmae[ray]'") from error
    return ray

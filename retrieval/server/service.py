"""What the routes share: the live index, searches with bounded concurrency, media, what people keep, and counters."""

import asyncio
import threading
from pathlib import Path

from fastapi import HTTPException, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.places import files_of
from dmae.retrieval.server.clips import Clips
from dmae.retrieval.server.live import Background, LiveIndex, NotIndexed
from dmae.retrieval.server.news import NewsWatch
from dmae.retrieval.server.options import ServerOptions, cache_folder
from dmae.retrieval.server.searching import Searcher
from dmae.retrieval.server.store import Store
from dmae.retrieval.server.studio import Studio

QUERY_SECONDS = 30.0
CONCURRENT = 4
WAITING = 256


class Service:
    """One per server; `start` and `close` belong to the application's lifespan."""

    def __init__(self, index: VideoIndex, options: ServerOptions):
        if index.path is None:
            raise ValueError("an index in memory cannot be served: `index.save(folder)`, then open the folder")
        self.options = options
        self.live = LiveIndex(index)
        self.background = Background(self.live)
        self.store = Store(Path(index.path), options.webhook_hosts)
        self.studio = Studio(options.cache or cache_folder(index.path), options.cache_bytes)
        self.clips = Clips(self.studio)
        self.searcher = Searcher(self.live, self.background, self.clips)
        self.news = NewsWatch(self.searcher, self.background, self.store)
        self.counters = Counters(self)
        self._slots, self._waiting = asyncio.Semaphore(CONCURRENT), 0

    def start(self) -> None:
        # now, so that the first visitor does not wait for model and tagger, and a missing model is told at once; what
        # reads frames is loaded at the first upload
        self.live.index.encode_texts(["a first query"])
        threading.Thread(target=self.background.measure, daemon=True, name="fit").start()
        self.news.start()

    def close(self) -> None:
        self.news.close()
        self.clips.close()
        self.studio.close()

    async def work(self, function, *arguments):
        """Run something slow in a thread, at most CONCURRENT at a time; 503 when too many wait, 504 after a while.

        ValueError becomes 400, a lost row or file 404: their texts are for people.
        """
        if self._waiting >= WAITING:
            raise HTTPException(503, "too many searches are waiting; try again", {"Retry-After": "2"})
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.wait_for(asyncio.to_thread(function, *arguments), QUERY_SECONDS)
        except asyncio.TimeoutError:  # before Python 3.11 another than the built-in one
            raise HTTPException(504, f"this took more than {QUERY_SECONDS:.0f} seconds; try again") from None
        except (NotIndexed, FileNotFoundError) as error:
            raise HTTPException(404, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            self._waiting -= 1

    async def make(self, *arguments) -> Path:
        """A poster or preview, from the cache or made now; 422 for a video that cannot be shown."""
        try:
            return await asyncio.to_thread(self.studio.made, *arguments)
        except FileNotFoundError as error:
            raise HTTPException(404, "the video's file is not there any more") from error
        except (ValueError, OSError) as error:
            raise HTTPException(422, f"this video cannot be shown: {error}") from error

    def file_of(self, row: int) -> tuple[dict, str]:
        """(what is stored of a row, its file). 404 for neither."""
        try:
            _, _, stored = self.live.row(row)
        except NotIndexed as error:
            raise HTTPException(404, str(error)) from error
        for path in files_of(stored):
            if self.live.available(path):
                return stored, path
        raise HTTPException(404, f"the file of {stored['video_id']!r} is not there any more")


class Counters:
    """What /metrics shows, in a registry of this server's own."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter("dmae_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("dmae_search_seconds", "Time that searches took.", registry=self.registry)
        index = service.live.index
        for name, what, read in [
            ("dmae_index_rows", "Rows in the index.", lambda: len(index)),
            ("dmae_index_generation", "Commits of the index.", lambda: index.manifest["generation"]),
            ("dmae_waiting_searches", "Searches that wait or run.", lambda: service._waiting),
            ("dmae_cache_bytes", "Posters and previews kept.", service.studio.bytes),
            ("dmae_resident_bytes", "Memory of the server's process.", resident_bytes),
            ("dmae_stale", "1 while the index cannot be read again.", lambda: service.live.trouble is not None),
        ]:
            Gauge(name, what, registry=self.registry).set_function(lambda read=read: float(read()))

    def timed(self):
        """`with counters.timed():` around a search."""
        return self.seconds.time()


def resident_bytes() -> int:
    """Memory that this process holds now (Linux), or held at most (elsewhere)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def service_of(request: Request) -> Service:
    return request.app.state.service

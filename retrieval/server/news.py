"""Saved searches against new footage: after every commit of the index, what is new and fits is kept and sent."""

import json
import logging
import threading
import urllib.request

from dmae.retrieval.server.live import Background
from dmae.retrieval.server.searching import Search, Searcher
from dmae.retrieval.server.store import Store

logger = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
SEND_SECONDS = 10.0
TOP_K = 50
KEPT_NEWS = 100


class NewsWatch:
    """A thread that looks at the index every `seconds`, and at the saved searches where it has changed."""

    def __init__(self, searcher: Searcher, background: Background, store: Store, seconds: float = LOOK_SECONDS):
        self.searcher, self.background, self.store, self.seconds = searcher, background, store, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="news")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self.look()
            except Exception:  # a watch that ended silently would be worse than one that complains
                logger.exception("looking for news of the saved searches failed; it is tried again")

    def look(self) -> None:
        """Search every saved search for rows above the newest it knows; tell its webhook; remember."""
        saved = self.store.saved()
        if not saved:
            return
        index = self.searcher.live.fresh()
        next_row = int(index.manifest["next_id"])
        if all(entry["newest_row"] >= next_row - 1 for entry in saved):
            return
        if self.background.generation != index.manifest["generation"]:
            self.background.measure()
        for entry in saved:
            if entry["newest_row"] < next_row - 1:
                self._look_at(entry, next_row - 1)

    def _look_at(self, entry: dict, newest_row: int) -> None:
        search = Search(q=entry["q"], filter=entry["filter"])
        try:
            found = self.searcher.found(search, self.searcher.run(search, TOP_K), with_moments=False)
            fresh = [one for one in found if one.hit.row > entry["newest_row"] and (one.fit or 0.0) >= entry["min_fit"]]
            news = [{**one.hit.to_dict(), "row": one.hit.row, "fit": one.fit} for one in fresh]
            if news and entry["webhook"]:
                send(entry["webhook"], {"name": entry["name"], "query": entry["q"], "results": news})
        except (ValueError, OSError) as error:  # tried again at the next look, with what came in between
            logger.warning("saved search %r: %s", entry["name"], error)
            if entry["trouble"] != str(error):
                self.store.update_saved(entry["id"], trouble=str(error))
            return
        kept = [*news, *entry["news"]][:KEPT_NEWS]
        self.store.update_saved(entry["id"], newest_row=newest_row, news=kept, trouble=None)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The owner allowed one host; where that host points to, nobody has."""

    def redirect_request(self, *arguments):
        return None


def send(url: str, content: dict) -> None:
    """POST JSON. OSError where it does not arrive, or is answered with an error or a redirection."""
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    body = json.dumps(content).encode("ascii")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "dmae"})
    with opener.open(request, timeout=SEND_SECONDS) as answer:
        answer.read(1)

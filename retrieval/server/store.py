"""Favourites and saved searches: one JSON file beside the index, written whole or not at all."""

import json
import secrets
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from dmae import files

FILE = "page.json"
MAX_ENTRIES = 1_000


class Store:
    """What people keep. Every change is on disk when the method returns; OSError where the folder cannot be written."""

    def __init__(self, folder: Path, webhook_hosts: tuple[str, ...] = ()):
        self.path, self.webhook_hosts = Path(folder) / FILE, webhook_hosts
        self._guard = threading.RLock()
        self._content = {"favourites": [], "saved": []} | self._read()

    def _read(self) -> dict:
        if not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            good = isinstance(content, dict) and all(
                isinstance(content.get(name, []), list) and all(isinstance(one, dict) for one in content.get(name, []))
                for name in ("favourites", "saved")
            )
        except (ValueError, RecursionError):
            good = False
        if not good:
            raise ValueError(f"{self.path}: damaged favourites and saved searches; repair the file or move it away")
        return content

    def _write(self) -> None:
        files.write_file(self.path, json.dumps(self._content, indent=1))

    def favourites(self) -> list[dict]:
        with self._guard:
            return list(self._content["favourites"])

    def set_favourite(self, video_id: str, at: float, kept: bool) -> None:
        """Keep a video, at a moment, or let it go. By its id: rows change when a file is embedded again."""
        with self._guard:
            left = [one for one in self._content["favourites"] if one["video_id"] != video_id]
            if kept:
                left.append({"video_id": video_id, "at": at, "since": round(time.time())})
            self._replace("favourites", left)

    def saved(self) -> list[dict]:
        with self._guard:
            return [dict(one) for one in self._content["saved"]]

    def save_search(self, name: str, q: str, filter: str, webhook: str | None, min_fit: float, newest_row: int) -> dict:
        """Keep a search; footage with rows above `newest_row` is news to it."""
        if webhook is not None:
            self._check_webhook(webhook)
        entry = {
            "id": secrets.token_hex(6),
            "name": name,
            "q": q,
            "filter": filter,
            "webhook": webhook,
            "min_fit": min_fit,
            "newest_row": newest_row,
            "news": [],
            "trouble": None,
        }
        with self._guard:
            self._replace("saved", [*self._content["saved"], entry])
        return dict(entry)

    def update_saved(self, id: str, **changes) -> None:
        """Change an entry, if it is still there."""
        with self._guard:
            self._replace("saved", [one | changes if one["id"] == id else one for one in self._content["saved"]])

    def forget_saved(self, id: str) -> bool:
        with self._guard:
            left = [one for one in self._content["saved"] if one["id"] != id]
            known = len(left) < len(self._content["saved"])
            if known:
                self._replace("saved", left)
            return known

    def _replace(self, kind: str, entries: list[dict]) -> None:
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"at most {MAX_ENTRIES} {kind} are kept; remove some")
        before, self._content[kind] = self._content[kind], entries
        try:
            self._write()
        except OSError:
            self._content[kind] = before
            raise

    def _check_webhook(self, url: str) -> None:
        """Only the server's owner says where it may send: else a client could reach what only the server can."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the webhook {url!r} is not an http or https address")
        if parts.hostname not in self.webhook_hosts:
            allowed = ", ".join(self.webhook_hosts) or "none"
            raise ValueError(
                f"this server may not send to {parts.hostname} (allowed: {allowed}); "
                f"start it with: dmae serve … --webhook-host {parts.hostname}"
            )

"""A `dmae serve` of an index on this machine: how it says that it is there, and how a search asks it.

INDEX/serve.json holds the process, its address and its token, readable by its owner only. Whoever asks makes sure that
the process still lives and is the same user's, and the answer names the index it was found in. No torch here: a search
that is answered by the server costs what starting Python costs.
"""

import json
import os
import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from dmae.retrieval.asking import MANIFEST

FILE = "serve.json"
INDEX_HEADER = "DMAE-Index"
ANSWER_SECONDS = 40.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class NotAnswering(OSError):
    """A server is noted and gives no answer that can be used; the text says why."""


class Running(NamedTuple):
    """A server as it noted itself."""

    pid: int
    began: str  # of the process: its number may have gone to another one
    host: str
    port: int
    token: str | None
    index: str

    def ask(self, words: str, **options) -> list[dict]:
        """The results for these words. Raises NotAnswering, ValueError for what the server refuses."""
        if not _alive(self.pid, self.began):
            raise NotAnswering(f"the process {self.pid} has ended")
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connection = HTTPConnection(ANYWHERE.get(self.host, self.host), self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/api/search?" + urlencode({"q": words, **options}, doseq=True), headers=headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, HTTPException, ValueError) as error:
            raise NotAnswering(f"{self.host}:{self.port} does not answer ({error})") from error
        finally:
            connection.close()
        if answer.status == 400:
            raise ValueError(content.get("detail"))
        if answer.status != 200:
            raise NotAnswering(f"it answered {answer.status}, {content.get('detail')}")
        if answer.getheader(INDEX_HEADER) != self.index:
            raise NotAnswering(f"{self.host}:{self.port} serves another index")
        return content["results"]


def announce(folder: Path, host: str, port: int, token: str | None) -> None:
    """Note this process as the server of the index. Where the note cannot be kept from others, there is none."""
    note: dict = {"pid": os.getpid(), "began": _began(os.getpid()), "machine": socket.gethostname()}
    note |= {"host": host, "port": port, "token": token, "index": _identity(folder), "folder": str(folder.resolve())}
    partial = folder / f".{FILE}.{os.getpid()}.tmp"
    with suppress(OSError):
        with open(partial, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            private = _private(partial)
            file.write(json.dumps(note) if private else "")
        partial.replace(folder / FILE) if private else partial.unlink()


def withdraw(folder: Path) -> None:
    """Take this process's note away."""
    with suppress(OSError, ValueError, KeyError):
        if json.loads((folder / FILE).read_text(encoding="utf-8"))["pid"] == os.getpid():
            (folder / FILE).unlink()


def running(folder: Path) -> Running | None:
    """The server that noted itself for the index in this folder, by this user on this machine."""
    path = folder / FILE
    try:
        if not _private(path):
            return None
        note = json.loads(path.read_text(encoding="utf-8"))
        here = socket.gethostname(), str(folder.resolve())  # a copy of the folder has this note too
        if (note.pop("machine"), note.pop("folder")) != here or note["index"] != _identity(folder):
            return None
        return Running(**note)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _private(path: Path) -> bool:
    """Ours, and nobody else's to read; always so where a system has no owners."""
    found = path.stat()
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)


def _identity(folder: Path) -> str:
    return str(json.loads((folder / MANIFEST).read_bytes()).get("id"))  # the oldest indexes have none


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int, began: str) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # none, or somebody else's
        return False
    return _began(pid) == began

"""A small Hub on 127.0.0.1, for tests: repositories, commits, git-LFS uploads, and what `huggingface_hub` asks for.

    with LoopbackHub() as hub:
        subprocess.run([...], env=hub.environment(tmp_path / "cache"))

`HF_ENDPOINT` is read when huggingface_hub is imported, so clients run in their own process. Repositories live in
memory: `hub.repos["models/user/name"]` is a list of `Commit`s. `hub.log` holds every request as "METHOD path", and
`hub.fail = {"/commit/": [500]}` answers the next request whose path contains that word with that status.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".mp4", ".png", ".bin")
USER = {"name": "user", "type": "user", "fullname": "A User", "orgs": [], "auth": {"type": "access_token"}}


@dataclass
class Commit:
    """One commit: its id, its message, and every file of the repository at that point."""

    oid: str
    message: str
    files: dict[str, bytes]


class NotFound(Exception):
    """Answered as 404 with the `X-Error-Code` that huggingface_hub turns into its own exception."""


def object_id(path: str, content: bytes) -> str:
    """sha256 for a file kept in LFS, git's blob sha1 for any other: what the Hub gives as ETag and as `oid`."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub:
    """The server and its store. Use as a context manager; `token` is the only one that may write."""

    token = "hub-test-token"

    def __init__(self):
        self.repos: dict[str, list[Commit]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}  # LFS objects, uploaded before the commit that names them
        self.log: list[str] = []
        self.fail: dict[str, list[int]] = {}
        self.salt = os.urandom(8).hex()  # another Hub's commits are in some client's cache: equal ids would hit them
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (self.handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = token) -> dict[str, str]:
        """The environment of a client process: this Hub, its own cache under `home`, and no other proxies or tokens."""
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return kept | ({"HF_TOKEN": token} if token else {})

    def create(self, key: str, private: bool = False) -> bool:
        """Make the repository `models/user/name`; False if it was there."""
        if key in self.repos:
            return False
        self.repos[key], self.private[key] = [], private
        self.commit(key, "initial commit", {})
        return True

    def commit(self, key: str, message: str, files: dict[str, bytes | None]) -> str:
        """Add (bytes) or delete (None) files in one commit on main; returns its id."""
        history = self.repos[key]
        content = {**(history[-1].files if history else {}), **files}
        content = {path: data for path, data in sorted(content.items()) if data is not None}
        oid = hashlib.sha1(f"{self.salt} {key} {len(history)} {message}".encode()).hexdigest()
        history.append(Commit(oid, message, content))
        return oid

    def files(self, key: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.repos[key][-1].files

    def at(self, key: str, revision: str) -> Commit:
        if key not in self.repos:
            raise NotFound("RepoNotFound")
        for commit in reversed(self.repos[key]):
            if revision in ("main", commit.oid):
                return commit
        raise NotFound("RevisionNotFound")


class HubHandler(BaseHTTPRequestHandler):
    """Routes: each pattern names the method `on_<name>` that answers it."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    REPO = r"(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", rf"/api/{REPO}/preupload/(?P<rev>.+)", "preupload"),
        ("POST", rf"/api/{REPO}/commit/(?P<rev>.+)", "commit"),
        ("GET", rf"/api/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("GET", rf"/api/{REPO}(?:/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_verify"),
        ("GET", r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ]
    PUBLIC = {"resolve", "info", "tree", "lfs_put"}  # the PUT address stands for a signed one

    def handle_request(self):
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.log.append(f"{self.command} {url.path}")
            for word, statuses in self.hub.fail.items():
                if word in url.path and statuses:
                    return self.reply({"error": "out of order"}, status=statuses.pop(0))
            try:
                self.route("GET" if self.command == "HEAD" else self.command, url.path)
            except NotFound as error:
                self.reply({"error": str(error)}, status=404, headers={"X-Error-Code": str(error)})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, method: str, path: str):
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if verb != method or not match:
                continue
            groups = {key: unquote(value) for key, value in match.groupdict().items() if value}
            key = f"{groups.get('kind', 'models')}/{groups['id']}" if "id" in groups else ""
            authorised = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
            if not authorised and (name not in self.PUBLIC or self.hub.private.get(key)):
                code = {"X-Error-Code": "RepoNotFound"}
                return self.reply({"error": "Invalid credentials"}, status=401, headers=code)
            return getattr(self, f"on_{name}")(key, groups)
        self.reply({"error": f"this Hub has no {method} {path}"}, status=404)

    def reply(self, payload: dict | list | bytes, status: int = 200, headers: dict[str, str] | None = None):
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def on_whoami(self, key, groups):
        self.reply(USER)

    def on_validate(self, key, groups):
        self.reply({"errors": [], "warnings": []})

    def on_create(self, key, groups):
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER['name']}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        created = self.hub.create(
            f"{kind}s/{name}", wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        address = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        self.reply({"url": address, "id": name, "name": name}, status=200 if created else 409)

    def on_preupload(self, key, groups):
        present = self.hub.at(key, groups["rev"]).files
        answer = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = object_id(path, present[path]) if path in present else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answer})

    def on_lfs_batch(self, key, groups):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{wanted['oid']}"
            if wanted["oid"] not in self.hub.blobs:  # no actions: "I have it already"
                wanted["actions"] = {"upload": {"href": href}, "verify": {"href": href}}
            objects.append(wanted)
        self.reply({"transfer": "basic", "objects": objects})

    def on_lfs_put(self, key, groups):
        assert hashlib.sha256(self.body).hexdigest() == groups["oid"]
        self.hub.blobs[groups["oid"]] = self.body
        self.reply({})

    def on_lfs_verify(self, key, groups):
        self.reply({}, status=200 if groups["oid"] in self.hub.blobs else 404)

    def on_commit(self, key, groups):
        head = self.hub.at(key, groups["rev"])
        changes: dict[str, bytes | None] = {}
        lines = [json.loads(line) for line in self.body.splitlines()]
        if lines[0]["value"].get("parentCommit", head.oid) != head.oid:
            return self.reply({"error": "The parent commit is not the newest one"}, status=412)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        oid = self.hub.commit(key, lines[0]["value"]["summary"], changes)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{key}/commit/{oid}"})

    def on_info(self, key, groups):
        commit = self.hub.at(key, groups.get("rev", "main"))
        siblings = [{"rfilename": path} for path in commit.files]
        name = key.split("/", 1)[1]
        self.reply({"id": name, "modelId": name, "sha": commit.oid, "private": self.hub.private[key], "tags": [],
                    "siblings": siblings, "downloads": 0, "likes": 0})  # fmt: skip

    def on_tree(self, key, groups):
        folder = groups["path"] + "/" if "path" in groups else ""
        files = {path: data for path, data in self.hub.at(key, groups["rev"]).files.items() if path.startswith(folder)}
        if folder and not files:
            raise NotFound("EntryNotFound")
        entries = []
        for path, data in files.items():
            oid = object_id(path, data)
            lfs = {"lfs": {"oid": oid, "size": len(data), "pointerSize": 134}} if path.endswith(LFS_SUFFIXES) else {}
            entries.append({"type": "file", "path": path, "size": len(data), "oid": oid[:40], **lfs})
        self.reply(entries)

    def on_resolve(self, key, groups):
        commit = self.hub.at(key, groups["rev"])
        if groups["path"] not in commit.files:
            raise NotFound("EntryNotFound")
        data = commit.files[groups["path"]]
        headers = {"ETag": f'"{object_id(groups["path"], data)}"', "X-Repo-Commit": commit.oid}
        self.reply(data, headers={**headers, "Content-Type": "application/octet-stream"})

    def log_message(self, *arguments):
        """Quiet: `hub.log` keeps the requests."""


LoopbackHub.handler = HubHandler

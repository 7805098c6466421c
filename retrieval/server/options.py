"""What `dmae serve` was told, checked before anything slow is imported."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIN_TOKEN = 12  # characters; shorter ones can be guessed


@dataclass(frozen=True)
class ServerOptions:
    """How the server listens and what it may do.

    token: what clients must show, None: nothing. names: further host names that it answers to. webhook_hosts: where
    saved searches may send news. connections: open ones per client address. cache: folder of posters and previews,
    cache_bytes: its bound.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    names: tuple[str, ...] = ()
    webhook_hosts: tuple[str, ...] = ()
    connections: int = 64
    cache: Path | None = None
    cache_bytes: int = 2 * 2**30
    max_body_bytes: int = 64 * 2**20


def checked_options(token: str | None, no_token: bool, **options) -> ServerOptions:
    """Refuses to open the index to other machines without a token, unless that is said outright."""
    token = token or os.environ.get("DMAE_TOKEN") or None
    if token and no_token:
        raise ValueError("--no-token and a token (--token or DMAE_TOKEN) exclude each other; choose one")
    if token and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(
            f"the token has {len(token)} characters; give at least {MIN_TOKEN} of printable ASCII without spaces, "
            'e.g. from: python3 -c "import secrets; print(secrets.token_urlsafe())"'
        )
    found = ServerOptions(token=token, **options)
    if not token and not no_token and not is_loopback(found.host):
        raise ValueError(
            f"--host {found.host} lets other machines in, and anyone there could search and watch the videos; "
            "give --token SECRET (or DMAE_TOKEN), or say --no-token if that is meant"
        )
    return found


def is_loopback(host: str) -> bool:
    """True where only this machine can connect."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_allowed(header: str, options: ServerOptions) -> bool:
    """Whether a Host header may name this server.

    A page elsewhere can point a name of its own at this machine (DNS rebinding), but it cannot make a browser send an
    IP address or one of our names: so addresses pass (loopback ones only, where nothing else is listened on),
    `localhost`, this machine's name, the name listened on and the names given with --name.
    """
    name = (urlsplit(f"//{header}").hostname or "") if "@" not in header else ""
    if name in {"localhost", options.host.lower(), *(given.lower() for given in options.names)}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return not is_loopback(options.host) and name in {socket.gethostname().lower(), socket.getfqdn().lower()}
    return address.is_loopback or not is_loopback(options.host)


def cache_folder(index: Path) -> Path:
    """Where posters of this index are kept by default: the user's cache, since an index may lie on a read-only disk."""
    import hashlib

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dmae" / "previews" / hashlib.sha256(os.fsencode(Path(index).resolve())).hexdigest()[:16]

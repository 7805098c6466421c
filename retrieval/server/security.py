"""What stands between a client and the application, as plain ASGI: it holds whatever the application is.

Every request: its Host header, its token, its body's size and pace, and, where it changes something, its origin.
"""

import asyncio
import contextlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse

from dmae.retrieval.server.options import ServerOptions, host_allowed
from dmae.retrieval.server.replies import error_reply

BODY_SECONDS = 30.0  # between two pieces of a body; a client that sends nothing holds a connection for nothing
COOKIE = "dmae_session"
OPEN_PATHS = ("/health", "/login", "/static/")  # without a token
CLOSE = {"Connection": "close"}  # else the rest of the body would be read, to be thrown away, for ever
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    # nothing from elsewhere, no inline script or style: a name that slipped through unescaped still could not run
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses what is not meant for this server, and bounds what it has to read."""

    def __init__(self, app, options: ServerOptions, session: "Session"):
        self.app, self.options, self.session = app, options, session

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = _with_headers(send)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        body = BoundedBody(receive, send, self.options.max_body_bytes)
        with contextlib.suppress(BodyRefused):
            await self.app(scope, body.receive, body.send)
        if body.refusal is not None and not body.answering:
            await body.refusal(scope, receive, send)

    def _refusal(self, scope, headers: Headers):
        """A response that says why not, or None."""
        host = headers.get("host", "")
        if not host_allowed(host, self.options):
            return error_reply(
                421, f"this server does not answer to the name {host[:200]!r}; add it with: dmae serve … --name NAME"
            )
        if scope["method"] not in SAFE_METHODS and not same_origin(headers):
            return error_reply(403, "a page of another site cannot change anything here")
        limit = self.options.max_body_bytes
        length = headers.get("content-length", "0")
        if not length.isdecimal():  # "²" is a digit, and no number
            return error_reply(400, "the Content-Length header is not a number")
        if int(length) > limit:
            return error_reply(413, f"at most {limit >> 20} MB are accepted", CLOSE)
        path = scope["path"]
        if any(path == free or (free.endswith("/") and path.startswith(free)) for free in OPEN_PATHS):
            return None
        if self.session.admits(headers):
            return None
        if scope["method"] in SAFE_METHODS and "text/html" in headers.get("accept", "") and "/api/" not in path:
            return RedirectResponse("/login", status_code=303)
        return error_reply(401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


class BodyRefused(Exception):
    """Ends an application that reads a body which is too long or does not come."""


class BoundedBody:
    """`receive` that counts what comes, whether its length was announced or not, and does not wait for ever."""

    def __init__(self, receive, send, limit: int):
        self._receive, self._send, self.limit = receive, send, limit
        self.seen, self.more = 0, True
        self.refusal, self.answering = None, False

    async def receive(self) -> dict:
        if not self.more:  # what follows is the client's going away, which may take as long as it likes
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except asyncio.TimeoutError:  # before Python 3.11 another than the built-in one
            self.refusal = error_reply(408, f"no data came for {BODY_SECONDS:.0f} seconds", CLOSE)
            raise BodyRefused from None
        self.seen += len(message.get("body", b""))
        self.more = message.get("more_body", False)
        if self.seen > self.limit:
            self.refusal = error_reply(413, f"at most {self.limit >> 20} MB are accepted", CLOSE)
            raise BodyRefused
        return message

    async def send(self, message: dict) -> None:
        """What the application makes of the refusal is not sent: it may take it for a mistake of its own."""
        self.answering = self.answering or self.refusal is None
        if self.answering:
            await self._send(message)


def same_origin(headers: Headers) -> bool:
    """False for a request that a browser sends on behalf of another site. Programs send neither header."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


class Session:
    """Who may come in: `Authorization: Bearer TOKEN`, or the cookie that a login gave. Compared in constant time."""

    def __init__(self, token: str | None):
        self.token = token
        self.cookie = secrets.token_hex(32)  # what a browser keeps in place of the token; a restart ends every login

    def admits(self, headers: Headers) -> bool:
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.cookie.encode())

    def is_token(self, given: str) -> bool:
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending

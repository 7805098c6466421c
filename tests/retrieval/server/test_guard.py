"""The guard alone, asked without a socket: each of its rules on both sides."""

import asyncio
import json

import pytest

pytest.importorskip("fastapi")
import contextlib

from starlette.datastructures import Headers

from dmae.retrieval.server import security
from dmae.retrieval.server.options import ServerOptions
from dmae.retrieval.server.security import BodyRefused, BoundedBody, Guard, Session, same_origin

TOKEN = "a-long-enough-token"


def request(method: str = "GET", path: str = "/", host: str | None = "localhost", **headers: str) -> dict:
    """An ASGI scope; header names with _ for -."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()} | (
        {"host": host} if host else {}
    )
    raw = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw}


def refused(scope: dict, **options) -> tuple[int, str] | None:
    """(status, what is told) of a refusal, or None."""
    given = ServerOptions(**options)
    reply = Guard(None, given, Session(given.token))._refusal(scope, Headers(scope=scope))
    if reply is None:
        return None
    return reply.status_code, json.loads(reply.body)["detail"] if reply.body else reply.headers["location"]


def test_a_request_must_name_this_server():
    told = "this server does not answer to the name {!r}; add it with: dmae serve … --name NAME"
    assert refused(request()) is None
    assert refused(request(host=None)) == (421, told.format(""))
    assert refused(request(host="a" * 201)) == (421, told.format("a" * 200))
    assert refused(request(host="videos.home"), names=("Videos.Home",)) is None


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost:7860"}, False),
        ({"origin": "http://localhost:7860"}, True),
        ({"origin": "http://LOCALHOST:7860"}, True),
        ({"origin": "http://evil-localhost:7860"}, False),
        ({"origin": "http://localhost:7861"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_a_change_comes_from_our_own_pages_or_from_a_program(headers, ours):
    host = "LocalHost:7860"
    assert same_origin(Headers({"host": host, **headers})) == ours
    told = (403, "a page of another site cannot change anything here")
    named = {name.replace("-", "_"): value for name, value in headers.items()}
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert refused(request(method, host=host, **named)) == (None if ours else told)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert refused(request(method, host=host, **named)) is None


def test_an_announced_length_is_a_number_within_the_bound():
    bound = {"max_body_bytes": 3 << 20}
    assert refused(request("POST", content_length=str(3 << 20)), **bound) is None
    assert refused(request("POST", content_length=str((3 << 20) + 1)), **bound) == (413, "at most 3 MB are accepted")
    assert refused(request("POST"), max_body_bytes=0) is None
    for length in ("", "-1", "1.5", "nonsense", "0x10", "²"):
        assert refused(request(content_length=length)) == (400, "the Content-Length header is not a number")
    scope = request("POST", content_length=str((3 << 20) + 1))
    guard = Guard(None, ServerOptions(**bound), Session(None))
    assert guard._refusal(scope, Headers(scope=scope)).headers["connection"] == "close"


def test_without_the_token_only_the_way_in_is_open():
    for path in ("/health", "/login", "/static/style.css", "/static/"):
        assert refused(request(path=path), token=TOKEN) is None
    unknown, page = (401, "give the token: Authorization: Bearer TOKEN"), {"accept": "text/html,*/*"}
    for path in ("/", "/healthx", "/health/", "/static", "/login/x", "/api/search", "/api/videos/0/file", "/docs"):
        assert refused(request(path=path), token=TOKEN) == unknown
        assert refused(request("POST", path, **page), token=TOKEN) == unknown
        asked = refused(request(path=path, **page), token=TOKEN)
        assert asked == (unknown if path.startswith("/api/") else (303, "/login"))
        assert refused(request(path=path, authorization=f"Bearer {TOKEN}"), token=TOKEN) is None
        assert refused(request(path=path)) is None


def test_a_cookie_is_the_whole_one_of_this_process():
    session, other = Session(TOKEN), Session(TOKEN)
    ours = session.cookie
    assert len(ours) == 64 and ours != other.cookie
    for cookie, admitted in (
        (ours, True), (other.cookie, False), (ours[:8], False), (ours[:-1], False), (ours + "0", False),
        (ours[:-1] + ("0" if ours[-1] != "0" else "1"), False), ("", False), (TOKEN, False),
    ):  # fmt: skip
        assert session.admits(Headers({"cookie": f"a=b; dmae_session={cookie}"})) == admitted
    assert not session.admits(Headers({"cookie": "a,b=1"})), "no cookie that a browser would send"
    assert not session.admits(Headers({})) and not session.admits(Headers({"cookie": f"session={ours}"}))
    for given, admitted in (
        (f"Bearer {TOKEN}", True), (f"bEARER  {TOKEN} ", True), (f"Basic {TOKEN}", False), (TOKEN, False),
        (f"Bearer {TOKEN[:-1]}", False), (f"Bearer {TOKEN}x", False), ("Bearer", False),
    ):  # fmt: skip
        assert session.admits(Headers({"authorization": given})) == admitted
    assert Session(None).admits(Headers({})) and Session(None).is_token("anything")


def body_of(messages: list[dict], limit: int) -> tuple[BoundedBody, list[dict], list[dict]]:
    waiting, sent = iter(messages), []

    async def receive():
        return next(waiting)

    async def send(message):
        sent.append(message)

    body, got = BoundedBody(receive, send, limit), []

    async def read():
        for _ in messages:
            got.append(await body.receive())

    with contextlib.suppress(BodyRefused):
        asyncio.run(read())
    return body, got, sent


def piece(size: int, more: bool) -> dict:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


def test_a_body_is_counted_as_it_comes():
    gone = {"type": "http.disconnect"}
    for sizes, limit, whole in (((4, 6), 10, True), ((4, 7), 10, False), ((11,), 10, False), ((0,), 0, True)):
        pieces = [piece(size, place < len(sizes) - 1) for place, size in enumerate(sizes)]
        body, got, _ = body_of([*pieces, gone], limit)
        assert got == ([*pieces, gone] if whole else pieces[:-1]) and body.seen == sum(sizes)
        assert (body.refusal is None) == whole
    body, _, sent = body_of([piece((3 << 20) + 1, True)], 3 << 20)
    assert (body.refusal.status_code, body.refusal.headers["connection"]) == (413, "close")
    assert json.loads(body.refusal.body) == {"detail": "at most 3 MB are accepted"}
    asyncio.run(body.send({"type": "http.response.start"}))
    assert sent == [] and not body.answering, "what an application makes of a refusal is kept back"
    body, _, sent = body_of([piece(1, False)], 10)
    asyncio.run(body.send({"type": "http.response.start"}))
    body.refusal = "too late"
    asyncio.run(body.send({"type": "http.response.body"}))
    assert len(sent) == 2 and body.answering, "an answer that has begun is sent whole"


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.01)

    async def never():
        await asyncio.Event().wait()

    body = BoundedBody(never, None, 10)
    with pytest.raises(BodyRefused):
        asyncio.run(body.receive())
    assert (body.refusal.status_code, body.refusal.headers["connection"]) == (408, "close")
    assert json.loads(body.refusal.body) == {"detail": "no data came for 0 seconds"}


@pytest.mark.parametrize("last", [{"more_body": False}, {}])
def test_who_has_sent_everything_may_wait_for_its_answer(monkeypatch, last):
    """What comes then is that the client goes away, after however long."""
    coming = iter([{"type": "http.request", "body": b"a", **last}, {"type": "http.disconnect"}])

    async def receive():
        message = next(coming)
        if message["type"] == "http.disconnect":
            monkeypatch.setattr(security, "BODY_SECONDS", 0)
            await asyncio.sleep(0)
        return message

    async def both():
        body = BoundedBody(receive, None, 10)
        first = await body.receive()
        monkeypatch.setattr(security, "BODY_SECONDS", 0)
        return first["type"], (await body.receive())["type"], body.refusal

    assert asyncio.run(both()) == ("http.request", "http.disconnect", None)


def test_an_answer_that_has_begun_is_not_refused_once_more():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    async def receive():
        return piece(6, False)

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Guard(app, ServerOptions(max_body_bytes=5), Session(None))(request("POST"), receive, send))
    assert sent == ["http.response.start"]


def test_the_application_is_asked_behind_the_guard_and_its_own_headers_stay():
    asked, sent = [], []

    async def app(scope, receive, send):
        asked.append(scope)
        if scope["type"] == "http":
            await receive()
            start = {"type": "http.response.start", "status": 200, "headers": [(b"referrer-policy", b"origin")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"hello"})

    def call(scope, size=1):
        async def receive():
            return piece(size, False)

        async def send(message):
            sent.append(message)

        sent.clear()
        asyncio.run(Guard(app, ServerOptions(max_body_bytes=5), Session(None))(scope, receive, send))
        return sent

    start, body = call(request())
    found = dict(Headers(raw=start["headers"]))
    assert body["body"] == b"hello" and found == {
        "referrer-policy": "origin",
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
    }
    start, body = call(request("POST"), size=6)
    assert start["status"] == 413 and (b"x-content-type-options", b"nosniff") in start["headers"] and len(asked) == 2
    start, _ = call(request(host="attacker.example"))
    assert start["status"] == 421 and len(asked) == 2
    assert call({"type": "lifespan"}) == [] and asked[2] == {"type": "lifespan"}

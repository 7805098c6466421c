"""How many connections a client may hold and how long it may take to ask, without a socket or a clock."""

import asyncio
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from dmae.retrieval.server import connections

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Transport:
    """The other side of a connection: what was written, and whether it was closed."""

    def __init__(self, client):
        self.client, self.written, self.closed = client, [], False

    def get_extra_info(self, name):
        return {"peername": self.client, "sockname": ("127.0.0.1", 80)}.get(name)

    def write(self, data):
        self.written.append(data)

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        pass

    resume_reading = pause_reading


class Timer:
    """What `call_later` was asked for."""

    def __init__(self, seconds, call):
        self.seconds, self.call, self.cancelled = seconds, call, False

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def connect():
    """connect(client) -> (protocol, its transport, its timers); requests are answered when `connect.go` is set."""
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", log_level="critical")
    protocol_class = connections.limited_protocol(2)

    def connect(client=("10.0.0.1", 5)):
        protocol, timers = protocol_class(config, ServerState(), {}, SimpleNamespace()), []

        def call_later(seconds, call):
            timers.append(Timer(seconds, call))
            return timers[-1]

        protocol.loop.call_later, protocol.loop.create_task = call_later, asyncio.ensure_future
        transport = Transport(client)
        protocol.connection_made(transport)
        return protocol, transport, timers

    connect.go, connect.held = go, protocol_class.held
    return connect


def test_connections_are_counted_by_client(connect):
    (first, one, _), (second, two, _) = connect(), connect()
    unix, *_ = connect(None)
    assert connect.held == {"10.0.0.1": 2, "": 1} and not one.closed and not two.closed and not one.written
    third, refused, _ = connect()
    assert refused.closed and refused.written == [connections.TOO_MANY] and connect.held["10.0.0.1"] == 3
    assert not connect(("10.0.0.2", 5))[1].closed
    for protocol, held in ((third, 2), (first, 1)):
        protocol.connection_lost(None)
        assert connect.held["10.0.0.1"] == held
    second.connection_lost(None)
    unix.connection_lost(None)
    assert connect.held == {"10.0.0.2": 1}, "nobody is remembered for ever"
    assert first not in first.connections, "what the server does when a connection ends is done too"


def test_a_client_has_a_while_to_ask_and_the_server_all_the_time_to_answer(connect):
    async def talk():
        protocol, transport, timers = connect()
        waiting = lambda: [timer for timer in timers if timer.call == transport.close and not timer.cancelled]  # noqa: E731
        (timer,) = waiting()
        assert timer.seconds == connections.REQUEST_SECONDS
        protocol.data_received(ASK[:20])
        assert waiting() == [timer] == timers, "the time runs on from connecting"
        protocol.data_received(ASK[20:])
        assert waiting() == []
        protocol.data_received(ASK[:20])
        assert waiting() == [], "the next request is not waited for while this one is answered"
        connect.go.set()
        while not protocol.cycle.response_complete:
            await asyncio.sleep(0)
        assert transport.written[0].startswith(b"HTTP/1.1 204") and waiting() == []
        protocol.data_received(ASK[20:30])
        (again,) = waiting()
        assert again is not timer
        protocol.data_received(ASK[30:])
        assert waiting() == []
        while not protocol.cycle.response_complete:
            await asyncio.sleep(0)
        protocol.data_received(ASK[:5])
        assert len(waiting()) == 1
        protocol.connection_lost(None)
        assert waiting() == [], "nothing is closed later that is gone now"

    asyncio.run(talk())

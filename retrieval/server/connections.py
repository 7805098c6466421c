"""uvicorn's HTTP protocol with two bounds that only the connection can keep: how many one client holds, and how long
it may take to say what it wants."""

import asyncio
from collections import Counter

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 20.0  # from the first byte of a request, or from connecting, to the end of its headers
TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"detail": "this address holds too many connections; close some"}'
)


def limited_protocol(per_client: int) -> type[H11Protocol]:
    """A protocol class that turns away a client's connections beyond `per_client`, and those that never ask."""

    class LimitedProtocol(H11Protocol):
        held: Counter = Counter()  # open connections by client address
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._address = self.client[0] if self.client else ""
            self.held[self._address] += 1
            self._wait(True)
            if self.held[self._address] > per_client:
                transport.write(TOO_MANY)
                transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answered = self.cycle is None or self.cycle.response_complete
            self._wait(answered and bool(self.conn.trailing_data[0]))

        def connection_lost(self, exc) -> None:
            self._wait(False)
            self.held[self._address] -= 1
            if self.held[self._address] <= 0:
                del self.held[self._address]
            super().connection_lost(exc)

        def _wait(self, incomplete: bool) -> None:
            """Give a request whose headers are not complete a while; one that is complete, or none, all the time."""
            if incomplete and self._waiting is None:
                self._waiting = self.loop.call_later(REQUEST_SECONDS, self.transport.close)
            elif not incomplete and self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return LimitedProtocol

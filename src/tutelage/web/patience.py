"""Connections that wait for nothing: for a head that does not come, a body that drips, a client that does not read.

What uvicorn leaves open for ever: a connection that says nothing (or a byte a minute) holds a place, and an answer that
nobody takes holds its generation. Each has its time; past it the connection is cut, and the request behind it ends as
if its client had left.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 20.0
"""Seconds for the head of a request, from its first byte, or from the connection on."""
BODY_S = 60.0
"""Seconds for the next SLICE of its body."""
SLICE = 65_536
READ_S = 30.0
"""Seconds for which a client may take nothing of what is written to it."""
_SAID = b'{"error":{"message":"too many connections are open","type":"server_error","param":null,"code":"overloaded"}}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    + f"content-length: {len(_SAID)}\r\n\r\n".encode()
    + _SAID
)


class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with a time for everything that the other side does."""

    most = 4096
    """Connections open at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._awaited, self._since = "", 0
        if len(self.connections) > self.most:
            cast(asyncio.Transport, transport).write(_FULL)
            transport.close()
            return
        self._await("head")

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self._await("head")
        elif not cycle.more_body:
            self._await("")
        else:
            self._since += len(data)
            if self._since >= SLICE:
                self._awaited = ""
            self._await("body")

    def on_response_complete(self) -> None:
        """An answer is out; uvicorn waits for the next request."""
        self._await("")
        super().on_response_complete()

    def _await(self, what: str) -> None:
        """Wait for something else; that more of the same came makes the time no longer."""
        if what == self._awaited:
            return
        self._awaited, self._since = what, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if what and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_S if what == "head" else BODY_S, self._cut)

    def _cut(self) -> None:
        self.transport.abort()

    def pause_writing(self) -> None:
        """The client is slower than we are."""
        super().pause_writing()
        if self._reader is None:
            self._reader = self.loop.call_later(READ_S, self._cut)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._caught_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._caught_up()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _caught_up(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


def patient(most: int) -> type[asyncio.Protocol]:
    """The protocol with so many connections at once."""
    return type("Patient", (Patient,), {"most": most})

"""uvicorn's HTTP/1.1, with a limit of connections and without tracebacks for bytes that are not HTTP.

Knows bytes and connections; no routes. It is built on h11: an installed httptools, which accepts more, is not taken.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.http.connections import ConnectionConfig

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


# Bytes that are read and parsed at once. asyncio's 256 KiB of tiny headers or chunks hold up the others for 0.2 s.
READ_SIZE = 1 << 14


class HttpProtocol(H11Protocol):
    """HTTP connection that is one of a limited number, and closes after bytes which are not HTTP.

    uvicorn's own answer to a broken body passes through h11, which then refuses the application's: 70 lines of
    traceback in the log for 100 bytes from anybody.
    """

    def __init__(self, config: ConnectionConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._others = config.connections
        self._is_counted = False

    @property
    def address(self) -> str:
        """Address of the peer, which may be a proxy."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # of asyncio's socket transports
        super().connection_made(transport)
        self._is_counted = self._others.add(self)
        if not self._is_counted:
            transport.write(TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._others.forget(self)
        if self._is_counted:
            self._others.remove(self.address)

    def on_response_complete(self) -> None:
        self._others.set_idle(self)
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._others.forget(self)  # stays counted until the WebSocket is lost
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(BAD_REQUEST)
        self.transport.close()

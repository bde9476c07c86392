"""Timeouts that no option of uvicorn gives: for requests that do not arrive, and answers that are not read.

Without them, one client of a directly exposed server holds connections and answers in memory for as long as it likes.
A reverse proxy has its own (`deploy/nginx/zimage.conf`). Knows connections; no routes.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_SECONDS = 20.0  # for the head of a request to arrive
WRITE_SECONDS = 60.0  # in which the client takes no byte of an answer; as nginx's send_timeout
TICKS_PER_SECOND = 10  # of uvicorn
BYTES_ACKED = 120  # offset of tcpi_bytes_acked in Linux's struct tcp_info


class TimeoutServer(uvicorn.Server):
    """uvicorn server that checks its connections once a second, until the end of its shutdown."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._timeouts = ConnectionTimeouts()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            self._check_connections()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        checking = asyncio.create_task(self._check_until_cancelled())  # uvicorn does not tick any more
        await super().shutdown(sockets=sockets)
        checking.cancel()

    async def _check_until_cancelled(self) -> None:
        while True:
            self._check_connections()
            await asyncio.sleep(1.0)

    def _check_connections(self) -> None:
        self._timeouts.abort_stalled(self.server_state.connections, time.monotonic())


class ConnectionTimeouts:
    """Connections that wait for their clients, with the time of each client's last progress."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Protocol, tuple[object, float]] = {}

    def abort_stalled(self, connections: Iterable[asyncio.Protocol], now: float) -> None:
        """Abort the connections whose clients made no progress for too long.

        Args:
            now: seconds on a monotonic clock.
        """
        waits: dict[asyncio.Protocol, tuple[object, float]] = {}
        for connection in connections:
            if isinstance(connection, H11Protocol | WebSocketsSansIOProtocol) and (wait := _wait(connection)):
                seconds, progress = wait
                before, since = self._waits.get(connection, (progress, now))
                waits[connection] = progress, since if progress == before else now
                if now - waits[connection][1] >= seconds:
                    connection.transport.abort()
        self._waits = waits


def _wait(connection: H11Protocol | WebSocketsSansIOProtocol) -> tuple[float, object] | None:
    """Return the timeout in seconds and the client's progress; None if the connection does not wait for its client."""
    if unsent := connection.transport.get_write_buffer_size():
        return WRITE_SECONDS, (unsent, _acknowledged(connection.transport))
    if isinstance(connection, WebSocketsSansIOProtocol):
        return None if connection.handshake_initiated else (HEAD_SECONDS, None)
    is_answered = connection.cycle is None or connection.cycle.response_complete
    return (HEAD_SECONDS, connection.cycle) if is_answered else None


def _acknowledged(transport: asyncio.Transport) -> int:
    """Return the number of bytes that the client's system has acknowledged; 0 where the kernel does not count them."""
    size = BYTES_ACKED + 8
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(struct.unpack_from("Q", info.ljust(size, b"\0"), BYTES_ACKED)[0])

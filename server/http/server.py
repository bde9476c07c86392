"""uvicorn with an application: answers probes while the worker starts, and reports when the worker is ready.

Knows sockets and shutdown; no routes. Of jobs it knows only that they drain.
"""

import asyncio
import logging
import math
import signal
import socket
import time

import psutil
from fastapi import FastAPI
from starlette.types import ASGIApp

from server.api.body import MAX_BODY
from server.http.connections import ConnectionConfig, Connections
from server.http.leaving import TICK, ClosingMiddleware, stop_listening
from server.http.pieces import PiecesMiddleware
from server.http.protocol import HttpProtocol
from server.http.sockets import bracketed
from server.http.timeouts import TimeoutServer
from server.http.websocket import WebSocketProtocol
from server.jobs.service import JobService

log = logging.getLogger(__name__)

MAX_MESSAGE = MAX_BODY  # bytes of a WebSocket message from a client
PING_SECONDS = 20.0  # between pings of a WebSocket, and for their answers
KEEP_ALIVE_SECONDS = 5  # for the next request of a connection to begin
ACCEPT_AT_ONCE = 32  # connections; uvicorn's backlog, which asyncio also takes for this
WAITING = 2048  # connections that the system keeps until they are accepted


def config(app: ASGIApp, grace: float, connections: Connections | None = None) -> ConnectionConfig:
    """Return uvicorn's configuration.

    Args:
        connections: those of the server; by default a thousand may be open.
        grace: seconds to finish requests after SIGTERM or SIGINT.
    """
    return ConnectionConfig(
        PiecesMiddleware(app),
        connections or Connections(1000),
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # images do not compress; 2 MB would hold the event loop for 50 ms
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_config=None,
        access_log=False,  # `RequestIdMiddleware` writes one
        proxy_headers=False,  # `ProxyMiddleware` reads them
        headers=[("x-content-type-options", "nosniff")],
        backlog=ACCEPT_AT_ONCE,
        timeout_graceful_shutdown=math.ceil(grace),
    )


class HttpServer(TimeoutServer):
    """HTTP server of an application.

    Args:
        jobs: the application's jobs, which drain when the server shuts down.
        grace: seconds to finish requests after SIGTERM or SIGINT.
        drain: seconds to go on after SIGTERM, before the grace period, so that load balancers move on.
        starting: start of the first worker; the server stops if it fails.
        connections: those of the server.
    """

    def __init__(
        self,
        app: FastAPI,
        jobs: JobService,
        grace: float,
        drain: float,
        starting: "asyncio.Task[None]",
        connections: Connections,
    ) -> None:
        super().__init__(config(ClosingMiddleware(app, lambda: jobs.is_leaving), grace, connections))
        self._jobs, self._drain, self._starting = jobs, drain, starting
        self._sockets: list[socket.socket] = []
        self._announcement: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        assert sockets is not None
        self._sockets = sockets
        for sock in sockets:
            sock.listen(WAITING)
        self._announcement = asyncio.create_task(self._announce(*sockets[0].getsockname()[:2]))

    async def main_loop(self) -> None:
        await super().main_loop()
        if self._drain and signal.SIGTERM in self._captured_signals:
            await self._leave()

    async def _leave(self) -> None:
        """Serve for some seconds while `/ready` is 503 and answers close their connections; a second signal ends it."""
        log.info("leaving: requests are served for %g s more", self._drain)
        self._jobs.leave()
        until, ticks = time.monotonic() + self._drain, 0
        while time.monotonic() < until and len(self._captured_signals) == 1:
            await asyncio.sleep(TICK)
            await self.on_tick(ticks := ticks + 1)
        await stop_listening(self, self._sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._announcement is not None:
            self._announcement.cancel()
        self._jobs.drain()
        await super().shutdown(sockets=sockets)

    async def _announce(self, host: str, port: int) -> None:
        """Print that the server is ready once the first worker is, or stop if the worker cannot start."""
        await asyncio.wait([self._starting])
        if (error := self._starting.exception()) is not None:
            self._jobs.fail_connected(str(error))
            self.should_exit = True
            return
        seconds = time.time() - psutil.Process().create_time()
        print(f"zimage-serve: ready on http://{bracketed(host)}:{port} in {seconds:.2f} s", flush=True)

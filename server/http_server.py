"""uvicorn around the application: says when it is ready, and what ends when.

Knows sockets and signals; nothing of jobs but that there are some.
"""

import socket
import time

import uvicorn

from server.access import Access
from server.app import create_app
from server.dispatcher import Dispatcher
from server.sockets import bracketed


class HttpServer(uvicorn.Server):
    """Serves a dispatcher's application until SIGTERM or SIGINT.

    Args:
        grace: seconds for pictures being drawn when it is told to stop.
        started: `time.perf_counter()` at the start, for the ready line.
    """

    def __init__(self, dispatcher: Dispatcher, access: Access, grace: float, started: float) -> None:
        app = create_app(dispatcher, access, grace)
        super().__init__(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=int(grace)))
        self._dispatcher, self._started_at = dispatcher, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        seconds = time.perf_counter() - self._started_at
        print(f"zimage-serve: ready on http://{bracketed(host)}:{port} in {seconds:.2f} s", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._dispatcher.is_draining = True
        await super().shutdown(sockets=sockets)

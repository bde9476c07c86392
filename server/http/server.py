"""uvicorn around the application: answers probes from the first moment, says when it can generate, and what ends when.

Knows sockets and signals; nothing of jobs but that there are some.
"""

import asyncio
import math
import socket
import time

import psutil
import uvicorn
from fastapi import FastAPI

from server.api.access import Access
from server.api.body import MAX_BODY
from server.app import create_app
from server.http.protocol import HttpProtocol
from server.http.sockets import bracketed
from server.http.timeouts import TimeoutServer
from server.http.websocket import WebSocketProtocol
from server.jobs.dispatcher import Dispatcher

MAX_MESSAGE = MAX_BODY  # bytes of a WebSocket's message, which may hold what is typed into the page


def config(app: FastAPI, grace: float) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=MAX_MESSAGE,
        log_config=None,
        access_log=False,  # `request_id` has one
        timeout_graceful_shutdown=math.ceil(grace),
    )


class HttpServer(TimeoutServer):
    """Serves a dispatcher's application until SIGTERM or SIGINT.

    Args:
        grace: seconds for images being generated when it is told to stop.
        page: whether there is one at `/`.
        starting: the first worker's start; if it fails, the server ends.
    """

    def __init__(
        self, dispatcher: Dispatcher, access: Access, grace: float, page: bool, starting: "asyncio.Task[None]"
    ) -> None:
        super().__init__(config(create_app(dispatcher, access, page), grace))
        self._dispatcher, self._starting = dispatcher, starting
        self._announcing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        assert sockets is not None
        self._announcing = asyncio.create_task(self._announce(*sockets[0].getsockname()[:2]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
        self._dispatcher.drain()
        await super().shutdown(sockets=sockets)

    async def _announce(self, host: str, port: int) -> None:
        """Says when the first worker is ready."""
        await asyncio.wait([self._starting])
        if (error := self._starting.exception()) is not None:
            self._dispatcher.give_up(str(error))
            self.should_exit = True
            return
        seconds = time.time() - psutil.Process().create_time()
        print(f"zimage-serve: ready on http://{bracketed(host)}:{port} in {seconds:.2f} s", flush=True)

"""The end of a server behind load balancers, without a request that is refused or reset. Knows connections; no jobs.

A connection that the system has accepted, or that has not sent its request yet, would be reset when the server closes
its socket, and a proxy does not repeat a POST that it has sent.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

TICK = 0.1  # seconds
FIRST_REQUEST_SECONDS = 1.0  # for the first request of a connection to arrive, after the server has stopped listening


class ClosingMiddleware:
    """Ends each connection with its answer (Connection: close) while the server leaves."""

    def __init__(self, app: ASGIApp, is_leaving: Callable[[], bool]) -> None:
        self._app, self._is_leaving = app, is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_leaving():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing if scope["type"] == "http" else send)


async def stop_listening(server: uvicorn.Server, sockets: Iterable[socket.socket]) -> None:
    """Close the sockets that a server listens on, and serve every connection that they have accepted."""
    waiting = [accepted for sock in sockets for accepted in _accepted(sock)]
    for listener in server.servers:
        listener.close()
    loop, config, state = asyncio.get_running_loop(), server.config, server.server_state

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn calls it
            config=config, server_state=state, app_state=server.lifespan.state
        )

    for accepted in waiting:
        await loop.connect_accepted_socket(protocol, accepted)
    until = loop.time() + FIRST_REQUEST_SECONDS
    while loop.time() < until and any(isinstance(one, H11Protocol) and one.cycle is None for one in state.connections):
        await asyncio.sleep(TICK)


def _accepted(sock: socket.socket) -> list[socket.socket]:
    """Return the connections that wait to be accepted."""
    found = []
    while True:
        try:
            found.append(sock.accept()[0])
        except OSError:  # none, or no descriptor is left
            return found

"""uvicorn as the server configures it, around any application, in the test's event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from server.http.server import config
from server.http.timeouts import ConnectionTimeouts

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FakeServer:
    """uvicorn on a free port, whose timeouts run on the test's clock."""

    def __init__(self, app: ASGIApp) -> None:
        self.server = uvicorn.Server(config(app, grace=0))
        self.timeouts = ConnectionTimeouts()

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    async def connect(self, limit: int = 1 << 16) -> Streams:
        streams = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        await self.until(lambda: len(self.server.server_state.connections) > 0)
        return streams

    def check(self, now: float) -> None:
        self.timeouts.abort_stalled(set(self.server.server_state.connections), now)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Wait until the system takes no more of an answer."""
        before = -1
        while before != self.unsent:
            before = self.unsent
            await asyncio.sleep(0.2)

    @property
    def unsent(self) -> int:
        """Bytes that the system has not taken."""
        return sum(each.transport.get_write_buffer_size() for each in self.server.server_state.connections)


@asynccontextmanager
async def fake_server(app: ASGIApp) -> AsyncIterator[FakeServer]:
    found = FakeServer(app)
    found.server.config.load()
    found.server.lifespan = found.server.config.lifespan_class(found.server.config)
    found.server.config.port = 0
    await found.server.startup()
    try:
        yield found
    finally:
        found.server.force_exit = True
        for each in list(found.server.server_state.connections):
            each.transport.abort()
        await found.server.shutdown()
        await found.server.lifespan.shutdown()

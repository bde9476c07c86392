"""Large answers: a client that does not read holds one piece of them, and memory goes back to the system."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from fakes.http_server import fake_server
from fakes.processes import FAKE_SERVER, process, ready_url
from fakes.raw_client import HANDSHAKE, MEGABYTE, connected
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from server.http.pieces import PIECE, PiecesMiddleware

BODY = bytes(range(256)) * (32 * MEGABYTE // 256)  # more than the system keeps for a connection
TEXT = "a€" * (8 * MEGABYTE)
BUFFER = 3 * PIECE + 1024  # bytes: asyncio's limit before it waits, a piece of TEXT, frames
CLIENTS = 100
IMAGE = 2_000_000  # bytes


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with BODY or, in two parts, at /parts; to WebSockets with TEXT twice."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.gather(*(send({"type": "websocket.send", "text": TEXT}) for _ in range(2)))
        await send({"type": "websocket.close"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/parts":
            await send({"type": "http.response.body", "body": BODY, "more_body": True})
        await send({"type": "http.response.body", "body": BODY})


def test_body_is_sent_in_slices_that_are_no_copies() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(PiecesMiddleware(large)({"type": "http", "path": "/parts"}, receive, send))
    pieces = sent[1:]
    assert all(len(each["body"]) <= PIECE and each["body"].obj is BODY for each in pieces)
    assert b"".join(each["body"] for each in pieces) == BODY * 2
    assert [each["more_body"] for each in pieces] == [True] * (len(pieces) - 1) + [False]


def test_starlette_s_test_client_reads_a_body_in_pieces() -> None:
    assert TestClient(PiecesMiddleware(large)).get("/").content == BODY


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", HANDSHAKE % b"/"], ids=["http", "websocket"]
)
def test_unread_answer_holds_one_piece_in_the_connection(request_: bytes) -> None:
    async def run() -> None:
        async with fake_server(large) as server:
            _, writer = await server.connect(limit=1024)
            writer.write(request_)
            await server.until(lambda: server.unsent > 0)
            await server.settle()
            assert server.unsent <= BUFFER
            writer.close()
            await writer.wait_closed()

    asyncio.run(run())


def test_large_texts_arrive_whole_and_uncompressed_with_pongs_between_their_fragments() -> None:
    async def run() -> None:
        async with (
            fake_server(large) as server,
            connect(f"ws://127.0.0.1:{server.port}/", max_size=None) as client,
        ):
            assert client.protocol.extensions == []
            pong = await client.ping()
            fragments = [each async for each in client.recv_streaming()]
            assert pong.done() and len(fragments) > 100
            assert "".join(fragments) == TEXT
            assert await client.recv() == TEXT
            await client.wait_closed()
            assert client.close_code == 1000

    asyncio.run(run())


def test_close_between_two_fragments_ends_the_connection_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with fake_server(large) as server:
            async with connect(f"ws://127.0.0.1:{server.port}/", max_size=None, close_timeout=1) as client:
                async for _ in client.recv_streaming():
                    break
            await server.until(lambda: not server.server.server_state.connections)

    asyncio.run(run())
    assert not [record for record in caplog.records if record.exc_info]


def test_message_that_is_cancelled_halfway_ends_the_connection() -> None:
    async def cancelling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            sending = asyncio.create_task(send({"type": "websocket.send", "text": TEXT}))
            await asyncio.sleep(0.2)
            sending.cancel()
            await receive()

    async def run() -> None:
        async with (
            fake_server(cancelling) as server,
            connect(f"ws://127.0.0.1:{server.port}/", max_size=None) as client,
        ):
            await server.until(lambda: server.unsent > 0)
            await server.until(lambda: not server.server.server_state.connections)
            with pytest.raises(ConnectionClosedError):
                await client.recv()

    asyncio.run(run())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one finished task, whose image has the size of a real one."""
    path = tmp_path_factory.mktemp("database") / "jobs.db"
    with process(*FAKE_SERVER, "0", "1", str(path)) as child:
        url = ready_url(child)
        httpx.post(
            f"{url}/v1/images/generations", json={"prompt": "a cat"}, headers={"idempotency-key": "1"}, timeout=30
        )
        child.terminate()
        child.wait()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE images SET data = randomblob(?)", (IMAGE,))
    connection.close()
    return path


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("path", ["/v1/task/{}/events", "/v1/task/{}/ws"])
def test_memory_of_clients_that_do_not_read_is_given_back(database: Path, path: str) -> None:
    with process(*FAKE_SERVER, "0", "1", str(database)) as child:
        url = ready_url(child)
        target = path.format(httpx.get(f"{url}/v1/tasks").json()["tasks"][0]["task_id"]).encode()
        request = HANDSHAKE % target if target.endswith(b"ws") else b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % target

        def resident() -> int:
            return int(psutil.Process(child.pid).memory_info().rss)

        def stall(clients: int) -> None:
            with ExitStack() as open_clients:
                sockets = [open_clients.enter_context(connected(url)) for _ in range(clients)]
                for client in sockets:
                    client.sendall(request)
                for client in sockets:
                    assert b"".join(client.recv(1 << 12) for _ in range(16))  # the whole answer has been made

        stall(10)  # imports, threads and caches
        time.sleep(1)
        before = resident()
        stall(CLIENTS)
        until(lambda: resident() < 1.1 * before)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("after 10 s")

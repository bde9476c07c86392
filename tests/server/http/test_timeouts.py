"""Clients that do not finish a request or do not read an answer lose their connection, without a proxy in front."""

import asyncio
import time
from contextlib import suppress

import httpx
import pytest
from fakes.http_server import FakeServer, fake_server
from fakes.loop import FakeLoop
from fakes.raw_client import HANDSHAKE, connected, read_to_end
from fakes.server import serving
from starlette.types import Receive, Scope, Send

from server.http import timeouts
from server.http.server import config
from server.http.sockets import bind_socket
from server.http.timeouts import HEAD_SECONDS, WRITE_SECONDS, TimeoutServer

ANSWER = 32 << 20  # bytes; more than the system keeps for a connection


async def large_answer(scope: Scope, _: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % ANSWER)]})
        await send({"type": "http.response.body", "body": bytes(ANSWER)})


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """True once the server closes the connection; bytes that are left are dropped."""
    with suppress(ConnectionError):
        async with asyncio.timeout(30):
            while await reader.read(1 << 16):
                pass
    return True


async def is_open(server: FakeServer) -> bool:
    await asyncio.sleep(0.05)
    return len(server.server.server_state.connections) == 1


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n"])
def test_incomplete_head_is_closed_after_its_timeout(head: bytes) -> None:
    async def run() -> None:
        async with fake_server(large_answer) as server:
            reader, writer = await server.connect()
            writer.write(head)
            server.check(100.0)
            server.check(100.0 + HEAD_SECONDS - 0.1)
            assert await is_open(server)
            writer.write(b"x")  # does not extend the timeout
            server.check(100.0 + HEAD_SECONDS)
            assert await is_closed(reader)
            writer.close()

    asyncio.run(run())


def test_request_body_sent_after_the_answer_is_closed_after_the_head_timeout() -> None:
    async def run() -> None:
        async with fake_server(large_answer) as server:
            reader, writer = await server.connect()
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
            await reader.readexactly(ANSWER)
            for second in range(int(HEAD_SECONDS)):
                writer.write(b"x")
                server.check(100.0 + second)
            assert await is_open(server)
            server.check(100.0 + HEAD_SECONDS)
            assert await is_closed(reader)
            writer.close()

    asyncio.run(run())


def test_each_request_of_a_kept_connection_has_the_whole_head_timeout() -> None:
    async def run() -> None:
        async with fake_server(large_answer) as server:
            reader, writer = await server.connect()
            for number in range(3):
                server.check(100.0 + number * (HEAD_SECONDS - 1))
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(ANSWER)
            assert await is_open(server)
            writer.close()

    asyncio.run(run())


@pytest.mark.timing
def test_unread_answer_is_dropped_after_the_write_timeout_and_a_slow_reader_is_not() -> None:
    async def run() -> None:
        async with fake_server(large_answer) as server:
            reader, writer = await server.connect(limit=1024)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await server.until(lambda: server.unsent > 0)
            await server.settle()
            now = 100.0
            for _ in range(16):  # eight times the timeout in all
                await reader.readexactly(1 << 20)
                server.check(now)
                now += WRITE_SECONDS / 2
            assert await is_open(server) and server.unsent
            await reader.readexactly(1 << 20)
            await server.settle()
            server.check(now)
            server.check(now + WRITE_SECONDS - 0.1)
            assert await is_open(server) and server.unsent
            server.check(now + WRITE_SECONDS)
            await server.until(lambda: not server.server.server_state.connections)
            assert await is_closed(reader)
            writer.close()

    asyncio.run(run())


def test_websocket_handshake_with_a_body_is_closed_after_the_head_timeout() -> None:
    async def run() -> None:
        async with fake_server(large_answer) as server:
            reader, writer = await server.connect()
            writer.write(HANDSHAKE.replace(b"GET", b"POST")[:-2] % b"/" + b"content-length: 2\r\n\r\n{}")
            await asyncio.sleep(0.1)
            server.check(100.0)
            assert await is_open(server)
            server.check(100.0 + HEAD_SECONDS)
            assert await is_closed(reader)
            writer.close()

    asyncio.run(run())


def test_server_checks_its_connections_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "HEAD_SECONDS", 0.2)
    with serving(FakeLoop()) as url:
        with connected(url) as silent, connected(url) as dribbling:
            with suppress(ConnectionError):
                while True:
                    dribbling.send(b"G")
                    time.sleep(0.02)
            assert read_to_end(silent) == b""
        assert httpx.get(f"{url}/health").status_code == 200


def test_client_that_reads_nothing_does_not_hold_up_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "WRITE_SECONDS", 0.2)

    async def run() -> None:
        with bind_socket("127.0.0.1", 0) as sock:
            sock.listen()  # the client waits for the server
            server = TimeoutServer(config(large_answer, grace=3600))
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            reader, writer = await asyncio.open_connection(*sock.getsockname(), limit=1024)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readexactly(1)  # the answer has begun
            server.should_exit = True
            async with asyncio.timeout(30):
                await serving
            assert await is_closed(reader)
            writer.close()

    asyncio.run(run())

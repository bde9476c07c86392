"""Clients below HTTP: bytes that a server receives, and sockets that read slowly or not at all."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import httpx

AT_ONCE = 64  # connections
SILENCE = 0.5  # seconds without a byte after which the server is taken to wait for more
HANG = 20.0  # seconds without a byte after which a server that should answer and close is taken to hang
NGINX_REFUSALS = (501, 505)  # of transfer codings and versions of HTTP that it does not know
MEGABYTE = 1 << 20
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def send(url: str, data: bytes) -> bytes:
    """Send bytes on a new connection, and return what arrives until the server closes it."""
    return asyncio.run(send_one(url, data, silence=HANG))


async def send_one(url: str, data: bytes, silence: float = SILENCE) -> bytes:
    """Send bytes on a new connection, and return what arrives until the server closes it or falls silent."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    with suppress(ConnectionError, TimeoutError):  # the server may close before it has read all
        writer.write(data)
        while chunk := await asyncio.wait_for(reader.read(MEGABYTE), silence):
            answer += chunk
    writer.close()
    return answer


async def send_all(url: str, requests: Iterable[bytes]) -> Counter[int]:
    """Count the answers by status; 0 for connections that were closed or waited for more."""
    free = asyncio.Semaphore(AT_ONCE)
    statuses: Counter[int] = Counter()

    async def one(data: bytes) -> None:
        async with free:
            statuses[checked_status(data, await send_one(url, data))] += 1

    await asyncio.gather(*(one(data) for data in requests))
    return statuses


def checked_status(data: bytes, answer: bytes) -> int:
    """Check the shape of an answer and return its status; 0 for no answer."""
    if not answer:
        return 0
    if not answer.startswith(b"HTTP/1.1 "):  # nginx answers HTTP/0.9, which has no head
        assert b" HTTP/1" not in data, (data[:500], answer[:500])
        return 0
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    code = int(status.split()[1])
    both = (data[:500], answer[:500])
    assert code < 500 or code in NGINX_REFUSALS, both
    if headers.get("content-type") == "application/json" and code >= 400:
        assert headers["x-request-id"], both
        if not data.startswith(b"HEAD "):
            error = json.loads(rest[: int(headers["content-length"])])["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"] and error["code"], both
            assert error["type"] == "invalid_request_error", both
    return code


def connected(url: str, receive_buffer: int = 4096) -> socket.socket:
    """Connect with a receive buffer of a given size in bytes."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    found.settimeout(30)
    found.connect((httpx.URL(url).host, httpx.URL(url).port))
    return found


def upgraded(url: str, path: str) -> socket.socket:
    """Connect a WebSocket."""
    found = connected(url)
    found.sendall(HANDSHAKE % path.encode())
    assert found.recv(1024).startswith(b"HTTP/1.1 101 ")
    return found


def read_to_end(client: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    found = b""
    with suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            found += chunk
    return found

"""Requests that are answered before their large bodies are read get their answers, though the connection closes."""

import asyncio
import time

import pytest
from fakes.loop import FakeLoop
from fakes.raw_client import connected, read_to_end
from fakes.server import serving

from server.api.access import AccessPolicy
from server.http import unread_body
from server.http.unread_body import UnreadBodyMiddleware

KEYS = AccessPolicy(keys=("a-key-of-this-test",))
SIZE = 30 << 20


def head(size: int, kind: str = "application/json", path: str = "/v1/images/generations") -> bytes:
    headers = f"host: a\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {size}"
    return f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("policy", "kind", "status"),
    [(KEYS, "application/json", 401), (None, "text/plain", 415), (None, "application/json", 413)],
)
def test_refusal_arrives_though_the_body_was_not_read(policy: AccessPolicy | None, kind: str, status: int) -> None:
    with serving(FakeLoop(), policy=policy, max_upload=1 << 20) as url:
        for _ in range(5):
            with connected(url) as client:
                client.sendall(head(SIZE, kind) + bytes(SIZE))
                assert read_to_end(client).startswith(f"HTTP/1.1 {status} ".encode())


def test_client_that_falls_silent_is_answered_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_body, "SECONDS", 30.0)
    with serving(FakeLoop(), policy=KEYS) as url, connected(url) as client:
        client.sendall(head(SIZE) + bytes(1000))
        started = time.monotonic()
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - started < 15  # not the 30 s


def test_body_that_the_client_has_not_begun_to_send_is_not_asked_for() -> None:
    with serving(FakeLoop(), policy=KEYS) as url, connected(url) as client:
        client.sendall(head(SIZE).replace(b"connection", b"expect: 100-continue\r\nconnection"))
        assert read_to_end(client).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(("limit", "value"), [("MOST", 5), ("SECONDS", 0.0)])
def test_no_more_is_dropped_than_the_limits_allow(monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(unread_body, limit, value)
    received, sent = [], []

    async def app(_scope: object, _receive: object, send: object) -> None:
        await send({"type": "http.response.start"})  # type: ignore[operator]

    async def receive() -> dict[str, object]:
        received.append(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-length", b"%d" % SIZE)]}
    asyncio.run(UnreadBodyMiddleware(app)(scope, receive, send))  # type: ignore[arg-type]
    assert len(received) == (5 if limit == "MOST" else 0) and len(sent) == 1

"""Clients that do not read what they are sent, or send what is no WebSocket, cost their connection and no more."""

import socket
import time

import httpx
import psutil
import pytest
from fakes.loop import FakeLoop
from fakes.server import serving

from server.http import write_timeout as unread

MEGABYTE = 1 << 20
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
LONG = "a" * 30_000
TASKS = 200  # of which a list is larger than what the system keeps for a connection


def connected(url: str, unasked: int = 4096) -> socket.socket:
    """One that takes so many bytes that nobody has asked it for."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unasked)
    found.settimeout(5)
    found.connect((httpx.URL(url).host, httpx.URL(url).port))
    return found


def upgraded(url: str, path: str) -> socket.socket:
    found = connected(url)
    found.sendall(HANDSHAKE % path.encode())
    assert found.recv(1024).startswith(b"HTTP/1.1 101 ")
    return found


def task(http: httpx.Client, **more: object) -> str:
    answer = http.post("/v1/generate", json={"prompt": "a cat", "num_inference_steps": 1} | more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task_id"])


def test_an_answer_that_nobody_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "LOOK_EVERY", 1.0)
    with serving(FakeLoop()) as url:
        with httpx.Client(base_url=url, headers={"connection": "close"}) as http:
            for _ in range(TASKS):
                task(http, prompt=LONG)
        with connected(url) as silent, connected(url, 1 << 16) as slow:
            for one in (silent, slow):
                one.sendall(b"GET /v1/tasks?limit=200 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            read = b""
            started = time.monotonic()
            while chunk := slow.recv(1 << 14):  # for longer than the silent one is waited for
                read += chunk
                if time.monotonic() - started < 4.0:
                    time.sleep(0.02)
            head, _, body = read.partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head
            assert len(body) > TASKS * len(LONG)
            left = 0
            while chunk := silent.recv(MEGABYTE):
                left += len(chunk)
            assert left < len(read)


def test_pongs_that_nobody_reads_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "LOOK_EVERY", 0.5)
    pings = (b"\x89\xfd\0\0\0\0" + bytes(125)) * 8000
    with serving(FakeLoop(seconds_per_step=0.5)) as url, httpx.Client(base_url=url) as http:
        path = f"/v1/task/{task(http, num_inference_steps=100)}/ws"
        with upgraded(url, path) as flood:
            before = psutil.Process().memory_info().rss
            with pytest.raises(ConnectionError):
                for _ in range(100):
                    flood.sendall(pings)
            assert psutil.Process().memory_info().rss - before < 30 * MEGABYTE


def test_text_that_is_none_closes_a_websocket_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving(FakeLoop(seconds_per_step=0.1)) as url,
        httpx.Client(base_url=url) as http,
        upgraded(url, f"/v1/task/{task(http, num_inference_steps=100)}/ws") as client,
    ):
        client.sendall(b"\x01\x81\0\0\0\0\xc3" + b"\x80\x81\0\0\0\0\xa4")  # a letter in two frames
        client.sendall(b"\x81\x82\0\0\0\0\xff\xfe")
        answer = b""
        while chunk := client.recv(1024):
            answer += chunk
        assert b"\x88\x02\x03\xef" in answer  # close, 1007
    assert not [record for record in caplog.records if record.exc_info]


def test_a_handshake_with_a_body_is_answered() -> None:
    with serving(FakeLoop()) as url:
        for more in (b"content-length: 2\r\n\r\n{}", b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"):
            with connected(url) as client:
                client.sendall(HANDSHAKE.replace(b"GET", b"POST")[:-2] % b"/v1/generate" + more)
                answer = b""
                while chunk := client.recv(1024):
                    answer += chunk
                assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
                assert b"invalid_http" in answer

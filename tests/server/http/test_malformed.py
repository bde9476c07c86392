"""No malformed request is a server error, costs more than its own connection, or leaves anything behind."""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.malformed import messages
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT
from fakes.server import IMAGES, decoded, serving

from server.http import protocol

AT_ONCE = 64  # connections
PATIENCE = 0.5  # seconds without a byte: the server waits for more of the request
BODY = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2}
MEGABYTE = 1 << 20


def generated(url: str) -> list[int]:
    """A correct image's colour: seed, steps, length of the prompt."""
    response = httpx.post(url + IMAGES, json=BODY, timeout=30)
    assert response.status_code == 200, response.text
    return decoded(base64.b64decode(response.json()["data"][0]["b64_json"]))[0, 0].tolist()


async def send(url: str, data: bytes) -> bytes:
    """What comes back on a connection of its own until the server closes it or falls silent."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    with suppress(ConnectionError, TimeoutError):  # it may hang up before all of a flood is written
        writer.write(data)
        while chunk := await asyncio.wait_for(reader.read(MEGABYTE), PATIENCE):
            answer += chunk
    writer.close()
    return answer


async def send_all(url: str, requests: Iterable[bytes]) -> Counter[int]:
    """How often each status came, 0 for connections that were closed or waited for more."""
    free = asyncio.Semaphore(AT_ONCE)
    statuses: Counter[int] = Counter()

    async def one(data: bytes) -> None:
        async with free:
            statuses[judged(data, await send(url, data))] += 1

    await asyncio.gather(*(one(data) for data in requests))
    return statuses


def judged(data: bytes, answer: bytes) -> int:
    """The status of an answer, after a look at its shape."""
    if not answer:
        return 0
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    code = int(status.split()[1])
    told = (data[:500], answer[:500])
    assert code < 500, told
    if headers.get("content-type") == "application/json" and code >= 400:
        assert headers["x-request-id"], told
        if body := rest[: int(headers["content-length"])]:  # none of a HEAD
            error = json.loads(body)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"] and error["code"], told
            assert error["type"] == "invalid_request_error", told
    return code


@contextmanager
def server(log: Path) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server in a process of its own."""
    command = [sys.executable, *FAKE_SERVER, "0", "5"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as child,
    ):
        assert child.stdout is not None
        try:
            yield child.stdout.readline().split("ready on ")[1].split()[0], child.pid
        finally:
            child.terminate()


def held(pid: int) -> tuple[int, int]:
    """Open descriptors and resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGESIZE")  # noqa: PTH208


def endure(url: str, pid: int, seed: int, count: int) -> Counter[int]:
    """Sends `count` messages to a server, which is afterwards what it was in the middle of them."""
    assert generated(url) == [3, 2, 5]
    httpx.get(url)  # the first visit loads the page's toolkit, which keeps some descriptors
    descriptors = held(pid)[0]
    statuses = asyncio.run(send_all(url, messages(seed, count // 2)))
    memory = held(pid)[1]
    statuses += asyncio.run(send_all(url, messages(seed + 1, count - count // 2)))
    assert generated(url) == [3, 2, 5]
    deadline = time.monotonic() + 10
    while held(pid)[0] > descriptors + 2:  # some connections are closed a moment later
        assert time.monotonic() < deadline, f"{held(pid)[0]} descriptors are open, {descriptors} were before"
        time.sleep(0.05)
    assert held(pid)[1] - memory < 48 * MEGABYTE
    return statuses


def test_some_malformed_requests(caplog: pytest.LogCaptureFixture) -> None:
    with serving(FakeLoop()) as url:
        statuses = endure(url, os.getpid(), seed=100, count=300)
    assert {400, 404, 405} <= statuses.keys()
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.slow
def test_ten_thousand_malformed_requests(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with server(log) as (url, pid):
        statuses = endure(url, pid, seed=1, count=12_800)
    assert sum(count for status, count in statuses.items() if not 100 <= status < 300) >= 10_000, statuses
    text = log.read_text()
    assert "Traceback" not in text and "ERROR" not in text, text[-4000:]


def test_what_is_no_http_is_told_so_in_openai_s_shape() -> None:
    with serving(FakeLoop()) as url:
        for data in (b"\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"):
            answer = asyncio.run(send(url, data))
            assert judged(data, answer) == 400
            assert b'"code":"invalid_http"' in answer


def test_a_broken_body_ends_its_request_and_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    head = b"%s /v1/generate HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
    with serving(FakeLoop()) as url:
        for method, kind in ((b"POST", b"application/json"), (b"POST", b"text/plain"), (b"HEAD", b"application/json")):
            answer = asyncio.run(send(url, head % (method, kind) + b"ZZ\r\n"))
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1 ") == 1
        assert generated(url) == [3, 2, 5]
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_a_request_with_two_lengths_is_not_two_requests() -> None:
    hidden = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nhost: a\r\n"
    both = head + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(hidden)) + hidden
    differing = head + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(hidden) + hidden
    with serving(FakeLoop()) as url:
        for data in (both, differing):
            answer = asyncio.run(send(url, data))
            assert judged(data, answer) == 400
            assert answer.count(b"HTTP/1.1 ") == 1


def test_a_head_that_does_not_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with serving(FakeLoop()) as url:
        address = httpx.URL(url).host, httpx.URL(url).port
        with socket.create_connection(address, timeout=5) as silent, socket.create_connection(address) as dribbling:
            dribbling.settimeout(5)
            with suppress(ConnectionError):
                for _ in range(50):
                    dribbling.send(b"G")
                    time.sleep(0.02)
            assert silent.recv(1) == b""
            with suppress(ConnectionError):
                assert dribbling.recv(1) == b""
        with httpx.Client(base_url=url) as http:  # a kept connection's time begins anew with each request
            for _ in range(3):
                assert http.get("/health").status_code == 200
                time.sleep(0.15)


def test_idempotency_keys_are_any_bytes_that_a_header_holds() -> None:
    with serving(FakeLoop()) as url, httpx.Client(base_url=url) as http:
        for key in (b"\xe4\xff" * 100, b"'; DROP TABLE jobs", b"k" * 255, b"a\tb"):
            first, again = (http.post(IMAGES, json=BODY, headers={b"idempotency-key": key}) for _ in range(2))
            assert first.status_code == 200
            assert first.content == again.content
        for key in (b"", b"k" * 256):
            response = http.post(IMAGES, json=BODY, headers={b"idempotency-key": key})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "Idempotency-Key"

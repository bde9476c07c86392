"""No malformed request is a server error, costs more than its own connection, or leaves anything behind."""

import asyncio
import base64
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.malformed import messages
from fakes.nginx import behind_nginx, needs_nginx
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT
from fakes.raw_client import MEGABYTE, checked_status, send, send_all
from fakes.server import IMAGES, decoded, serving

BODY = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2}


def generated(url: str) -> list[int]:
    """Generate an image and return its colour: seed, steps, length of the prompt."""
    response = httpx.post(url + IMAGES, json=BODY, timeout=30)
    assert response.status_code == 200, response.text
    return decoded(base64.b64decode(response.json()["data"][0]["b64_json"]))[0, 0].tolist()


@contextmanager
def server(log: Path) -> Iterator[tuple[str, int]]:
    """Run a server in a process, and yield its URL and process id."""
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


def resources(pid: int) -> tuple[int, int]:
    """Return the open descriptors and the resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGESIZE")  # noqa: PTH208


def endure(url: str, pid: int, seed: int, count: int) -> Counter[int]:
    """Send `count` messages and count the statuses; check that the server keeps nothing of the second half."""
    assert generated(url) == [3, 2, 5]
    descriptors = resources(pid)[0]
    statuses = asyncio.run(send_all(url, messages(seed, count // 2)))
    memory = resources(pid)[1]
    statuses += asyncio.run(send_all(url, messages(seed + 1, count - count // 2)))
    assert generated(url) == [3, 2, 5]
    deadline = time.monotonic() + 30  # longer than a request may take to arrive
    while resources(pid)[0] > descriptors + 2:
        assert time.monotonic() < deadline, f"{resources(pid)[0]} descriptors are open, {descriptors} were before"
        time.sleep(0.05)
    assert resources(pid)[1] - memory < 48 * MEGABYTE
    return statuses


def test_some_malformed_requests_directly(caplog: pytest.LogCaptureFixture) -> None:
    with serving(FakeLoop()) as url:
        statuses = endure(url, os.getpid(), seed=100, count=300)
    assert {400, 404, 405} <= statuses.keys()
    errors = [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]
    assert not errors


@needs_nginx
def test_some_malformed_requests_through_nginx(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with serving(FakeLoop()) as direct, behind_nginx(direct, tmp_path) as url:
        statuses = endure(url, os.getpid(), seed=100, count=300)
    assert {400, 404, 405} <= statuses.keys()
    errors = [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]
    assert not errors


@pytest.mark.slow
def test_ten_thousand_malformed_requests(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with server(log) as (url, pid):
        assert refused(endure(url, pid, seed=1, count=12_800)) >= 10_000
    assert_no_errors(log)


@pytest.mark.slow
@needs_nginx
def test_thousands_of_malformed_requests_through_nginx(tmp_path: Path) -> None:
    """Fewer, since nginx itself refuses most of those that reach no handler."""
    log = tmp_path / "server.log"
    with server(log) as (direct, pid), behind_nginx(direct, tmp_path) as url:
        assert refused(endure(url, pid, seed=1, count=3_200)) >= 2_500
    assert_no_errors(log)


def refused(statuses: Counter[int]) -> int:
    return sum(count for status, count in statuses.items() if not 100 <= status < 300)


def assert_no_errors(log: Path) -> None:
    text = log.read_text()
    assert "Traceback" not in text and "ERROR" not in text, text[-4000:]


@pytest.mark.parametrize("data", [b"\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"])
def test_bytes_that_are_not_http_are_answered_with_400_and_a_closed_connection(data: bytes) -> None:
    with serving(FakeLoop()) as url:
        answer = send(url, data)
        assert checked_status(data, answer) == 400
        assert b"connection: close" in answer.lower()


def test_broken_chunk_ends_its_request_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    head = b"%s /v1/generate HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
    with serving(FakeLoop()) as url:
        for method, kind in ((b"POST", b"application/json"), (b"POST", b"text/plain"), (b"HEAD", b"application/json")):
            answer = send(url, head % (method, kind) + b"ZZ\r\n")
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1 ") == 1
        assert generated(url) == [3, 2, 5]
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_request_with_two_lengths_is_not_two_requests() -> None:
    hidden = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nhost: a\r\n"
    both = head + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(hidden)) + hidden
    differing = head + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(hidden) + hidden
    with serving(FakeLoop()) as url:
        for data in (both, differing):
            answer = send(url, data)
            assert checked_status(data, answer) == 400
            assert answer.count(b"HTTP/1.1 ") == 1


def test_idempotency_key_may_be_any_bytes_that_a_header_holds() -> None:
    with serving(FakeLoop()) as url, httpx.Client(base_url=url) as http:
        for key in (b"\xe4\xff" * 100, b"'; DROP TABLE jobs", b"k" * 255, b"a\tb"):
            first, again = (http.post(IMAGES, json=BODY, headers={b"idempotency-key": key}) for _ in range(2))
            assert first.status_code == 200
            assert first.content == again.content
        for key in (b"", b"k" * 256):
            response = http.post(IMAGES, json=BODY, headers={b"idempotency-key": key})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "Idempotency-Key"

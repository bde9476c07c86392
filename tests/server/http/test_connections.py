"""Floods of connections: others are still served, and a worker that dies is still replaced."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from fakes.faults import running, workers
from fakes.loop import FakeLoop
from fakes.processes import FAKE_SERVER
from fakes.raw_client import connected, read_to_end, upgraded
from fakes.server import IMAGES, serving

from server.http.connections import Connections
from server.http.descriptors import FEWEST, MOST, RESERVE, max_connections, raise_limit
from server.http.proxies import TrustedProxies

DESCRIPTORS = 256
FLOODERS = [f"127.0.0.{number}" for number in range(2, 10)]
EACH = 100  # connections of a flooder


@contextmanager
def limited_server(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server that may open few files; yield its URL and process."""
    limit = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with running(*limit, sys.executable, *FAKE_SERVER, *arguments) as found:
        yield found


class Flood:
    """Holds connections from several addresses, each with the first bytes of a request; replaces those that close."""

    def __init__(self, url: str) -> None:
        self._address = httpx.URL(url).host, httpx.URL(url).port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.is_full = threading.Event()  # every connection has been tried once

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with ExitStack() as stack:
            held = [stack.enter_context(self._connected(source)) for source in FLOODERS for _ in range(EACH)]
            self.is_full.set()
            while not self._is_over.wait(0.05):
                for index, sock in enumerate(held):
                    if self._is_closed(sock):
                        sock.close()
                        held[index] = stack.enter_context(self._connected(FLOODERS[index // EACH]))

    @staticmethod
    def _is_closed(sock: socket.socket) -> bool:
        try:
            return sock.recv(1000) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _connected(self, source: str) -> socket.socket:
        sock = socket.socket()
        sock.bind((source, 0))
        sock.settimeout(5)
        with suppress(OSError):
            sock.connect(self._address)
            sock.send(b"GET / HT")
        sock.setblocking(False)
        return sock


@pytest.mark.slow
def test_flood_of_connections_stops_neither_clients_nor_the_replacement_of_a_worker(tmp_path: Path) -> None:
    with limited_server("0.02", "5", str(tmp_path / "jobs")) as (url, child), httpx.Client(timeout=20) as established:
        assert established.post(url + IMAGES, json={"prompt": "a cat"}).status_code == 200
        with Flood(url) as flood:
            assert flood.is_full.wait(60)
            task = {"prompt": "a cat", "num_inference_steps": 100}
            submitted = established.post(f"{url}/v1/generate", json=task)
            assert submitted.status_code == 200, submitted.text
            assert httpx.get(f"{url}/health", timeout=20).status_code == 200
            (worker,) = workers(child)
            os.kill(worker, signal.SIGKILL)
            assert ended(url, submitted.json()["task_id"]) == "done"
            assert httpx.post(url + IMAGES, json={"prompt": "a cat"}, timeout=20).status_code == 200
            assert workers(child) != [worker]
            for _ in range(200):  # connections of the flood that are being refused come on top for a moment
                if len(list(Path(f"/proc/{child.pid}/fd").iterdir())) < DESCRIPTORS - RESERVE // 4:
                    return
                time.sleep(0.05)
            raise AssertionError("the reserve of descriptors stays used")


def ended(url: str, task: str) -> str:
    """Wait for the end of a task and return its status."""
    deadline = time.monotonic() + 60
    while True:
        status = str(httpx.get(f"{url}/v1/task/{task}", timeout=20).json()["status"])
        if status not in ("pending", "running"):
            return status
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_connections_over_the_limit_of_an_address_get_503_until_others_close() -> None:
    with serving(FakeLoop(), connections=Connections(1000, per_address=2)) as url:
        with connected(url), connected(url):
            with connected(url) as third:
                answer = read_to_end(third)
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5\r\n" in answer
            assert connected_from("127.0.0.2", url).startswith(b"HTTP/1.1 200 ")  # another address
        until_ok(url)


def connected_from(source: str, url: str) -> bytes:
    """Ask for /health from an address of this machine."""
    with socket.socket() as client:
        client.bind((source, 0))
        client.connect((httpx.URL(url).host, httpx.URL(url).port))
        client.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        return read_to_end(client)


def until_ok(url: str) -> None:
    """Wait until connections that have been closed are not counted any more."""
    deadline = time.monotonic() + 20
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_websockets_are_counted_until_they_close() -> None:
    with serving(FakeLoop(seconds_per_step=0.05), connections=Connections(1000, per_address=2)) as url:
        task = {"prompt": "a cat", "num_inference_steps": 100}
        path = f"/v1/task/{httpx.post(f'{url}/v1/generate', json=task).json()['task_id']}/ws"
        until_ok(url)
        for _ in range(3):
            with upgraded(url, path), upgraded(url, path):
                assert httpx.get(f"{url}/health").status_code == 503
            until_ok(url)


def test_trusted_proxy_may_have_more_connections_than_others() -> None:
    table = Connections(1000, per_address=1, proxies=TrustedProxies(("127.0.0.0/8",)))
    with serving(FakeLoop(), connections=table) as url, connected(url), connected(url):
        assert httpx.get(f"{url}/health").status_code == 200


def test_connection_that_is_idle_for_longest_is_closed_for_a_new_one() -> None:
    with serving(FakeLoop(), connections=Connections(2)) as url, connected(url) as first, connected(url) as second:
        second.sendall(b"GET /health HT")
        assert httpx.get(f"{url}/health").status_code == 200
        assert read_to_end(first) == b""
        second.sendall(b"TP/1.1\r\nhost: a\r\n\r\n")
        assert second.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_connections_that_are_answered_are_not_closed_for_new_ones() -> None:
    with serving(FakeLoop(seconds_per_step=0.01), connections=Connections(2)) as url:
        task = {"prompt": "a cat", "num_inference_steps": 60}
        body = b'{"prompt": "a cat", "num_inference_steps": 60}'
        head = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        path = f"/v1/task/{httpx.post(f'{url}/v1/generate', json=task).json()['task_id']}/ws"
        with upgraded(url, path), connected(url) as waiting:
            waiting.sendall(head % (IMAGES.encode(), len(body)) + body)
            deadline = time.monotonic() + 20
            while httpx.get(f"{url}/health").status_code != 503:
                assert time.monotonic() < deadline
            assert waiting.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_counts_are_those_of_open_connections() -> None:
    table = Connections(1000)
    with serving(FakeLoop(), connections=table) as url:
        for _ in range(20):
            with connected(url) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n\0")
        httpx.get(f"{url}/health")
    assert (table._total, len(table._open), len(table._idle)) == (0, 0, 0)


@pytest.mark.parametrize(("limit", "connections"), [(RESERVE + FEWEST, FEWEST), (1024, 1024 - RESERVE), (10**6, MOST)])
def test_descriptors_are_reserved_for_the_server(
    limit: int, connections: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert max_connections(limit) == connections
    assert ("raise it with ulimit -n" in caplog.text) is (connections == FEWEST)


def test_too_few_descriptors_are_refused() -> None:
    with pytest.raises(OSError, match="the limit of open files is 100, zimage-serve needs at least 160"):
        max_connections(100)


def test_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        assert raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

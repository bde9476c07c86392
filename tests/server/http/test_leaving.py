"""The end of a server behind load balancers: no request is refused or reset."""

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from fakes.nginx import behind_nginx, free_port, needs_nginx
from fakes.processes import FAKE_SERVER, process, ready_url
from fakes.raw_client import connected, read_to_end
from fakes.server import IMAGES

BODY = {"prompt": "a cat", "num_inference_steps": 2}
CLIENTS = 4


@contextmanager
def leaving(drain: float, port: int = 0) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run a server that drains for some seconds; yield its URL and its process."""
    with process(*FAKE_SERVER, "0.002", "20", *[""] * 9, str(drain), str(port)) as child:
        yield ready_url(child), child


def test_leaving_server_serves_and_says_so_until_a_second_signal() -> None:
    with leaving(60.0) as (url, child), httpx.Client(base_url=url, timeout=10) as kept:
        assert kept.get("/ready").status_code == 200
        child.terminate()
        while (ready := httpx.get(f"{url}/ready")).status_code == 200:
            time.sleep(0.02)
        assert ready.json()["status"] == "draining"
        image = kept.post(IMAGES, json=BODY)
        assert image.status_code == 200 and image.headers["connection"] == "close"
        assert httpx.get(f"{url}/health").status_code == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_connection_that_was_open_before_the_end_is_still_served() -> None:
    with leaving(0.3) as (url, child):
        with connected(url) as early:
            child.terminate()
            with suppress(httpx.TransportError):
                while True:  # until the server does not listen any more
                    httpx.get(f"{url}/ready")
            early.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert read_to_end(early).startswith(b"HTTP/1.1 200 ")
        assert child.wait(10) == 0


def test_request_whose_body_comes_after_the_end_began_is_still_served() -> None:
    body = json.dumps(BODY).encode()
    head = f"POST {IMAGES} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with leaving(0.0) as (url, child):
        with connected(url) as slow:
            slow.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
            child.terminate()
            with suppress(httpx.TransportError):
                while True:  # until the server does not listen any more
                    httpx.get(f"{url}/ready")
            slow.sendall(body)
            assert read_to_end(slow).startswith(b"HTTP/1.1 200 ")
        assert child.wait(10) == 0


def test_ctrl_c_ends_a_server_without_waiting_for_load_balancers() -> None:
    with leaving(60.0) as (_, child):
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0


@pytest.mark.slow
@needs_nginx
def test_rolling_restart_behind_nginx_loses_no_request(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    answers: Counter[str] = Counter()
    stopping = threading.Event()

    def ask(url: str) -> None:
        while not stopping.is_set():
            try:
                answers[str(httpx.post(url + IMAGES, json=BODY, timeout=30).status_code)] += 1
            except httpx.TransportError as error:
                answers[repr(error)] += 1
            time.sleep(0.02)  # leaves the processor to the server that starts

    with ExitStack() as running:
        servers = [running.enter_context(leaving(0.5, port)) for port in ports]
        url = running.enter_context(behind_nginx([url for url, _ in servers], tmp_path))
        clients = [threading.Thread(target=ask, args=[url]) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for index, port in enumerate(ports):
            servers[index][1].terminate()
            assert servers[index][1].wait(20) == 0
            servers[index] = running.enter_context(leaving(0.5, port))
        time.sleep(1.0)  # some requests reach the new servers
        stopping.set()
        for client in clients:
            client.join()
        served = [httpx.get(f"{base}/metrics").text for base, _ in servers]
    print(f"{answers.total()} requests during a rolling restart: {dict(answers)}")
    assert set(answers) == {"200"} and answers.total() > 50
    assert all('zimage_jobs_accepted_total{api="openai"} 0.0' not in text for text in served)

"""Bounds of what a client sends: heads, chunks, log lines, labels of metrics."""

import asyncio
import gc
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.raw_client import checked_status, connected, read_to_end, send, upgraded
from fakes.server import IMAGES, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server import logs
from server.api.request_id import LOGGED
from server.http import server
from server.http.protocol import READ_SIZE
from server.http.server import MAX_MESSAGE

HEAD = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
MANY_HEADERS = HEAD + b"a:\r\n" * 65_000 + b"\r\n"
TINY_CHUNKS = (
    b"POST /v1/generate HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop()) as url:
        yield url


@pytest.mark.parametrize(
    "head",
    [
        MANY_HEADERS,
        HEAD + b"a: " + b"b" * 2 * READ_SIZE + b"\r\n\r\n",
        b"GET /" + b"a" * 2 * READ_SIZE + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"A" * 2 * READ_SIZE + b" / HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
    ids=["headers", "header", "URL", "method"],
)
def test_head_over_the_limit_is_400_and_the_connection_is_closed(url: str, head: bytes) -> None:
    assert checked_status(head, send(url, head)) in (0, 400)  # 0: the answer was lost with the rest of the head


def test_head_of_half_the_limit_is_read(url: str) -> None:
    head = HEAD + b"a: " + b"b" * (READ_SIZE // 2) + b"\r\n\r\n"
    assert checked_status(head, send(url, head)) == 200


@pytest.mark.timing
@pytest.mark.parametrize("data", [MANY_HEADERS, TINY_CHUNKS], ids=["headers", "chunks"])
def test_small_parts_of_a_request_do_not_hold_up_the_others(
    url: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        run(handle)
        calls.append(time.thread_time() - started)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    gc.freeze()  # a collection would go through what other tests have imported, PyTorch among it
    loop = threading.Thread(target=send, args=(url, data))
    loop.start()
    loop.join()
    gc.unfreeze()
    assert max(calls) < 0.05, f"the longest call of {len(calls)} took {max(calls) * 1e3:.0f} ms"


def test_websocket_message_over_the_limit_closes_with_1009() -> None:
    with serving(FakeLoop(seconds_per_step=0.02)) as url:
        task = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100}).json()["task_id"]
        with connect(f"{url.replace('http', 'ws', 1)}/v1/task/{task}/ws") as client:
            client.send(b"x" * (MAX_MESSAGE + 1))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    client.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_kept_connection_without_another_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    with serving(FakeLoop()) as url, connected(url) as client:
        client.sendall(HEAD.replace(b"connection: close\r\n", b"") + b"\r\n")
        assert read_to_end(client).startswith(b"HTTP/1.1 200 ")


def test_websocket_that_answers_no_ping_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PING_SECONDS", 0.1)
    with serving(FakeLoop(seconds_per_step=0.05)) as url:
        task = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100}).json()["task_id"]
        with upgraded(url, f"/v1/task/{task}/ws") as client:
            read_to_end(client)
        assert httpx.get(f"{url}/v1/task/{task}").json()["status"] in ("pending", "running")
        httpx.delete(f"{url}/v1/task/{task}")


@contextmanager
def written(capsys: pytest.CaptureFixture[str], form: logs.LogFormat) -> Iterator[list[str]]:
    """Log as the server does, and yield the lines at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    lines: list[str] = []
    try:
        logs.configure(form, "debug", process="server")
        yield lines
    finally:
        logging.basicConfig(force=True, handlers=before, level=level)
    lines += capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_text_of_a_client_starts_or_stretches_a_log_line(
    capsys: pytest.CaptureFixture[str], form: logs.LogFormat
) -> None:
    evil = "\n2026 ERROR forged\r\x1b[2J\u2028" + "x" * 4000
    with serving(FakeLoop()) as url, written(capsys, form) as lines, httpx.Client(base_url=url) as http:
        http.get("/" + quote(evil))
        http.request("M" * 8000, "/health")
        http.get("/v1/tasks", params={"limit": evil, evil: "1"})
        http.get("/v1/models", headers={"host": "x" * 8000, "x-request-id": "x" * 8000})
        for name in ("prompt", "model", "size", "lora", "output_format", "quality", "seed", "negative_prompt", evil):
            for path in (IMAGES, "/v1/generate"):
                http.post(path, json={"prompt": "a cat", "num_inference_steps": 1, name: evil})
        http.post(IMAGES, content=evil.encode(), headers={"content-type": "application/json"})
        http.get(f"/v1/task/{quote(evil[:100])}")
    assert len(lines) > 20
    assert not [line for line in lines if line.startswith("2026 ERROR forged") or not line.isprintable()]
    assert max(map(len, lines)) < 4 * logs.MAX_MESSAGE
    ours = [line for line in lines if "server.api.request_id" in line]
    assert ours and max(map(len, ours)) < 8 * LOGGED
    if form == "json":
        assert all(json.loads(line)["message"] for line in lines)


def test_labels_of_metrics_are_not_chosen_by_clients(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        for body in (
            {"prompt": "evil"},
            {"evil": 1},
            {"prompt": "a", "model": "evil"},
            {"prompt": "a", "size": "evil"},
        ):
            for path in (IMAGES, "/v1/generate", "/evil"):
                http.post(path, json=body, headers={"x-request-id": "evil", "idempotency-key": "evil"})
        http.get("/evil?evil=evil", headers={"host": "evil"})
        text = http.get("/metrics").text
    assert "evil" not in text
    assert set(re.findall(r'(\w+)="', text)) <= {"api", "code", "state", "stage", "cache", "device", "batch", "le"}

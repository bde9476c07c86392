"""deploy/nginx/ in a real nginx: features that pass through it, and clients that it limits."""

import base64
import json
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fakes.forms import HEADERS, form
from fakes.loop import FakeLoop
from fakes.nginx import behind_nginx, needs_nginx
from fakes.pictures import RED, picture
from fakes.raw_client import checked_status, connected, read_to_end, send
from fakes.server import IMAGES, decoded, serving
from websockets.sync.client import connect

from server.api.access import AccessPolicy
from server.api.body import MAX_BODY
from server.jobs.storage import history

pytestmark = needs_nginx

BODY = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2}
TASKS = 200
PROXIES = ("127.0.0.1",)
LONG = "a" * 30_000  # a prompt; TASKS of them are more than the system keeps for a connection
SHORT_TIMEOUTS = {"client_header_timeout 20s;": "client_header_timeout 1s;", "send_timeout 60s;": "send_timeout 3s;"}


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop(seconds_per_step=0.02)


@pytest.fixture(scope="module")
def direct(fake: FakeLoop) -> Iterator[str]:
    with serving(fake, trusted_proxies=PROXIES, max_upload=MAX_BODY) as url:
        yield url


@pytest.fixture(scope="module")
def url(direct: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with behind_nginx(direct, tmp_path_factory.mktemp("nginx")) as url:
        yield url


@pytest.fixture(scope="module")
def hasty(direct: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with short timeouts."""
    with behind_nginx(direct, tmp_path_factory.mktemp("hasty"), changes=SHORT_TIMEOUTS) as url:
        yield url


def submit(url: str, **more: object) -> str:
    answer = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat"} | more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task_id"])


def test_image_is_the_same_as_without_nginx(url: str, direct: str) -> None:
    body = BODY | {"response_format": "b64_json"}
    images = [httpx.post(base + IMAGES, json=body).json()["data"] for base in (url, direct)]
    assert images[0] == images[1]
    assert decoded(base64.b64decode(images[0][0]["b64_json"]))[0, 0].tolist() == [3, 2, 5]


def test_server_sent_events_arrive_before_the_task_ends(url: str, direct: str) -> None:
    task = submit(url, num_inference_steps=100)
    with httpx.stream("GET", f"{url}/v1/task/{task}/events", timeout=30) as response:
        next(line for line in response.iter_lines() if line.startswith("data: "))
        assert httpx.get(f"{direct}/v1/task/{task}").json()["status"] in ("pending", "running")
    httpx.delete(f"{direct}/v1/task/{task}")


def test_websocket_gets_the_events_of_a_task(url: str) -> None:
    task = submit(url, num_inference_steps=20)
    with connect(f"{url.replace('http', 'ws', 1)}/v1/task/{task}/ws") as client:
        types = [json.loads(message)["type"] for message in client]
    assert types[0] == "progress" and types[-2:] == ["image", "end"]


def test_image_urls_have_the_host_that_the_client_asked_and_nginx_s_scheme(url: str, direct: str) -> None:
    body, headers = BODY | {"response_format": "url"}, {"host": "images.test", "x-forwarded-proto": "https"}
    through, past = (httpx.post(base + IMAGES, json=body, headers=headers).json()["data"] for base in (url, direct))
    assert through[0]["url"].startswith("http://images.test/v1/images/")  # nginx replaces the client's header
    assert past[0]["url"].startswith("https://images.test/v1/images/")  # the client is a trusted proxy


def test_rate_counts_by_the_address_that_nginx_sees(tmp_path: Path) -> None:
    policy = AccessPolicy(rate="1/hour")
    with (
        serving(FakeLoop(), policy=policy, trusted_proxies=PROXIES) as direct,
        behind_nginx(direct, tmp_path) as url,
    ):
        claims = ({"x-forwarded-for": f"192.0.2.{number}"} for number in range(2))
        assert [httpx.post(url + IMAGES, json=BODY, headers=claim).status_code for claim in claims] == [200, 429]


def test_urls_under_a_prefix_lead_back_through_nginx(direct: str, tmp_path: Path) -> None:
    with behind_nginx(direct, tmp_path, prefix="/generate") as url:
        image = httpx.post(url + IMAGES, json=BODY).json()["data"][0]["url"]
        task = submit(url, num_inference_steps=1)
        with connect(f"{url.replace('http', 'ws', 1)}/v1/task/{task}/ws") as client:
            ended = json.loads(list(client)[-1])["task"]["result"]["paths"][0]
        for found in (image, ended):
            assert found.startswith(f"{url}/v1/images/") and httpx.get(found).content.startswith(b"\x89PNG")


def test_metrics_are_not_for_clients(url: str, direct: str, tmp_path: Path) -> None:
    assert httpx.get(f"{direct}/metrics").status_code == 200
    with behind_nginx(direct, tmp_path, prefix="/generate") as prefixed:
        assert [httpx.get(f"{base}/metrics").status_code for base in (url, prefixed)] == [404, 404]
        assert [httpx.get(f"{base}/ready").status_code for base in (url, prefixed)] == [200, 200]


def test_body_over_the_limit_is_refused(url: str) -> None:
    answer = httpx.post(url + IMAGES, json={"prompt": "x" * 4 * MAX_BODY})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")  # the server's own answer
    head = f"POST {IMAGES} HTTP/1.1\r\nhost: a\r\ncontent-length: {83 << 20}\r\n\r\n"
    with connected(url) as client:
        client.sendall(head.encode())
        answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"text/html" in answer  # nginx's


def test_form_with_an_image_passes_through(url: str) -> None:
    body = form(("image", picture(), "x.png"), ("seed", b"7", None))
    answer = httpx.post(f"{url}/v1/images/edits", content=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))[0, 0].tolist() == [7, 5, RED]


def test_slow_header_client_is_cut(hasty: str) -> None:
    with connected(hasty) as silent, connected(hasty) as dribbling:
        with suppress(ConnectionError):
            while True:
                dribbling.send(b"G")
                time.sleep(0.02)
        assert b"HTTP/1.1 2" not in read_to_end(silent)


@pytest.mark.timing
def test_client_that_does_not_read_is_cut_and_a_slow_reader_is_not(
    hasty: str, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAGE_BYTES", 1 << 30)  # for an answer that no buffer holds
    with httpx.Client(base_url=direct) as http:
        for _ in range(TASKS):
            http.post("/v1/generate", json={"prompt": LONG, "num_inference_steps": 1})
    request = b"GET /v1/tasks?limit=200 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with connected(hasty) as silent, connected(hasty, 1 << 16) as slow:
        for client in (silent, slow):
            client.sendall(request)
        is_cut, read, chunk = select.poll(), b"", b"-"
        is_cut.register(silent, 0)
        while chunk and not is_cut.poll(0):  # reads slowly for as long as nginx waits for the silent one
            chunk = slow.recv(1 << 14)
            read += chunk
            time.sleep(0.02)  # nginx can write again when a third of the socket's buffer is free
        assert is_cut.poll(30_000)
        read += read_to_end(slow)
        head, _, body = read.partition(b"\r\n\r\n")
        assert b"200 OK" in head and len(json.loads(body)["tasks"]) == TASKS
        assert len(read_to_end(silent)) < len(read)


def test_request_with_two_lengths_is_refused(url: str, caplog: pytest.LogCaptureFixture) -> None:
    hidden = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    caplog.set_level("DEBUG")
    answer = send(url, head % (5 + len(hidden)) + hidden)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    paths = [getattr(record, "path", "") for record in caplog.records]
    assert not {"/health", "/metrics"} & set(paths)  # nothing was passed on


def test_broken_chunk_is_refused_without_a_line_in_the_server_s_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    head = b"%s /v1/generate HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
    for method, kind in ((b"POST", b"application/json"), (b"POST", b"text/plain"), (b"HEAD", b"application/json")):
        answer = send(url, head % (method, kind) + b"ZZ\r\n")
        assert checked_status(b"", answer) == 400 and answer.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_more_connections_from_one_address_than_allowed_are_refused(direct: str, tmp_path: Path) -> None:
    limit = {"limit_conn zimage_clients 100;": "limit_conn zimage_clients 2;"}
    with behind_nginx(direct, tmp_path, changes=limit) as url:
        path = f"/v1/task/{submit(url, num_inference_steps=100)}/ws"
        with connect(url.replace("http", "ws", 1) + path), connect(url.replace("http", "ws", 1) + path):
            assert httpx.get(f"{url}/health").status_code == 503

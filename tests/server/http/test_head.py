"""HEAD wherever there is GET: the same status and headers, and no body."""

import json
from collections.abc import Iterator

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.raw_client import connected
from fakes.server import IMAGES, serving

CHANGING = ("x-request-id", "date", "content-length", "server-timing")  # of two requests


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop(seconds_per_step=0.01)


@pytest.fixture(scope="module")
def http(fake: FakeLoop) -> Iterator[httpx.Client]:
    with serving(fake) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def image(http: httpx.Client) -> str:
    answer = http.post(IMAGES, json={"prompt": "a cat", "response_format": "url"}).json()
    return httpx.URL(answer["data"][0]["url"]).path


def test_head_has_the_headers_of_get_and_no_body(http: httpx.Client, image: str) -> None:
    task = "/v1/task/" + image.split("/")[3]
    known = (image, task, f"{task}/events", "/v1/models", "/v1/model_info", "/health", "/ready", "/v1/tasks")
    unknown = ("/v1/task/x", "/v1/task/x/events", "/v1/images/x/0.png", "/v1/models/x", "/x", "/v1/tasks?limit=x")
    for path in (*known, "/metrics", "/docs", "/openapi.json", *unknown):
        head, get = http.head(path), http.get(path)
        assert head.status_code == get.status_code, path
        assert head.content == b""
        assert head.headers.keys() == get.headers.keys()
        assert {k: v for k, v in head.headers.items() if k not in CHANGING} == {
            k: v for k, v in get.headers.items() if k not in CHANGING
        }
        assert path == "/metrics" or head.headers.get("content-length") == get.headers.get("content-length")


def test_endpoint_without_get_has_no_head(http: httpx.Client) -> None:
    response = http.head(IMAGES)
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")


def test_head_of_a_running_stream_ends_and_leaves_nobody_following(http: httpx.Client) -> None:
    task_id = http.post("/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100}).json()["task_id"]
    for _ in range(40):  # more than may follow one task
        response = http.head(f"/v1/task/{task_id}/events")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
    with http.stream("GET", f"/v1/task/{task_id}/events") as stream:
        first = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert json.loads(first[6:])["status"] in ("pending", "running")
    http.delete(f"/v1/task/{task_id}")


def test_connection_goes_on_after_head(http: httpx.Client) -> None:
    ask = b"%s /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
    with connected(str(http.base_url)) as client:
        client.sendall(ask % b"HEAD" + ask % b"GET")
        answer = b""
        while b"owned_by" not in answer:
            answer += client.recv(4096)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b'"object"') == 2  # of the list and of its model, in one answer only

"""Streams that go on where another one broke off, over real HTTP and WebSockets. No image comes twice, none is lost."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES
from websockets.sync.client import connect

from server.api.event_ids import NO_IMAGES, event_id, images_of


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop(seconds_per_step=0.01)


@pytest.fixture
def task(http: httpx.Client) -> str:
    """A task of three images of half a second each."""
    answer = http.post("/v1/generate", json={"prompt": "a cat", "num_images": 3, "num_inference_steps": 50})
    task_id: str = answer.json()["task_id"]
    return task_id


def server_sent(http: httpx.Client, task: str, last: str | None = None) -> Iterator[dict[str, Any]]:
    headers = {} if last is None else {"last-event-id": last}
    with http.stream("GET", f"/v1/task/{task}/events", headers=headers) as response:
        id = None
        for line in response.iter_lines():
            if line.startswith("id: "):
                id = line.removeprefix("id: ")
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert event["id"] == id
                yield event


def by_socket(http: httpx.Client, task: str, last: str | None = None) -> Iterator[dict[str, Any]]:
    url = str(http.base_url.copy_with(scheme="ws")).rstrip("/") + f"/v1/task/{task}/ws"
    with connect(url + ("" if last is None else f"?last_event_id={last}")) as socket:
        for message in socket:
            yield json.loads(message)


@pytest.mark.parametrize("events", [server_sent, by_socket])
def test_client_that_reconnects_gets_each_image_once(http: httpx.Client, task: str, events: Any) -> None:
    first = []
    for event in events(http, task):
        first.append(event)
        if event["type"] == "image":
            break
    assert first[0]["id"] == NO_IMAGES
    rest = list(events(http, task, first[-1]["id"]))
    assert [event["index"] for event in (*first, *rest) if event["type"] == "image"] == [0, 1, 2]
    assert [event["id"] for event in rest if event["type"] == "image"] == ["0,1", "0,1,2"]
    assert [event["type"] for event in events(http, task, rest[-1]["id"])] == ["end"]
    assert [event["index"] for event in events(http, task, "0,2") if event["type"] == "image"] == [1]


def test_stream_without_images_counts_none_as_received(http: httpx.Client, task: str) -> None:
    with http.stream("GET", f"/v1/task/{task}/events", params={"images": "false"}) as response:
        ids = {line for line in response.iter_lines() if line.startswith("id: ")}
    assert ids == {f"id: {NO_IMAGES}"}


def test_repeated_stream_of_the_images_api_skips_what_the_client_has(http: httpx.Client) -> None:
    def stream(**headers: str) -> list[str]:
        body = {"prompt": "a cat", "n": 3, "stream": True}
        with http.stream("POST", IMAGES, json=body, headers={"idempotency-key": "stream"} | headers) as response:
            return [line for line in response.iter_lines() if line.startswith(("id: ", "event: "))]

    assert stream()[::2] == ["id: 0", "id: 0,1", "id: 0,1,2"]
    assert stream(**{"last-event-id": "0,1"}) == ["id: 0,1,2", "event: image_generation.completed"]


@pytest.mark.parametrize("foreign", ["", "none", "7f3a", "0,", "-1", "0;1", "1" * 65, "9999", "０"])
def test_id_of_another_server_stands_for_no_images(foreign: str) -> None:
    assert images_of(foreign) == frozenset()


def test_ids_name_the_images_in_order() -> None:
    assert event_id({10, 2, 0}) == "0,2,10"
    assert images_of("0,2,10") == {0, 2, 10}
    assert images_of(event_id(())) == images_of(None) == frozenset()

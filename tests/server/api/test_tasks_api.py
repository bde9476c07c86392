"""The task endpoints of existing Z-Image-Turbo deployments, over real HTTP and WebSockets."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes.loop import MODEL, NAN_PROMPT, FakeLoop
from fakes.server import decoded, serving
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from server.api.access import AccessPolicy
from server.api.tasks import TASK_NOT_FOUND
from server.jobs.admission.admission import Limits


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop(seconds_per_step=0.01)


@pytest.fixture(scope="module")
def http(fake: FakeLoop) -> Iterator[httpx.Client]:
    with serving(fake) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def submit(http: httpx.Client, **body: Any) -> str:
    answer = http.post("/v1/generate", json={"prompt": "a cat"} | body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "submitted"
    task_id: str = answer.json()["task_id"]
    return task_id


def ended(http: httpx.Client, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while (task := http.get(f"/v1/task/{task_id}").json())["status"] in ("pending", "running"):
        assert 0 <= task["progress"] <= 100 and task["eta"] >= 0
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found: dict[str, Any] = task
    return found


def test_waiting_request_gets_images_and_seeds(http: httpx.Client) -> None:
    body = {"prompt": "a cat", "negative_prompt": "", "width": 128, "height": 64, "num_inference_steps": 3, "seed": 7}
    answer = http.post("/api/v1/generate", json=body | {"num_images": 2, "cfg_scale": 1.0}).json()
    assert answer["seeds"] == [7, 8]
    images = [decoded(base64.b64decode(image)) for image in answer["images"]]
    assert [image.shape for image in images] == [(64, 128, 3)] * 2
    assert [image[0, 0].tolist() for image in images] == [[7, 3, 5], [8, 3, 5]]


def test_a_seed_of_minus_one_is_random(http: httpx.Client) -> None:
    seeds = [http.post("/api/v1/generate", json={"prompt": "a cat", "seed": -1}).json()["seeds"][0] for _ in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("path", ["/v1/generate", "/api/v1/generate_async"])
def test_submitted_task_runs_without_a_waiting_client(http: httpx.Client, path: str) -> None:
    task_id = http.post(path, json={"prompt": "a cat", "seed": 9, "num_images": 2}).json()["task_id"]
    task = ended(http, task_id)
    assert (task["status"], task["progress"], task["error"]) == ("done", 100, None)
    result = task["result"]
    assert result["time"] > 0
    for number, (path, metadata) in enumerate(zip(result["paths"], result["metadata"], strict=True)):
        assert decoded(http.get(path).content)[0, 0].tolist() == [9 + number, 8, 5]
        assert (metadata["seed"], metadata["width"], metadata["height"]) == (9 + number, 128, 96)
        assert (metadata["num_inference_steps"], metadata["forwards"], metadata["model"]) == (8, 8, MODEL)
        assert metadata["plan_id"] and metadata["precision"] == "fp16"


def test_task_metadata_names_the_lora(http: httpx.Client) -> None:
    for change in ({"lora": "outlines"}, {"lora": None}, {}):
        (metadata,) = ended(http, submit(http, **change))["result"]["metadata"]
        assert metadata["lora"] == change.get("lora")


@pytest.mark.parametrize("strength", [0.5, -1, 0, None])
def test_task_metadata_has_the_strength_of_the_lora(http: httpx.Client, strength: float | None) -> None:
    (metadata,) = ended(http, submit(http, lora="outlines", lora_strength=strength))["result"]["metadata"]
    assert metadata["lora_strength"] == (1 if strength is None else strength)
    (metadata,) = ended(http, submit(http, lora_strength=strength))["result"]["metadata"]
    assert metadata["lora_strength"] is None


def test_cfg_scale_is_guidance_plus_one(http: httpx.Client) -> None:
    for scale, guidance, forwards in ((0, 0, 8), (1, 0, 8), (1.5, 0.5, 16), (4, 3, 16)):
        (metadata,) = ended(http, submit(http, cfg_scale=scale))["result"]["metadata"]
        assert (metadata["guidance_scale"], metadata["forwards"]) == (guidance, forwards)


def test_failed_task_has_an_error_and_a_code(http: httpx.Client) -> None:
    task = ended(http, submit(http, prompt=NAN_PROMPT))
    assert (task["status"], task["error_code"], task["result"]) == ("failed", "non_finite_output", None)
    assert "NaN" in task["error"]


def test_queued_tasks_have_positions_and_estimates(http: httpx.Client) -> None:
    ended(http, submit(http))
    first, second = (submit(http, num_inference_steps=40) for _ in range(2))
    tasks = [http.get(f"/v1/task/{task_id}").json() for task_id in (first, second)]
    assert [task["queue_position"] for task in tasks] == [0, 1]
    assert 0 < tasks[0]["eta"] < tasks[1]["eta"]
    for task_id in (first, second):
        assert http.delete(f"/v1/task/{task_id}").json()["status"] == "cancelled"


def test_cancelled_task_stops_at_its_next_step_and_is_then_deleted(http: httpx.Client, fake: FakeLoop) -> None:
    fake.pending.clear()
    task_id = submit(http, prompt="cancelled", num_inference_steps=100)
    assert fake.pending.wait(5)
    assert http.delete(f"/v1/task/{task_id}").json()["status"] == "cancelled"
    assert ended(http, submit(http))["status"] == "done"
    assert sum(prompt == "cancelled" for prompt, _ in fake.log) < 20
    assert http.delete(f"/v1/task/{task_id}").json()["status"] == "cancelled"  # deletes it
    assert http.get(f"/v1/task/{task_id}").status_code == 404


def test_events_are_the_same_by_websocket_and_by_server_sent_events(http: httpx.Client) -> None:
    task_id = submit(http, num_inference_steps=90, previews=2, seed=3)  # enough time to connect
    by_socket = list_events(http, task_id)
    with http.stream("GET", f"/v1/task/{task_id}/events") as response:
        by_sse = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    types = [event["type"] for event in by_socket]
    assert types.count("preview") == 2 and types[-2:] == ["image", "end"] and types[0] == "progress"
    shares = [event["progress"] for event in by_socket if event["type"] == "progress"]
    assert shares == sorted(shares) and len(shares) > 5
    assert decoded(base64.b64decode(by_socket[-2]["image"]))[0, 0].tolist() == [3, 90, 5]
    assert [event["type"] for event in by_sse] == ["image", "end"]  # it had ended
    assert by_sse[-1]["task"]["status"] == by_socket[-1]["task"]["status"] == "done"


def list_events(http: httpx.Client, task_id: str) -> list[dict[str, Any]]:
    with connect(str(http.base_url.copy_with(scheme="ws")).rstrip("/") + f"/v1/task/{task_id}/ws") as socket:
        return [json.loads(message) for message in socket]


def test_closed_websocket_leaves_its_task_running(http: httpx.Client) -> None:
    task_id = submit(http, num_inference_steps=30)
    with connect(str(http.base_url.copy_with(scheme="ws")).rstrip("/") + f"/v1/task/{task_id}/ws") as socket:
        socket.recv()
    assert ended(http, task_id)["status"] == "done"


def test_unknown_task_is_404_or_closes_the_websocket(http: httpx.Client) -> None:
    for method, path in (("GET", "/v1/task/x"), ("DELETE", "/v1/task/x"), ("GET", "/v1/task/x/events")):
        response = http.request(method, path)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "task_not_found"
    with pytest.raises(ConnectionClosedError) as closed:
        list_events(http, "x")
    assert closed.value.rcvd.code == TASK_NOT_FOUND


def test_history_is_newest_first_in_pages(http: httpx.Client) -> None:
    tasks = [submit(http, prompt=f"number {number}") for number in range(5)]
    for task_id in tasks:
        ended(http, task_id)
    page = http.get("/v1/tasks", params={"limit": 3}).json()["tasks"]
    assert [task["prompt"] for task in page] == ["number 4", "number 3", "number 2"]
    assert page[0]["result"]["paths"]
    following = http.get("/v1/tasks", params={"limit": 2, "before": page[-1]["sequence"]}).json()["tasks"]
    assert [task["prompt"] for task in following] == ["number 1", "number 0"]


def test_tasks_are_found_by_their_ids_without_a_shared_history() -> None:
    with serving(FakeLoop(), policy=AccessPolicy()) as url, httpx.Client(base_url=url, timeout=10) as http:
        first, second, other = (submit(http, seed=seed) for seed in (1, 2, 3))
        for task_id in (first, second, other):
            ended(http, task_id)
        found = http.get("/v1/tasks", params={"ids": f"{first},nobody's,,{second},{first}"}).json()
        assert [task["task_id"] for task in found["tasks"]] == [second, first] and not found["has_more"]
        assert found["tasks"][1] == http.get(f"/v1/task/{first}").json()
        assert http.get("/v1/tasks").json() == http.get("/v1/tasks?ids=").json() == {"tasks": [], "has_more": False}


def test_running_task_found_by_its_id_has_its_progress(http: httpx.Client) -> None:
    task_id = submit(http, num_inference_steps=100)
    try:
        (found,) = http.get("/v1/tasks", params={"ids": task_id, "limit": 1, "before": 1}).json()["tasks"]
        assert found["task_id"] == task_id and found["status"] in ("pending", "running")
    finally:
        http.delete(f"/v1/task/{task_id}")


def test_more_than_fifty_ids_are_refused(http: httpx.Client) -> None:
    ids = [f"job_{number:032x}" for number in range(51)]
    assert http.get("/v1/tasks", params={"ids": ",".join(ids[:50])}).json()["tasks"] == []
    answer = http.get("/v1/tasks", params={"ids": ",".join(ids)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ids")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"width": 100}, "width"),
        ({"num_images": 5}, "num_images"),
        ({"seed": -2}, "seed"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"step": 4}, "step"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"width": "128"}, "width"),
        ({"lora": "another"}, "lora"),
    ],
)
def test_invalid_parameter_is_400_with_its_name(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    for path in ("/v1/generate", "/api/v1/generate", "/api/v1/generate_async"):
        response = http.post(path, json={"prompt": "a cat"} | change)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


def test_full_queue_is_429_with_retry_after() -> None:
    with serving(FakeLoop(0.05), Limits(queue=2)) as url, httpx.Client(base_url=url, timeout=10) as http:
        learn_times(http)
        tasks = [submit(http) for _ in range(2)]
        refused = http.post("/v1/generate", json={"prompt": "a cat"})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) == 1
        hopeless = {"prompt": "a cat", "timeout": 0.1}
        http.delete(f"/v1/task/{tasks[1]}")
        assert http.post("/v1/generate", json=hopeless).json()["error"]["code"] == "deadline_unreachable"
        assert ended(http, tasks[0])["status"] == "done"
        assert ended(http, submit(http))["status"] == "done"


def learn_times(http: httpx.Client) -> None:
    """Generate images until the server estimates times; those of a fleet come with heartbeats."""
    eta = 0.0
    while not eta:
        eta = http.get(f"/v1/task/{(task := submit(http))}").json()["eta"]
        ended(http, task)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_task_gives_images_in_the_requested_format(http: httpx.Client, kind: str) -> None:
    task = ended(http, submit(http, output_format=kind))
    image = http.get(task["result"]["paths"][0])
    assert image.headers["content-type"] == f"image/{kind}" and decoded(image.content, kind.upper()).shape == (
        96,
        128,
        3,
    )
    assert task["settings"]["output_format"] == kind


def test_task_tells_its_settings_before_it_ends(http: httpx.Client) -> None:
    body = {"negative_prompt": "dogs", "guidance_scale": 2.5, "seed": 2**64 - 1, "num_images": 2, "width": 64}
    body |= {"lora": "outlines", "lora_strength": 0.5}
    settings = http.get(f"/v1/task/{submit(http, **body)}").json()["settings"]
    assert {name: settings[name] for name in body} == body
    assert (settings["height"], settings["num_inference_steps"]) == (None, None)

"""Gradio's API, as its protocol has it on the wire; its own client is in test_clients.py."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fakes.jobs import job
from fakes.loop import NAN_PROMPT, FakeLoop
from fakes.server import decoded, serving

from server.api import errors
from server.api.access import AccessPolicy
from server.api.dialects import gradio_queue
from server.api.dialects.gradio_queue import MAX_SESSIONS, MAX_WAITING, Sessions, failed
from server.jobs.job_events import MAX_FOLLOWERS


@pytest.fixture(autouse=True)
def _short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradio_queue, "LINGER", 0.1)


CALL = "/gradio_api/call/predict"
DATA = ["a red circle", 128, 64, 8, 1.0]


def events(http: httpx.Client, path: str, **params: str) -> list[str]:
    """Return the events of a stream as text, in Gradio's own format: with line feeds only."""
    answer = http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    assert "\r" not in answer.text
    return [event for event in answer.text.split("\n\n") if event]


def messages(http: httpx.Client, session: str) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in events(http, "/queue/data", session_hash=session)]


@pytest.mark.parametrize("path", ["/api/predict/", "/api/predict", "/run/predict"])
def test_call_of_the_first_deployments_is_answered_with_a_data_url(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"data": DATA})
    assert answer.status_code == 200, answer.text
    head, data = answer.json()["data"][0].split(",")
    assert head == "data:image/png;base64"
    image = decoded(base64.b64decode(data))
    assert (image.shape, image[0, 0, 1:].tolist()) == ((64, 128, 3), [8, len("a red circle")])


def test_arguments_that_are_missing_or_null_have_defaults(http: httpx.Client) -> None:
    for data in (["a cat"], ["a cat", None, None, None, None, None, None]):
        answer = http.post("/api/predict/", json={"data": data, "fn_index": 0, "session_hash": "x"})
        assert decoded(base64.b64decode(answer.json()["data"][0].split(",")[1])).shape == (96, 128, 3)
    seeded = http.post("/api/predict/", json={"data": ["a cat", 64, 64, 2.0, 1, 7.0, "blue"]})
    assert decoded(base64.b64decode(seeded.json()["data"][0].split(",")[1]))[0, 0].tolist() == [7, 2, 5]
    assert seeded.headers["x-ignored-parameters"] == "negative_prompt"
    bounded = http.post("/api/predict/", json={"data": ["a cat", 64, 64, 2, 1, 7, "", 0.5, 0.25]})
    assert bounded.headers["x-ignored-parameters"] == "cfg_normalization, cfg_truncation"


def test_call_is_submitted_and_its_file_is_read_from_its_stream(http: httpx.Client) -> None:
    for prefix in ("/gradio_api", ""):
        submitted = http.post(f"{prefix}/call/predict", json={"data": DATA})
        (event,) = events(http, f"{prefix}/call/predict/{submitted.json()['event_id']}")
        name, data = event.split("\n")
        assert name == "event: complete"
        (file,) = json.loads(data.removeprefix("data: "))
        for url in (file["url"], f"{prefix}/file={file['path']}"):
            assert decoded(http.get(url).content).shape == (64, 128, 3)


def test_events_of_a_session_are_in_one_stream_that_closes_after_the_last(http: httpx.Client) -> None:
    submitted = [http.post("/queue/join", json={"data": ["a cat", 64, 64, 3], "session_hash": "s"}) for _ in range(3)]
    found = messages(http, "s")
    assert found[-1]["msg"] == "close_stream"
    for answer in submitted:
        own = [message for message in found if message["event_id"] == answer.json()["event_id"]]
        assert own[-1]["msg"] == "process_completed" and own[-1]["success"]
        assert own[-1]["output"]["data"][0]["meta"] == {"_type": "gradio.FileData"}
        assert {message["msg"] for message in own} <= {"estimation", "progress", "process_completed"}
    assert messages(http, "s") == [{"msg": "close_stream", "event_id": None}]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([NAN_PROMPT, 64, 64], "NaN"),
        (["a cat", 17], "width must be"),
        (["a cat", "wide"], "'width'"),
        ([" "], "prompt"),
    ],
)
def test_reason_of_a_failed_call_is_in_its_stream(http: httpx.Client, data: list[Any], reason: str) -> None:
    http.post("/queue/join", json={"data": data, "session_hash": "f"}).raise_for_status()
    completed = messages(http, "f")[-2]
    assert (completed["msg"], completed["success"]) == ("process_completed", False)
    assert reason in completed["output"]["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/predict/", {"data": ["a cat", 17]}, 400),
        ("/api/predict/", {"data": ["a cat", *[None] * 9]}, 400),
        ("/api/predict/", {"data": "a cat"}, 400),
        ("/api/predict/", {"data": []}, 400),
        ("/api/predict/", {"data": ["a cat"], "fn_index": 1}, 400),
        ("/api/predict/", {"data": ["a cat"], "fn": 1}, 400),
        (CALL, {"data": ["a cat", 17]}, 400),
        ("/gradio_api/call/other", {"data": ["a cat"]}, 404),
        ("/gradio_api/cancel", {"event_id": "job_0"}, 404),
        ("/queue/join", {"data": ["a cat"], "session_hash": "x" * 129}, 400),
        ("/queue/join", {"data": ["a cat"]}, 400),
        ("/queue/join", {"data": ["a cat"], "session_hash": ""}, 400),
    ],
)
def test_errors_have_a_detail(http: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["detail"] == answer.json()["error"] != ""


def test_files_that_are_no_images_of_jobs_do_not_exist(http: httpx.Client) -> None:
    for path in ("/etc/passwd", "v1/images/job_0/0.png", "../pyproject.toml", ""):
        assert http.get(f"/gradio_api/file={path}").status_code == 404
    assert http.get(f"{CALL}/job_0").status_code == 404


@pytest.fixture
def slow() -> Iterator[httpx.Client]:
    policy = AccessPolicy(("mine", "other"))
    with (
        serving(FakeLoop(seconds_per_step=0.05), policy=policy) as url,
        httpx.Client(base_url=url, headers={"x-api-key": "mine"}, timeout=10) as http,
    ):
        yield http


def status(http: httpx.Client, job: str) -> str:
    found: str = http.get(f"/v1/task/{job}").json()["status"]
    return found


def test_call_is_cancelled_by_its_owner_only(slow: httpx.Client) -> None:
    job = slow.post(CALL, json={"data": ["a cat", 64, 64, 100]}).json()["event_id"]
    body = {"event_id": job, "fn_index": 0, "session_hash": "s"}
    assert slow.post("/gradio_api/cancel", json=body, headers={"x-api-key": "other"}).status_code == 404
    assert slow.post("/gradio_api/cancel", json=body, headers={"x-api-key": "none"}).status_code == 401
    assert slow.get(f"{CALL}/{job}", headers={"x-api-key": "other"}).status_code == 404  # leaving it cancels the call
    assert status(slow, job) in ("pending", "running")
    assert slow.post("/gradio_api/cancel", json=body).json() == {"success": True}
    assert status(slow, job) == "cancelled"
    assert slow.post("/gradio_api/reset", json={"event_id": job}).json() == {"success": False}
    task = slow.post("/v1/generate", json={"prompt": "a cat"}).json()["task_id"]
    assert slow.post("/gradio_api/cancel", json={"event_id": task}).status_code == 404  # is no call


@pytest.mark.parametrize("by_session", [True, False])
def test_calls_of_a_client_that_leaves_are_cancelled(slow: httpx.Client, by_session: bool) -> None:
    path = "/queue/join" if by_session else CALL
    job = slow.post(path, json={"data": ["a cat", 64, 64, 100], "session_hash": "s"}).json()["event_id"]
    url = "/queue/data?session_hash=s" if by_session else f"{CALL}/{job}"
    with slow.stream("GET", url) as stream:
        assert stream.status_code == 200
        if by_session:
            next(stream.iter_lines())
    deadline = time.monotonic() + 10
    while status(slow, job) != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("by_session", [True, False])
def test_head_of_a_stream_cancels_no_calls(slow: httpx.Client, by_session: bool) -> None:
    path = "/queue/join" if by_session else CALL
    job = slow.post(path, json={"data": ["a cat", 64, 64, 20], "session_hash": "h"}).json()["event_id"]
    url = "/queue/data?session_hash=h" if by_session else f"{CALL}/{job}"
    head = slow.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    end = slow.get(url).text
    assert f"v1/images/{job}/0.png" in end


def test_call_that_its_session_has_no_room_for_is_cancelled(
    slow: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradio_queue, "MAX_WAITING", 1)
    body = {"data": ["a cat", 64, 64, 100], "session_hash": "full"}
    answers = [slow.post("/queue/join", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert slow.get("/v1/tasks").json()["tasks"][0]["status"] == "cancelled"
    slow.post("/gradio_api/cancel", json={"event_id": answers[0].json()["event_id"]}).raise_for_status()


def test_call_that_is_repeated_by_its_key_is_followed_once(slow: httpx.Client) -> None:
    body = {"data": ["a cat", 64, 64, 5], "session_hash": "k"}
    answers = [slow.post("/queue/join", json=body, headers={"idempotency-key": "k"}) for _ in range(3)]
    assert len({answer.json()["event_id"] for answer in answers}) == 1
    assert slow.get("/queue/data?session_hash=k").text.count("process_completed") == 1


def test_session_of_another_owner_is_another_session(slow: httpx.Client) -> None:
    slow.post("/queue/join", json={"data": ["a cat", 64, 64, 1], "session_hash": "s"}).raise_for_status()
    other = slow.get("/queue/data?session_hash=s", headers={"x-api-key": "other"})
    assert "process_completed" not in other.text
    assert slow.get("/queue/data?session_hash=s", headers={"x-api-key": ""}).status_code == 401
    assert "process_completed" in slow.get("/queue/data?session_hash=s").text


def test_stream_that_has_no_more_calls_stays_for_those_on_their_way(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio_client takes its stream for open until it has read the end, and waits there for calls sent before."""
    monkeypatch.setattr(gradio_queue, "LINGER", 10.0)
    body = {"data": ["a cat", 64, 64, 1], "session_hash": "o"}
    first = http.post("/queue/join", json=body).json()["event_id"]
    with http.stream("GET", "/queue/data?session_hash=o") as stream:
        lines = (line for line in stream.iter_lines() if "process_completed" in line)
        assert first in next(lines)
        assert http.post("/queue/join", json=body).json()["event_id"] in next(lines)


def test_call_whose_events_cannot_be_read_ends_in_its_stream(slow: httpx.Client) -> None:
    """32 other clients follow the job already."""
    job = slow.post("/queue/join", json={"data": ["a cat", 64, 64, 100], "session_hash": "l"}).json()["event_id"]
    with ExitStack() as others:
        streams = [others.enter_context(slow.stream("GET", f"/v1/task/{job}/events")) for _ in range(MAX_FOLLOWERS)]
        lines = [stream.iter_lines() for stream in streams]  # a stream ends with its iterator
        assert all(next(line) for line in lines)
        completed = messages(slow, "l")[-2]
    assert (completed["msg"], completed["success"]) == ("process_completed", False)


def test_sessions_and_their_waiting_calls_are_limited() -> None:
    async def fill() -> Sessions:
        sessions = Sessions()
        for number in range(MAX_SESSIONS + 10):
            sessions.add((None, str(number)), failed("event", "reason"))
        for _ in range(MAX_WAITING - 1):
            sessions.add((None, "20"), failed("event", "reason"))
        with pytest.raises(errors.ApiError) as caught:
            sessions.add((None, "20"), failed("event", "reason"))
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        return sessions

    assert len(asyncio.run(fill())._inboxes) == MAX_SESSIONS


def test_session_with_a_stream_is_not_forgotten(slow: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradio_queue, "MAX_SESSIONS", 2)
    monkeypatch.setattr(gradio_queue, "LINGER", 10.0)
    body = {"data": ["a cat", 64, 64, 1], "session_hash": "open"}
    slow.post("/queue/join", json=body).raise_for_status()
    with slow.stream("GET", "/queue/data?session_hash=open") as stream:
        lines = (line for line in stream.iter_lines() if "process_completed" in line)
        next(lines)
        for number in range(3):
            slow.post("/queue/join", json={"data": [], "session_hash": str(number)}).raise_for_status()
        assert slow.post("/queue/join", json=body).json()["event_id"] in next(lines)


def test_call_that_has_no_room_since_all_sessions_have_streams_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradio_queue, "MAX_SESSIONS", 1)

    async def fill() -> None:
        sessions = Sessions()
        sessions.add((None, "a"), failed("event", "reason"))
        events = sessions.events((None, "a"), None, "")  # type: ignore[arg-type]  # it has no jobs
        await anext(events)
        with pytest.raises(errors.ApiError) as caught:
            sessions.add((None, "b"), failed("event", "reason"))
        assert (caught.value.status, list(sessions._inboxes)) == (429, [(None, "a")])
        await events.aclose()
        sessions.add((None, "b"), failed("event", "reason"))

    asyncio.run(fill())


def test_waiting_calls_do_not_keep_their_prompts() -> None:
    """Sessions of clients that never open a stream would fill the memory with them."""

    async def waiting() -> str:
        sessions = Sessions()
        sessions.add((None, "a"), job(id="job_7"))
        return repr(sessions._inboxes)

    found = asyncio.run(waiting())
    assert "job_7" in found and job().request.prompt not in found

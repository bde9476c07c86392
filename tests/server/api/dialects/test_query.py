"""Requests with their parameters in the URL, as FastAPI reads the arguments of a function."""

import base64
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from fakes.server import decoded, error_of
from fastapi import Request

from server.api.dialects.query import _body

URL = "/v1/generate?prompt=a%20cat"


def result(http: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 10
    while (task := http.get(f"/v1/task/{answer.json()['task_id']}").json())["status"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found: dict[str, Any] = task["result"]["metadata"][0]
    return found


def test_parameters_in_the_url_submit_a_task(http: httpx.Client) -> None:
    given = "&width=128&height=64&num_inference_steps=3&seed=7&cfg_scale=2.5&negative_prompt=blue"
    answer = http.post(URL + given)
    assert answer.json()["status"] == "submitted" and answer.headers["x-job-id"] == answer.json()["task_id"]
    made = result(http, answer)
    assert (made["width"], made["height"], made["num_inference_steps"], made["seed"]) == (128, 64, 3, 7)
    assert made["guidance_scale"] == 1.5


def test_body_of_the_same_endpoint_goes_on_working(http: httpx.Client) -> None:
    made = result(http, http.post("/v1/generate", json={"prompt": "prompt=a cat", "seed": 7}))
    assert made["seed"] == 7
    assert result(http, http.post("/v1/generate?user=me", json={"prompt": "a cat", "seed": 8}))["seed"] == 8


def test_request_that_waits_gets_its_image(http: httpx.Client) -> None:
    answer = http.post("/api/v1/generate", params={"prompt": "a cat", "seed": 18446744073709551615, "n": "2.0"})
    assert answer.json()["seeds"] == [2**64 - 1, 0]
    assert decoded(base64.b64decode(answer.json()["images"][1]))[0, 0].tolist() == [0, 8, 5]


def test_empty_parameters_count_as_absent_and_ignored_ones_are_reported(http: httpx.Client) -> None:
    answer = http.post(URL + "&seed=&width=&negative_prompt=blue&model=sdxl&vae_use_tiling=true&quality=hd")
    assert answer.headers["x-ignored-parameters"] == "negative_prompt, vae_use_tiling, quality, model"
    assert result(http, answer)["width"] == 128


@pytest.mark.parametrize(("written", "bound"), [("true", 1.0), ("false", 0.0), ("1", 1.0), ("0.5", 0.5)])
def test_bound_of_guidance_may_be_written_as_a_number_or_a_boolean(
    http: httpx.Client, written: str, bound: float
) -> None:
    found = result(http, http.post(f"{URL}&guidance_scale=2&cfg_normalization={written}"))
    assert found["cfg_normalization"] == bound


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("cfg_normalization=yes", "cfg_normalization"),
        ("width=1.5", "width"),
        ("width=x", "width"),
        ("width=100", "width"),
        ("seed=-2", "seed"),
        ("seed=18446744073709551616", "seed"),
        ("n=5", "n"),
        ("width=" + "9" * 5000, "width"),
        ("cfg_scale=nan", "cfg_scale"),
        ("hight=64", "hight"),
        ("seed=1&seed=2", "seed"),
        ("seed=1&seed=1", "seed"),
        ("size=128x64&width=64", "width"),
    ],
)
def test_invalid_parameter_is_400_with_its_name(http: httpx.Client, query: str, param: str) -> None:
    answer = http.post(f"{URL}&{query}")
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert len(answer.content) < 1000


def test_parameters_both_in_the_url_and_in_a_body_are_refused(http: httpx.Client) -> None:
    answer = http.post(URL, json={"seed": 7})
    assert answer.status_code == 400
    assert "not in both" in error_of(answer)["message"]
    assert http.post(URL, content=iter([b"{}"])).status_code == 400


def test_pages_of_other_sites_cannot_submit_by_url(http: httpx.Client) -> None:
    """A browser sends a POST without a body to any server, without asking first."""
    answer = http.post(URL, headers={"origin": "http://evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


def test_time_for_many_parameters_grows_with_their_number_only() -> None:
    query = "&".join(f"{number:x}" for number in range(12_000))
    request = Request({"type": "http", "headers": [], "path": "/", "query_string": f"prompt=a&{query}".encode()})

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    reading = seconds(lambda: _body(request))
    assert reading < 50 * seconds(lambda: parse_qsl(query, keep_blank_values=True))  # hundreds of times, if quadratic

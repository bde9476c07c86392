"""Requests of Xinference's client, whose further fields are JSON in a string."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes.loop import MODEL, FakeLoop
from fakes.server import IMAGES, serving

from server.api.access import AccessPolicy

# what xinference-client 4.1.0 sends (client/restful/restful_client.py, text_to_image), but for the size
REQUEST = {"model": MODEL, "prompt": "a cat", "n": 1, "size": "128*64", "response_format": "url", "kwargs": "{}"}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(FakeLoop()) as url, httpx.Client(base_url=url) as client:
        yield client


def test_request_is_answered_with_a_url(http: httpx.Client) -> None:
    answer = http.post(IMAGES, json=REQUEST)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    assert image.keys() == {"url", "seed"}
    assert http.get(image["url"]).headers["content-type"] == "image/png"


def test_fields_in_kwargs_are_followed_or_reported(http: httpx.Client) -> None:
    fields = {"seed": 7, "num_inference_steps": 3.0, "negative_prompt": "blue", "guidance_scale": None}
    answer = http.post(IMAGES, json=REQUEST | {"kwargs": json.dumps(fields)})
    assert answer.json()["data"][0]["seed"] == 7
    assert answer.headers["x-ignored-parameters"] == "negative_prompt"


def test_null_beside_kwargs_counts_as_absent(http: httpx.Client) -> None:
    answer = http.post(IMAGES, json=REQUEST | {"seed": None, "size": None, "kwargs": '{"seed": 7, "size": "64x64"}'})
    assert (answer.json()["data"][0]["seed"], answer.json()["size"]) == (7, "64x64")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kwargs": "seed=7"}, "kwargs"),
        ({"kwargs": "[]"}, "kwargs"),
        ({"kwargs": {"seed": 7}}, "kwargs"),
        ({"kwargs": "[" * 100_000}, "kwargs"),
        ({"kwargs": '{"seeed": 7}'}, "seeed"),
        ({"kwargs": '{"seed": "7"}'}, "seed"),
        ({"kwargs": '{"seed": 7}', "seed": 7}, "seed"),
        ({"kwargs": '{"kwargs": "{}"}'}, "kwargs"),
        ({"kwargs": "{}", "size": "100*100"}, "size"),
    ],
)
def test_error_is_in_the_shapes_of_xinference_and_of_openai(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    answer = http.post(IMAGES, json=REQUEST | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_error_of_other_clients_is_in_the_shape_of_openai_alone(http: httpx.Client) -> None:
    for body in ({"prompt": "a cat", "seeed": 7}, {"prompt": "a cat", "kwargs": None, "size": "1x1"}):
        assert http.post(IMAGES, json=body).json().keys() == {"error"}


def test_client_learns_that_the_model_makes_images_and_whether_it_needs_a_key(http: httpx.Client) -> None:
    assert http.get("/v1/cluster/auth").json() == {"auth": False}
    (listed,) = http.get("/v1/models").json()["data"]
    assert (listed["id"], listed["model_type"]) == (MODEL, "image")
    assert http.get(f"/v1/models/{MODEL}").json() == listed
    with serving(FakeLoop(), policy=AccessPolicy(("a-key",))) as url:
        assert httpx.get(f"{url}/v1/cluster/auth").json() == {"auth": True}

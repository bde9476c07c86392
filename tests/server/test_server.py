"""The endpoint over real HTTP: uvicorn on a loopback port, called by OpenAI's own client."""

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fakes.loop import BROKEN_PROMPT, HANG_PROMPT, LOST_PROMPT, MODEL, NAN_PROMPT, SECRET, WORDS, FakeLoop
from fakes.server import IMAGES, decoded, official_client, pixels, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from server.api.body import MAX_BODY
from server.api.openai_schemas import MAX_PROMPT
from server.worker import finisher

JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop()


@pytest.fixture(scope="module")
def base_url(fake: FakeLoop) -> Iterator[str]:
    with serving(fake) as url:
        yield url


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with official_client(base_url) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which has OpenAI's shape and an id."""
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["code"]
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    return error


# images


def test_an_image_is_what_was_asked_for(client: openai.OpenAI) -> None:
    response = client.images.generate(
        prompt="a cat", model=MODEL, size="128x64", extra_body={"seed": 7, "num_inference_steps": 3}
    )
    image = pixels(response)
    assert image.shape == (64, 128, 3)
    assert image[0, 0].tolist() == [7, 3, len("a cat")]
    assert (response.size, response.output_format) == ("128x64", "png")
    assert response.data[0].seed == 7
    assert "revised_prompt" not in response.data[0].to_dict()
    assert abs(response.created - time.time()) < 60


def test_usage_counts_the_prompt_once_and_the_image_tokens_of_every_image(client: openai.OpenAI) -> None:
    usage = client.images.generate(prompt="one two three", size="64x64", n=2).usage
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == 3
    assert usage.input_tokens_details.image_tokens == 0
    assert usage.output_tokens == 2 * 4 * 4
    assert usage.total_tokens == 3 + 2 * 4 * 4


@pytest.mark.parametrize("size", ["auto", None])
def test_without_a_size_the_plans_choose(client: openai.OpenAI, size: str | None) -> None:
    assert client.images.generate(prompt="a cat", size=size).size == "128x96"


def test_n_images_have_seeds_in_a_row(client: openai.OpenAI) -> None:
    response = client.images.generate(prompt="a cat", n=3, extra_body={"seed": 2**32 - 2})
    assert [item.seed for item in response.data] == [2**32 - 2, 2**32 - 1, 0]
    assert [pixels(response, i)[0, 0, 0] for i in range(3)] == [254, 255, 0]


def test_without_a_seed_every_image_is_another(client: openai.OpenAI) -> None:
    seeds = {client.images.generate(prompt="a cat").data[0].seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_prompt_that_was_cut_comes_back_as_it_was_generated(client: openai.OpenAI) -> None:
    prompt = " ".join(f"word{i}" for i in range(WORDS + 5))
    revised = client.images.generate(prompt=prompt).data[0].revised_prompt
    assert revised == " ".join(f"word{i}" for i in range(WORDS))


def test_what_changes_nothing_is_accepted(client: openai.OpenAI) -> None:
    response = client.images.generate(
        prompt="a cat",
        quality="high",
        background="opaque",
        moderation="low",
        style="vivid",
        user="me",
        response_format="b64_json",
        output_format="png",
        stream=False,
        extra_body={"guidance_scale": 0.0, "negative_prompt": None, "seed": None, "partial_images": 0},
    )
    assert pixels(response).shape == (96, 128, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_output_formats(client: openai.OpenAI, http: httpx.Client, kind: str) -> None:
    seed = {"seed": 200, "num_inference_steps": 3}
    response = client.images.generate(prompt="a cat", output_format=kind, extra_body=seed)
    assert response.output_format == kind
    pixels = decoded(base64.b64decode(response.data[0].b64_json), kind.upper())
    assert np.abs(pixels.astype(int) - [200, 3, 5]).max() < 12
    (image,) = client.images.generate(prompt="a cat", output_format=kind, response_format="url", extra_body=seed).data
    assert image.b64_json is None
    fetched = http.get(image.url)
    assert fetched.headers["content-type"] == f"image/{kind}"
    assert np.array_equal(decoded(fetched.content, kind.upper()), pixels)


def test_a_url_that_nobody_was_given(http: httpx.Client) -> None:
    for path in ("job_0/0.png", f"job_{'0' * 32}/0.png", "..%2f..%2fetc/passwd"):
        response = http.get(f"/v1/images/{path}")
        assert response.status_code == 404
        error_of(response)


def test_a_stream_shows_the_image_before_it_is_done(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 9}))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    shown = decoded(base64.b64decode(events[0].b64_json))
    assert shown.shape == (96, 128, 3)
    assert (shown == 128).all()  # the projection of the fake's latents
    assert decoded(base64.b64decode(events[2].b64_json))[0, 0].tolist() == [9, 8, 5]
    assert (events[2].size, events[2].output_format) == ("128x96", "png")
    assert events[2].usage.output_tokens == 6 * 8


def test_a_preview_that_cannot_be_made_costs_nobody_the_image(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher.preview, "project", None)
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_a_stream_without_partial_images_is_one_event_an_image(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a cat", stream=True, n=2))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [event.index for event in events] == [0, 1]


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="NaN or Inf") as caught:
        list(client.images.generate(prompt=NAN_PROMPT, stream=True))
    assert caught.value.code == "non_finite_output"


def test_a_retry_with_the_same_key_finds_its_images(client: openai.OpenAI, fake: FakeLoop) -> None:
    headers, prompt = {"Idempotency-Key": "once"}, "generated once"
    first, again = (client.images.generate(prompt=prompt, extra_headers=headers) for _ in range(2))
    assert first == again
    assert fake.log.count((prompt, 8)) == 1
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(prompt="another", extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"


def test_headers_say_where_the_time_went(http: httpx.Client) -> None:
    response = http.post(IMAGES, json={"prompt": "a cat"})
    stages = [entry.partition(";dur=") for entry in response.headers["server-timing"].split(", ")]
    assert {"queue", "passes", "encode"} <= {name for name, _, _ in stages}
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in stages)


# models and health


def test_models(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == listed  # a name with a slash


def test_health(http: httpx.Client) -> None:
    for probe in ("/health", "/ready"):
        report = http.get(probe).json()
        assert report.pop("detail") is None
        assert report == {"status": "ok", "model": MODEL, "precision": "fp16", "flavor": "onnx"}
        assert http.head(probe).status_code == 200


# errors


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": "  "}, "prompt", "invalid_value"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "prompt", "string_above_max_length"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 11}, "n", "integer_above_max_value"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"size": "large"}, "size", "invalid_value"),
        ({"size": "100x64"}, "size", "invalid_value"),
        ({"size": "64x4096"}, "size", "invalid_value"),
        ({"size": "0x0"}, "size", "invalid_value"),
        ({"size": "9" * 5000 + "x64"}, "size", "string_above_max_length"),
        ({"seed": -1}, "seed", "integer_below_min_value"),
        ({"seed": 2**32}, "seed", "integer_above_max_value"),
        ({"num_inference_steps": 0}, "num_inference_steps", "integer_below_min_value"),
        ({"num_inference_steps": 10**40}, "num_inference_steps", "integer_above_max_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "integer_above_max_value"),
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"partial_images": 4, "stream": True}, "partial_images", "integer_above_max_value"),
        ({"guidance_scale": -0.5}, "guidance_scale", "integer_below_min_value"),
        ({"guidance_scale": "much"}, "guidance_scale", "invalid_type"),
        ({"negative_prompt": 1}, "negative_prompt", "invalid_type"),
        ({"lora": "another"}, "lora", "invalid_value"),
        ({"lora": ""}, "lora", "invalid_value"),
        ({"lora": "../outlines"}, "lora", "invalid_value"),
        ({"lora": "outlines.lora"}, "lora", "invalid_value"),
        ({"lora": "o" * 65}, "lora", "string_above_max_length"),
        ({"lora": ["outlines"]}, "lora", "invalid_type"),
        ({"timeout": 0}, "timeout", "invalid_value"),
        ({"timeout": 1e9}, "timeout", "integer_above_max_value"),
        ({"quality": "hihg"}, "quality", "invalid_value"),
        ({"guidance": 0}, "guidance", "unknown_parameter"),
        ({"num_steps": None}, "num_steps", "unknown_parameter"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    client: openai.OpenAI, fake: FakeLoop, change: dict[str, Any], param: str, code: str
) -> None:
    generated = len(fake.log)
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a cat", extra_body=change)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert param in error.message or "height" in error.message or "width" in error.message
    assert len(fake.log) == generated


def test_a_lora_is_one_of_those_that_are_named(client: openai.OpenAI, http: httpx.Client) -> None:
    assert http.get("/v1/model_info").json()["loras"] == ["outlines", "damaged"]
    for lora in ("outlines", None):
        answer = client.images.generate(prompt="a cat", extra_body={"lora": lora})
        png = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
        assert json.loads(png.info["zimage-trt"])["lora"] == lora
    with pytest.raises(openai.BadRequestError, match="one of outlines, damaged; got 'another'"):
        client.images.generate(prompt="a cat", extra_body={"lora": "another"})


def test_a_lora_whose_file_has_gone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a cat", extra_body={"lora": "damaged"})
    assert (caught.value.status_code, caught.value.code) == (503, "lora_unavailable")


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a cat", model="dall-e-3")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_an_image_with_nan_is_an_error_that_is_not_retried(client: openai.OpenAI, fake: FakeLoop) -> None:
    generated = fake.log.count((NAN_PROMPT, 1))
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=2).images.generate(prompt=NAN_PROMPT, extra_body={"num_inference_steps": 1})
    assert (caught.value.type, caught.value.code) == ("server_error", "non_finite_output")
    assert fake.log.count((NAN_PROMPT, 1)) == generated + 1


@pytest.mark.parametrize("prompt", [LOST_PROMPT, BROKEN_PROMPT, HANG_PROMPT])
def test_a_job_that_kills_workers_is_tried_twice_and_then_fails_with_a_name(
    http: httpx.Client, fake: FakeLoop, prompt: str
) -> None:
    started = time.monotonic()
    response = http.post(IMAGES, json={"prompt": prompt}, headers={"x-request-id": "mine"})
    assert time.monotonic() - started < 10
    assert response.status_code == 500
    assert error_of(response)["code"] == "worker_lost"
    assert response.headers["x-should-retry"] == "false"
    assert SECRET not in response.text
    assert response.headers["x-request-id"] == "mine"
    assert fake.log.count((prompt, 2)) == 2
    assert http.post(IMAGES, json={"prompt": "a cat"}).status_code == 200
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"a cat"', "invalid_type"),
        (b'{"prompt": "a cat", "n": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b'{"prompt": "a cat", "n": ' + b"9" * 4_000 + b"}", "integer_above_max_value"),
        (json.dumps({"k" * 100_000: 1, "prompt": "a cat"}).encode(), "unknown_parameter"),
    ],
)
def test_a_malformed_body(http: httpx.Client, body: bytes, code: str) -> None:
    response = http.post(IMAGES, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == code
    assert len(response.content) < 1000


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_what_a_foreign_web_page_can_send_is_refused(http: httpx.Client, kind: str | None) -> None:
    """Browsers ask before they send application/json across origins, and need not ask for these."""
    headers = {} if kind is None else {"content-type": kind}
    response = http.post(IMAGES, content=b'{"prompt": "a cat"}', headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


def test_a_long_path_is_not_echoed_whole(http: httpx.Client) -> None:
    assert len(http.get("/" + "a" * 20_000).content) < 1000


def test_an_unknown_key_without_a_name(http: httpx.Client) -> None:
    response = http.post(IMAGES, content=b'{"prompt": "a cat", "": 1}', headers=JSON)
    assert error_of(response)["message"] == "Unknown parameter: ''."


def test_a_path_cannot_forge_a_log_line(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        http.get("/x%0aERROR: forged")
    assert any("forged" in record.getMessage() for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(http: httpx.Client, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 8 * MAX_BODY}).encode()
    response = http.post(IMAGES, content=iter([body]) if chunked else body, headers=JSON)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    within = json.dumps({"prompt": "a cat"}).encode().ljust(MAX_BODY)
    assert http.post(IMAGES, content=within, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/images/edits", 404, "not_found"),
        ("GET", "/v1/images/generations/", 404, "not_found"),
        ("GET", IMAGES, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    response = http.request(method, path, headers={"host": "["})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("allow" in response.headers) == (status == 405)


def test_every_response_has_an_id(http: httpx.Client) -> None:
    def id_for(given: str) -> str:
        return http.get("/health", headers={"x-request-id": given}).headers["x-request-id"]

    assert id_for("trace-1.a:b_2") == "trace-1.a:b_2"
    assert id_for("two words").startswith("req_")
    assert id_for("x" * 129).startswith("req_")
    assert id_for("") != id_for("")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["prompt", "model", "n", "size", "seed", "stream", "num_inference_steps", "guidance_scale"])
REQUESTS = st.dictionaries(KEYS | st.text(max_size=8), JSON_VALUES | st.text("0123456789x", max_size=9), max_size=6)
WITH_PROMPT = REQUESTS.map(lambda request: {"prompt": "a cat"} | request)
BODIES = st.binary(max_size=200) | (WITH_PROMPT | REQUESTS | JSON_VALUES).map(lambda value: json.dumps(value).encode())
CUT_BODIES = st.tuples(BODIES, st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | CUT_BODIES)
def test_no_body_is_a_server_error(http: httpx.Client, body: bytes) -> None:
    response = http.post(IMAGES, content=body, headers=JSON)
    if response.status_code != 200:
        assert response.status_code in (400, 404, 504)
        error_of(response)
    elif "json" in response.headers["content-type"]:
        assert response.json()["data"]
    else:
        assert "image_generation.completed" in response.text

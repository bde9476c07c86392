"""Errors of OpenAI's endpoints: invalid parameters, unknown models and LoRAs, and failing jobs."""

import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from fakes.loop import BROKEN_PROMPT, HANG_PROMPT, LOST_PROMPT, NAN_PROMPT, SECRET, FakeLoop
from fakes.server import IMAGES, error_of
from PIL import Image

from server.api.fields import MAX_PROMPT
from server.jobs.job import Job


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
        ({"seed": -2}, "seed", "integer_below_min_value"),
        ({"seed": 2**64}, "seed", "integer_above_max_value"),
        ({"num_inference_steps": 0}, "num_inference_steps", "integer_below_min_value"),
        ({"num_inference_steps": 10**40}, "num_inference_steps", "integer_above_max_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "integer_above_max_value"),
        ({"background": "transparent"}, "background", "unsupported_value"),
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
        ({"lora": "outlines", "lora_strength": 4.1}, "lora_strength", "integer_above_max_value"),
        ({"lora": "outlines", "lora_strength": -5}, "lora_strength", "integer_below_min_value"),
        ({"lora": "outlines", "lora_strength": "1"}, "lora_strength", "invalid_type"),
        ({"timeout": 0}, "timeout", "invalid_value"),
        ({"timeout": 1e9}, "timeout", "integer_above_max_value"),
        ({"quality": "hihg"}, "quality", "invalid_value"),
        ({"guidance": 0}, "guidance", "unknown_parameter"),
        ({"num_steps": None}, "num_steps", "unknown_parameter"),
    ],
)
def test_invalid_parameter_is_400_with_its_name(
    client: openai.OpenAI, fake: FakeLoop, change: dict[str, Any], param: str, code: str
) -> None:
    generated = len(fake.log)
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a cat", extra_body=change)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert param in error.message or "height" in error.message or "width" in error.message
    assert len(fake.log) == generated


def test_lora_must_be_one_of_the_folder(client: openai.OpenAI, http: httpx.Client) -> None:
    assert http.get("/v1/model_info").json()["loras"] == ["outlines", "damaged"]
    for lora in ("outlines", None):
        answer = client.images.generate(prompt="a cat", extra_body={"lora": lora})
        png = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
        assert json.loads(png.info["zimage-trt"])["lora"] == lora
    with pytest.raises(openai.BadRequestError, match="one of outlines, damaged; got 'another'"):
        client.images.generate(prompt="a cat", extra_body={"lora": "another"})


def test_lora_with_a_missing_file_is_503(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a cat", extra_body={"lora": "damaged"})
    assert (caught.value.status_code, caught.value.code) == (503, "lora_unavailable")


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_image_with_nan_is_an_error_that_clients_do_not_retry(client: openai.OpenAI, fake: FakeLoop) -> None:
    generated = fake.log.count((NAN_PROMPT, 1))
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=2).images.generate(prompt=NAN_PROMPT, extra_body={"num_inference_steps": 1})
    assert (caught.value.type, caught.value.code) == ("server_error", "non_finite_output")
    assert fake.log.count((NAN_PROMPT, 1)) == generated + 1


@pytest.mark.parametrize("prompt", [LOST_PROMPT, BROKEN_PROMPT, HANG_PROMPT])
def test_job_that_kills_its_workers_fails_as_worker_lost_after_two_attempts(
    http: httpx.Client, fake: FakeLoop, prompt: str
) -> None:
    before = fake.log.count((prompt, 2))
    response = http.post(
        IMAGES, json={"prompt": prompt}, headers={"x-request-id": "mine"}
    )  # the client's timeout bounds the time
    assert response.status_code == 500
    assert error_of(response)["code"] == "worker_lost"
    assert response.headers["x-should-retry"] == "false"
    assert SECRET not in response.text
    assert response.headers["x-request-id"] == "mine"
    assert fake.log.count((prompt, 2)) == before + 2
    assert http.post(IMAGES, json={"prompt": "a cat"}).status_code == 200
    assert http.get("/health").status_code == 200


def test_request_for_which_there_is_no_memory_is_refused_without_a_traceback(
    http: httpx.Client, fake: FakeLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def add(*_: object) -> Job:
        raise MemoryError

    monkeypatch.setattr(fake.store, "add", add)
    response = http.post(IMAGES, json={"prompt": "a cat"})
    assert (response.status_code, error_of(response)["code"]) == (503, "out_of_memory")
    assert response.headers["retry-after"] == "10"
    assert not any(record.exc_info for record in caplog.records)

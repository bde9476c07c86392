"""One rule for the fields of all endpoints: ignored and reported, refused, or followed. Over real HTTP."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fakes.loop import MANIFEST, MODEL, FakeLoop
from fakes.server import IMAGES, decoded, error_of, official_client, pixels, serving
from PIL import Image

from server.api.served_model import ServedModel

GENERATE, SUBMIT = "/api/v1/generate", "/v1/generate"
ALL = (IMAGES, GENERATE, SUBMIT)
IGNORED = "x-ignored-parameters"


def post(http: httpx.Client, path: str, **body: Any) -> httpx.Response:
    response = http.post(path, json={"prompt": "a cat"} | body)
    assert response.status_code == 200, response.text
    return response


def made_with(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    """Return the metadata in the file of an image that a request was answered with."""
    answer = post(http, path, **body).json()
    data = base64.b64decode(answer["data"][0]["b64_json"] if path == IMAGES else answer["images"][0])
    found: dict[str, Any] = json.loads(Image.open(io.BytesIO(data)).info["zimage-trt"])
    return found


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3", "", "tongyi-mai/z-image-turbo"])
def test_any_model_name_is_answered_with_the_real_one(client: openai.OpenAI, http: httpx.Client, model: str) -> None:
    raw = client.images.with_raw_response.generate(prompt="a cat", model=model)
    assert (raw.headers["x-model"], raw.headers[IGNORED]) == (MODEL, "model")
    assert pixels(raw.parse()).shape == (96, 128, 3)
    for path in (GENERATE, SUBMIT):
        answer = post(http, path, model=model)
        assert (answer.headers["x-model"], answer.headers[IGNORED]) == (MODEL, "model")


@pytest.mark.parametrize("path", ALL)
def test_the_real_model_name_is_not_reported_as_ignored(http: httpx.Client, path: str) -> None:
    for body in ({"model": MODEL}, {"model": None}, {}):
        answer = post(http, path, **body)
        assert answer.headers["x-model"] == MODEL
        assert IGNORED not in answer.headers


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    with serving(FakeLoop(), model=ServedModel(("first", "second"), is_strict=True)) as url:
        yield url


def test_strict_server_refuses_other_models_and_lists_its_names(strict: str) -> None:
    with official_client(strict) as client, httpx.Client(base_url=strict) as http:
        assert [model.id for model in client.models.list()] == ["first", "second"]
        assert client.models.retrieve("second").id == "second"
        for model in ("first", "second"):
            raw = client.images.with_raw_response.generate(prompt="a cat", model=model)
            assert (raw.headers["x-model"], raw.headers.get(IGNORED)) == ("first", None)
        assert client.images.generate(prompt="a cat").data
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt="a cat", model=MODEL)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        for path in (GENERATE, SUBMIT):
            answer = http.post(path, json={"prompt": "a cat", "model": MODEL})
            assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        *(({"quality": quality}, "quality") for quality in ("low", "high", "xhigh", "max", "standard", "hd")),
        *(({"style": style}, "style") for style in ("vivid", "natural")),
        *(({"moderation": level}, "moderation") for level in ("auto", "low")),
        ({"complexity": "medium"}, "complexity"),
        ({"user": "me"}, "user"),
        ({"safety_identifier": "me"}, "safety_identifier"),
        ({"vae_use_tiling": True, "vae_use_slicing": False}, "vae_use_slicing, vae_use_tiling"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_compression": 50, "output_format": "png"}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"negative_prompt": "blue"}, "negative_prompt"),
        ({"negative_prompt": "blue", "guidance_scale": 0}, "negative_prompt"),
        ({"cfg_normalization": 1.0, "cfg_truncation": 0.5}, "cfg_normalization, cfg_truncation"),
        ({"lora_strength": 0.5}, "lora_strength"),
        ({"lora_strength": 0.5, "lora": None}, "lora_strength"),
        (
            {"model": "x", "user": "u", "quality": "hd", "negative_prompt": "b"},
            "negative_prompt, user, quality, model",
        ),
    ],
)
def test_what_cannot_change_the_image_is_accepted_and_reported(
    client: openai.OpenAI, given: dict[str, Any], reported: str
) -> None:
    plain = pixels(client.images.generate(prompt="a cat", extra_body={"seed": 7}))
    raw = client.images.with_raw_response.generate(prompt="a cat", extra_body=given | {"seed": 7})
    assert raw.headers[IGNORED] == reported
    answer = raw.parse()
    assert (pixels(answer) == plain).all()
    assert not set(given) & {"quality", "style", "moderation", "user"} & set(answer.to_dict())  # nothing is echoed


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quality": "auto"},
        {"background": "opaque"},
        {"size": "auto"},
        {"generator_device": "cpu"},
        {"output_format": "jpeg", "output_compression": 50},
        {"negative_prompt": ""},
        {"negative_prompt": "blue", "guidance_scale": 2},
        {"seed": -1},
        {"lora": "outlines", "lora_strength": 0.5},
        {"lora_strength": None},
        {"n": 2},
        {"quality": None, "style": None, "user": None, "moderation": None, "negative_prompt": None},
    ],
)
def test_what_is_followed_or_absent_is_not_reported(http: httpx.Client, given: dict[str, Any]) -> None:
    assert IGNORED not in post(http, IMAGES, **given).headers


def test_streams_report_ignored_fields_and_the_model(http: httpx.Client) -> None:
    body = {"stream": True, "quality": "hd", "partial_images": 1}
    answer = post(http, IMAGES, **body)
    assert (answer.headers[IGNORED], answer.headers["x-model"]) == ("quality", MODEL)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["quality"] for event in events] == ["auto", "auto"]


@pytest.mark.parametrize("path", [GENERATE, SUBMIT])
def test_tasks_report_a_negative_prompt_without_guidance(http: httpx.Client, path: str) -> None:
    assert post(http, path, negative_prompt="blue").headers[IGNORED] == "negative_prompt"
    assert post(http, path, negative_prompt="blue", cfg_scale=1).headers[IGNORED] == "negative_prompt"
    assert IGNORED not in post(http, path, negative_prompt="blue", cfg_scale=2).headers


@pytest.mark.parametrize("path", [GENERATE, SUBMIT])
def test_tasks_take_fields_without_an_effect_as_the_images_api_does(http: httpx.Client, path: str) -> None:
    given = {"style": "vivid", "user": "me", "vae_use_tiling": True, "quality": "hd"}
    assert post(http, path, **given).headers[IGNORED] == "style, user, vae_use_tiling, quality"
    refused = http.post(path, json={"prompt": "a cat", "quality": "hihg"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "quality")


def test_previews_of_an_awaited_request_are_reported_since_nobody_sees_them(http: httpx.Client) -> None:
    assert post(http, GENERATE, previews=2).headers[IGNORED] == "previews"
    assert IGNORED not in post(http, SUBMIT, previews=2).headers


@pytest.mark.parametrize("path", [IMAGES, GENERATE])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": "64*96"}, (64, 96)),
        ({"size": "64X96"}, (64, 96)),
        ({"size": "96"}, (96, 96)),
        ({"width": 64, "height": 96}, (64, 96)),
        ({"width": 64.0, "height": 96.0}, (64, 96)),
        ({"width": 64}, (64, 96)),
        ({"size": "auto", "height": 64}, (128, 64)),
        ({"size": "64x96", "width": 64, "height": 96}, (64, 96)),
        ({"size": None, "width": None}, (128, 96)),
    ],
)
def test_size_may_be_written_in_several_ways(
    http: httpx.Client, path: str, given: dict[str, Any], expected: tuple[int, int]
) -> None:
    made = made_with(http, path, **given)
    assert (made["width"], made["height"]) == expected


@pytest.mark.parametrize("path", [IMAGES, GENERATE])
@pytest.mark.parametrize(
    ("given", "guidance", "steps"),
    [
        ({"guidance_scale": 2}, 2.0, 8),
        ({"cfg_scale": 3}, 2.0, 8),
        ({"true_cfg_scale": 3.0}, 2.0, 8),
        ({"cfg_scale": 1.3, "guidance_scale": 0.3}, 0.3, 8),
        ({"cfg_scale": 0.5}, 0.0, 8),
        ({"cfg_scale": 1, "true_cfg_scale": 0, "guidance_scale": 0}, 0.0, 8),
        ({"steps": 3}, 0.0, 3),
        ({"steps": 3.0, "num_inference_steps": 3}, 0.0, 3),
        ({"num_inference_steps": 3, "steps": None}, 0.0, 3),
    ],
)
def test_scales_and_steps_have_the_names_of_other_servers(
    http: httpx.Client, path: str, given: dict[str, Any], guidance: float, steps: int
) -> None:
    made = made_with(http, path, **given)
    assert made["guidance_scale"] == pytest.approx(guidance)
    assert made["num_inference_steps"] == steps


@pytest.fixture(scope="module")
def guided() -> Iterator[httpx.Client]:
    """A server of a model with guidance by default, as Z-Image is."""
    manifest = replace(MANIFEST, model=replace(MANIFEST.model, default_guidance=4.0))
    with serving(FakeLoop(), manifest=manifest) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.mark.parametrize("path", [IMAGES, GENERATE])
@pytest.mark.parametrize(
    ("given", "guidance", "ignored"),
    [
        ({}, 4.0, None),
        ({"guidance_scale": None}, 4.0, None),
        ({"negative_prompt": "b", "cfg_normalization": True, "cfg_truncation": 0.5}, 4.0, None),
        ({"guidance_scale": 0, "negative_prompt": "b"}, 0.0, "negative_prompt"),
        ({"cfg_scale": 1, "cfg_normalization": 1, "cfg_truncation": 0}, 0.0, "cfg_normalization, cfg_truncation"),
        ({"true_cfg_scale": 3}, 2.0, None),
    ],
)
def test_absent_guidance_is_that_of_the_model(
    guided: httpx.Client, path: str, given: dict[str, Any], guidance: float, ignored: str | None
) -> None:
    made = made_with(guided, path, steps=2, **given)
    assert (made["guidance_scale"], made["forwards"]) == (guidance, 4 if guidance else 2)
    assert post(guided, path, steps=2, **given).headers.get(IGNORED) == ignored


def test_guidance_of_the_model_is_told(guided: httpx.Client, http: httpx.Client) -> None:
    assert guided.get("/v1/model_info").json()["default_guidance"] == 4.0
    assert http.get("/v1/model_info").json()["default_guidance"] == 0.0


@pytest.mark.parametrize("path", [IMAGES, GENERATE])
@pytest.mark.parametrize(
    ("given", "bound", "truncation"),
    [
        ({"cfg_normalization": True}, 1.0, 1.0),
        ({"cfg_normalization": False}, 0.0, 1.0),
        ({"cfg_normalization": 1}, 1.0, 1.0),
        ({"cfg_normalization": 0.5, "cfg_truncation": 0.7}, 0.5, 0.7),
        ({"cfg_normalization": None, "cfg_truncation": None}, 0.0, 1.0),
    ],
)
def test_bounds_of_guidance_are_followed_and_kept(
    http: httpx.Client, path: str, given: dict[str, Any], bound: float, truncation: float
) -> None:
    made = made_with(http, path, guidance_scale=2, steps=4, **given)
    assert (made["cfg_normalization"], made["cfg_truncation"]) == (bound, truncation)
    assert made["forwards"] == 8  # the last step begins at a progress of 0.5
    cut = made_with(http, path, guidance_scale=2, steps=4, **given | {"cfg_truncation": 0.2})
    assert cut["forwards"] == 6


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"cfg_normalization": -1}, "cfg_normalization"),
        ({"cfg_normalization": "1"}, "cfg_normalization"),
        ({"cfg_normalization": 101}, "cfg_normalization"),
        ({"cfg_truncation": 1.1}, "cfg_truncation"),
        ({"cfg_truncation": True}, "cfg_truncation"),
        ({"size": "64x96", "width": 96}, "width"),
        ({"size": "64x96", "height": 64}, "height"),
        ({"steps": 3, "num_inference_steps": 4}, "steps"),
        ({"guidance_scale": 3, "cfg_scale": 3}, "cfg_scale"),
        ({"cfg_scale": 3, "true_cfg_scale": 4}, "true_cfg_scale"),
        ({"size": "64*x"}, "size"),
        ({"width": 64.5}, "width"),
        ({"width": -64}, "width"),
        ({"width": 10**4000}, "width"),
        ({"steps": "3"}, "steps"),
        ({"steps": True}, "steps"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -2}, "seed"),
        ({"guidance": 1}, "guidance"),
        ({"model": 5}, "model"),
    ],
)
def test_contradictions_and_other_values_are_refused_by_name(
    http: httpx.Client, path: str, given: dict[str, Any], param: str
) -> None:
    response = http.post(path, json={"prompt": "a cat"} | given)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("path", ALL)
def test_error_names_the_field_that_the_client_sent(http: httpx.Client, path: str) -> None:
    sizes = ({"size": "100x64"}, "size"), ({"size": "64x100"}, "size")
    for given, param in (*sizes, ({"width": 100}, "width"), ({"height": 100}, "height")):
        assert error_of(http.post(path, json={"prompt": "a cat"} | given))["param"] == param


def test_integers_may_be_written_as_floats(client: openai.OpenAI, http: httpx.Client) -> None:
    answer = client.images.generate(prompt="a cat", extra_body={"n": 2.0, "seed": 7.0, "num_inference_steps": 3.0})
    assert [image.seed for image in answer.data] == [7, 8]
    assert pixels(answer)[0, 0].tolist() == [7, 3, 5]
    assert post(http, GENERATE, num_images=2.0, seed=7.0).json()["seeds"] == [7, 8]
    assert post(http, GENERATE, n=2.0, seed=7.0).json()["seeds"] == [7, 8]


def test_number_of_images_has_two_names_that_must_agree(http: httpx.Client) -> None:
    assert len(post(http, GENERATE, n=2, num_images=2).json()["seeds"]) == 2
    response = http.post(GENERATE, json={"prompt": "a cat", "n": 2, "num_images": 3})
    assert error_of(response)["param"] == "n"


@pytest.mark.parametrize("path", [IMAGES, GENERATE])
def test_seed_of_minus_one_is_random_and_seeds_have_64_bits(http: httpx.Client, path: str) -> None:
    assert len({made_with(http, path, seed=-1)["seed"] for _ in range(3)}) == 3
    assert made_with(http, path, seed=2**64 - 1)["seed"] == 2**64 - 1
    assert made_with(http, path, seed=2**63)["seed"] == 2**63


def test_task_with_the_largest_seed_is_stored_with_it(http: httpx.Client) -> None:
    task_id = post(http, SUBMIT, seed=2**64 - 1, n=2).json()["task_id"]
    with http.stream("GET", f"/v1/task/{task_id}/events") as response:
        last = json.loads(list(response.iter_lines())[-2].removeprefix("data: "))
    assert [one["seed"] for one in last["task"]["result"]["metadata"]] == [2**64 - 1, 0]


def test_answer_without_a_response_format_has_both_a_url_and_base64(client: openai.OpenAI, http: httpx.Client) -> None:
    seed = {"seed": 7}
    for both in (client.images.generate(prompt="a cat", n=2, extra_body=seed), images(client, None)):
        for image in both.data:
            assert http.get(image.url).content == base64.b64decode(image.b64_json)
    (only_url,) = images(client, "url").data
    assert only_url.b64_json is None
    assert decoded(http.get(only_url.url).content)[0, 0].tolist() == [7, 8, 5]
    (only_data,) = images(client, "b64_json").data
    assert only_data.url is None
    assert decoded(base64.b64decode(only_data.b64_json))[0, 0].tolist() == [7, 8, 5]


def images(client: openai.OpenAI, response_format: Any) -> Any:
    return client.images.generate(prompt="a cat", response_format=response_format, extra_body={"seed": 7})


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ({"priority": "batch"}, None),
        ({"priority": "batch", "service_tier": "flex"}, None),
        ({"priority": "batch", "service_tier": "auto"}, None),
        ({"service_tier": "default", "priority": "interactive"}, None),
        ({"service_tier": "priority"}, "service_tier"),
        ({"plan_id": MANIFEST.plan_id}, None),
    ],
)
@pytest.mark.parametrize("path", ALL)
def test_priority_and_plans_may_be_named(
    http: httpx.Client, path: str, given: dict[str, Any], reported: str | None
) -> None:
    assert post(http, path, **given).headers.get(IGNORED) == reported


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"service_tier": "flex", "priority": "interactive"}, "service_tier"),
        ({"service_tier": "priority", "priority": "batch"}, "service_tier"),
        ({"plan_id": "of another build"}, "plan_id"),
    ],
)
@pytest.mark.parametrize("path", ALL)
def test_unknown_and_contradicting_priorities_and_plans_are_refused_by_name(
    http: httpx.Client, path: str, given: dict[str, Any], param: str
) -> None:
    refused = http.post(path, json={"prompt": "a cat"} | given)
    assert refused.status_code == 400 and error_of(refused)["param"] == param


def test_stream_by_url_and_another_noise_are_refused(client: openai.OpenAI) -> None:
    for given, param in (
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"generator_device": "cuda"}, "generator_device"),
        ({"background": "transparent"}, "background"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a cat", extra_body=given)
        assert caught.value.param == param


def test_repeated_key_may_come_with_defaults_written_out(http: httpx.Client) -> None:
    headers = {"idempotency-key": "with defaults"}
    bodies = ({"prompt": "a cat"}, {"prompt": "a cat", "n": 1, "size": "auto", "seed": None, "steps": None})
    first, again = (http.post(IMAGES, json=body, headers=headers) for body in bodies)
    assert first.json() == again.json()
    assert http.post(IMAGES, json=bodies[0] | {"n": 2}, headers=headers).status_code == 422

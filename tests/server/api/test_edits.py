"""OpenAI's endpoints for images that begin with an image, as the official client and as others call them."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fakes.forms import HEADERS, form
from fakes.loop import FakeLoop
from fakes.pictures import RED, SIZE, as_base64, left_half, picture, saved
from fakes.server import decoded, error_of, pixels
from PIL import Image

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def test_official_client_edits_an_image(client: openai.OpenAI) -> None:
    answer = client.images.edit(
        image=picture(),
        prompt="a cat",
        n=2,
        size="64x96",
        response_format="b64_json",
        output_format="png",
        user="somebody",
        extra_body={"seed": 7, "strength": 0.5, "num_inference_steps": 6},
    )
    assert answer.size == "64x96" and len(answer.data) == 2
    assert pixels(answer).shape == (96, 64, 3)
    for number in range(2):
        assert pixels(answer, number)[0, 0].tolist() == [7 + number, 3, RED]  # half of 6 steps


def test_image_of_a_plain_call_has_the_size_of_its_own_and_diffusers_strength(client: openai.OpenAI) -> None:
    answer = client.images.edit(image=("cat.jpg", picture((100, 70), kind="JPEG"), "image/jpeg"), prompt="a cat")
    assert answer.size == "96x64" and pixels(answer).shape == (64, 96, 3)
    assert pixels(answer)[0, 0][1] == 5  # 0.6 of 8 steps, rounded up


@pytest.mark.parametrize("transparent", [False, True])
def test_mask_keeps_the_rest_of_the_image(client: openai.OpenAI, transparent: bool) -> None:
    mask = left_half(transparent=transparent)
    answer = client.images.edit(image=picture(), mask=mask, prompt="a cat", extra_body={"seed": 7})
    found = pixels(answer)
    assert (found[:, :32] == [7, 8, RED]).all()  # all steps
    assert (found[:, 32:] == [RED, 20, 30]).all()


def test_transparent_part_of_an_edited_image_is_its_mask(client: openai.OpenAI) -> None:
    image = Image.open(io.BytesIO(picture(colour=(RED, 20, 30, 255))))
    image.paste((RED, 20, 30, 0), (0, 0, 32, 96))
    found = pixels(client.images.edit(image=saved(image), prompt="a cat", extra_body={"seed": 7}))
    assert (found[:, :32] == [7, 8, RED]).all() and (found[:, 32:] == [RED, 20, 30]).all()
    with pytest.deprecated_call():
        varied = pixels(client.images.create_variation(image=saved(image), extra_body={"seed": 7}))
    assert (varied[:, :, :2] == [7, 5]).all()  # alpha is laid on white


def test_first_of_several_images_is_used_and_the_others_are_named(client: openai.OpenAI) -> None:
    images = [picture(colour=(red, 0, 0)) for red in (RED, 1, 2)]
    raw = client.images.with_raw_response.edit(image=images, prompt="a cat", quality="high", input_fidelity="high")
    assert pixels(raw.parse())[0, 0][2] == RED
    named = raw.headers["x-ignored-parameters"].split(", ")
    assert named == ["quality", "input_fidelity", "image[1]", "image[2]"]


def test_official_client_makes_variations(client: openai.OpenAI) -> None:
    with pytest.deprecated_call():
        answer = client.images.create_variation(image=picture(), n=2, size="128x96", response_format="b64_json")
    assert len(answer.data) == 2 and pixels(answer).shape == (96, 128, 3)


def test_stream_of_an_edit_has_the_events_of_edits(client: openai.OpenAI) -> None:
    stream = client.images.edit(
        image=picture(), prompt="a cat", stream=True, partial_images=2, extra_body={"num_inference_steps": 100}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert {event.size for event in events} == {"64x96"}
    assert decoded(base64.b64decode(events[-1].b64_json)).shape == (96, 64, 3)
    assert events[-1].usage.output_tokens == 4 * 6


def test_cropped_mask_gives_previews_and_an_image_of_the_original_s_size(client: openai.OpenAI) -> None:
    size = (333, 211)
    mask = Image.new("L", size, 0)
    mask.paste(255, (100, 80, 140, 120))
    stream = client.images.edit(
        image=picture(size),
        mask=saved(mask),
        prompt="a cat",
        stream=True,
        partial_images=1,
        extra_body={"padding_mask_crop": 16, "mask_blur": 0, "seed": 7},
    )
    preview, image = list(stream)
    assert preview.size == image.size == "333x211"
    shown, found = (decoded(base64.b64decode(event.b64_json)) for event in (preview, image))
    assert shown.shape == found.shape == (211, 333, 3)
    outside = np.ones((211, 333), bool)
    outside[80:120, 100:140] = False
    for each in (shown, found):
        assert (each[outside] == [RED, 20, 30]).all()
    assert (found[100, 120] == [7, 8, RED]).all()


@pytest.mark.parametrize("kind", ["url", "b64_json"])
def test_response_format_of_an_edit(client: openai.OpenAI, http: httpx.Client, kind: str) -> None:
    (image,) = client.images.edit(image=picture(), prompt="a cat", response_format=kind).data
    data = http.get(image.url).content if kind == "url" else base64.b64decode(image.b64_json)
    assert decoded(data).shape == (96, 64, 3)


JSON_BODIES: dict[str, dict[str, Any]] = {
    "image as base64": {"image": as_base64(picture())},
    "image as data URL": {"image": f"data:image/png;base64,{as_base64(picture())}"},
    "images of OpenAI's JSON": {"images": [{"image_url": f"data:image/png;base64,{as_base64(picture())}"}]},
    "image as an object": {"image": {"url": f"data:image/png;base64,{as_base64(picture())}", "type": "image_url"}},
    "image_url as an object": {"image": {"image_url": {"url": as_base64(picture())}}},
    "init_image": {"init_image": as_base64(picture())},
}


@pytest.mark.parametrize("name", JSON_BODIES)
def test_edit_as_json(http: httpx.Client, name: str) -> None:
    answer = http.post(EDITS, json={"prompt": "a cat", "seed": 7, "mask": None} | JSON_BODIES[name])
    assert answer.status_code == 200, answer.text
    assert decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))[0, 0].tolist() == [7, 5, RED]
    assert "x-ignored-parameters" not in answer.headers


def test_further_images_in_json_are_named(http: httpx.Client) -> None:
    data = as_base64(picture())
    answer = http.post(EDITS, json={"prompt": "a cat", "image": [data, data, data]})
    assert answer.headers["x-ignored-parameters"] == "image[1], image[2]"


def test_form_with_base64_and_numbers_as_text(http: httpx.Client) -> None:
    texts = {"prompt": "a cat", "seed": "18446744073709551615", "steps": "6.0", "strength": "0.5", "n": "1"}
    parts = [(name, value.encode(), None) for name, value in texts.items()]
    body = form(*parts, ("stream", b"false", None), ("image", f"data:;base64,{as_base64(picture())}".encode(), None))
    answer = http.post(EDITS, content=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))[0, 0].tolist() == [255, 3, RED]


def test_null_is_absent_in_a_form_and_a_prompt_all_the_same(http: httpx.Client) -> None:
    nulls = [(name, b"null", None) for name in ("size", "steps", "strength", "mask", "lora", "prompt")]
    answer = http.post(EDITS, content=form(IMAGE, *nulls), headers=HEADERS)
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert json.loads(Image.open(io.BytesIO(data)).info["zimage-trt"])["prompt"] == "null"


IMAGE = ("image", picture(), "in.png")


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([("prompt", b"a cat", None)], "image", "missing_required_parameter"),
        ([IMAGE, ("n", b"eight", None)], "n", "invalid_type"),
        ([IMAGE, ("n", b"11", None)], "n", "integer_above_max_value"),
        ([IMAGE, ("step", b"8", None)], "step", "unknown_parameter"),
        ([IMAGE, ("svg[model]", b"x", None)], "svg[model]", "unknown_parameter"),
        ([IMAGE, ("markup", picture(), "markup.png")], "markup", "unknown_parameter"),
        ([IMAGE, ("strength", b"1.5", None)], "strength", "integer_above_max_value"),
        ([IMAGE, ("strength", b"0", None)], "strength", "invalid_value"),
        ([IMAGE, ("size", b"100x100", None)], "size", "invalid_value"),
        ([IMAGE, ("background", b"transparent", None)], "background", "unsupported_value"),
        ([IMAGE, ("output_format", b"gif", None)], "output_format", "invalid_value"),
        ([IMAGE, ("padding_mask_crop", b"8", None)], "padding_mask_crop", "invalid_value"),
        ([("image", b"no image", "in.png")], "image", "invalid_value"),
        ([("image", b"", "in.png")], "image", "invalid_value"),
        ([("image", picture()[:-40], "in.png")], "image", "invalid_value"),
        ([IMAGE, ("mask", b"no image", "m.png")], "mask", "invalid_value"),
        ([IMAGE, ("mask", picture(colour=(0, 0, 0)), "m.png")], "mask", "invalid_value"),
        ([("mask", left_half(), "m.png")], "mask", "invalid_value"),
        ([("image", b"https://example.com/cat.png", None)], "image", "url_not_fetched"),
        ([("image", b"!!", None)], "image", "invalid_data_url"),
    ],
)
def test_what_cannot_be_followed_is_400_by_name(http: httpx.Client, parts: list[Any], param: str, code: str) -> None:
    answer = http.post(EDITS, content=form(*parts), headers=HEADERS)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code), error
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "image", "missing_required_parameter"),
        ({"image": []}, "image", "missing_required_parameter"),
        ({"image": 5}, "image", "invalid_value"),
        ({"image": {"file_id": "file-1"}}, "image", "invalid_value"),
        ({"image": "file:///etc/passwd"}, "image", "url_not_fetched"),
        ({"image": {"url": "HTTP://127.0.0.1/"}}, "image", "url_not_fetched"),
        ({"image": "data:image/png,plain"}, "image", "invalid_data_url"),
        ({"image": "AAAA", "init_image": "AAAA"}, "init_image", "invalid_value"),
        ({"mask": as_base64(left_half())}, "mask", "invalid_value"),
        ({"image": as_base64(picture()), "mask": "https://example.com/m.png"}, "mask", "url_not_fetched"),
    ],
)
def test_json_that_cannot_be_followed_is_400_by_name(
    http: httpx.Client, body: dict[str, Any], param: str, code: str
) -> None:
    answer = http.post(EDITS, json={"prompt": "a cat"} | body)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code), error


def test_animation_is_read_and_said(http: httpx.Client) -> None:
    frames = [Image.new("RGB", SIZE, (RED, 0, 0)), Image.new("RGB", SIZE, (0, 0, 255))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    answer = http.post(
        EDITS, content=form(("image", file.getvalue(), "a.gif"), ("prompt", b"x", None)), headers=HEADERS
    )
    assert "frame" in answer.headers["x-image-notes"]
    assert decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))[0, 0][2] == RED


def test_page_of_another_site_cannot_send_a_form_but_a_client_with_a_key_may(http: httpx.Client) -> None:
    body = form(IMAGE, ("prompt", b"a cat", None))
    answer = http.post(EDITS, content=body, headers=HEADERS | {"origin": "https://evil.example"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_origin")
    basic = HEADERS | {
        "origin": "https://evil.example",
        "authorization": "Basic eDp5",
    }  # which browsers add by themselves
    assert http.post(EDITS, content=body, headers=basic).status_code == 403
    for key in ({"authorization": "Bearer x"}, {"x-api-key": "x"}):
        assert (
            http.post(EDITS, content=body, headers=HEADERS | {"origin": "https://a.example"} | key).status_code == 200
        )


def test_repeated_key_needs_the_same_image(http: httpx.Client, fake: FakeLoop) -> None:
    def edit(image: bytes, mask: bytes | None = None) -> httpx.Response:
        parts = [("prompt", b"repeated", None), ("seed", b"3", None), ("image", image, "x")]
        parts += [] if mask is None else [("mask", mask, "m")]
        return http.post(EDITS, content=form(*parts), headers=HEADERS | {"idempotency-key": "edit"})

    first = edit(picture())
    assert first.status_code == 200
    runs = sum(prompt == "repeated" for prompt, _ in fake.log)
    assert edit(picture()).json()["data"] == first.json()["data"]
    assert sum(prompt == "repeated" for prompt, _ in fake.log) == runs
    as_json = http.post(
        EDITS,
        json={"prompt": "repeated", "seed": 3, "image": as_base64(picture())},
        headers={"idempotency-key": "edit"},
    )
    assert as_json.json()["data"] == first.json()["data"]
    for other in (edit(picture(colour=(RED, 20, 31))), edit(picture(), left_half())):
        assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")


def test_key_of_an_edit_by_alpha_is_not_that_of_a_variation_of_the_same_image(http: httpx.Client) -> None:
    image = Image.open(io.BytesIO(picture(colour=(RED, 20, 30, 255))))
    image.paste((RED, 20, 30, 0), (0, 0, 32, 96))
    body, key = form(("image", saved(image), "x")), {"idempotency-key": "by alpha"}
    assert http.post(EDITS, content=body, headers=HEADERS | key).status_code == 200
    other = http.post(VARIATIONS, content=body, headers=HEADERS | key)
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")


def test_metadata_in_the_file_say_how_it_was_made(http: httpx.Client) -> None:
    body = {"prompt": "a cat", "image": as_base64(picture()), "strength": 0.5, "num_inference_steps": 6}
    data = base64.b64decode(http.post(EDITS, json=body).json()["data"][0]["b64_json"])
    facts = json.loads(Image.open(io.BytesIO(data)).info["zimage-trt"])
    assert (facts["num_inference_steps"], facts["forwards"]) == (6, 3)

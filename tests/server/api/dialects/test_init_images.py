"""Images to start from, as the clients of other servers send them."""

import base64
import json
from typing import Any

import httpx
import pytest
from fakes.pictures import RED, as_base64, left_half, picture
from fakes.server import decoded

IGNORED = "x-ignored-parameters"
IMAGE = as_base64(picture())
IMG2IMG = "/sdapi/v1/img2img"
# what webuiapi 0.9.17 sends (img2img), without what txt2img has too
WEBUIAPI = {
    "init_images": ["data:image/png;base64," + IMAGE],
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "image_cfg_scale": 1.5,
    "include_init_images": False,
    "prompt": "a cat",
    "seed": 7,
    "steps": 8,
    "cfg_scale": 1,
}


def img2img(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post(IMG2IMG, json=WEBUIAPI | body)


def pixels(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return decoded(base64.b64decode(answer.json()["images"][0]))


def test_init_image_is_drawn_anew_by_its_denoising_strength(http: httpx.Client) -> None:
    answer = img2img(http, width=64, height=96)
    assert pixels(answer)[0, 0].tolist() == [7, 6, RED]  # 0.75 of 8 steps
    assert pixels(answer).shape == (96, 64, 3)
    assert answer.headers.get(IGNORED) is None
    assert pixels(img2img(http, denoising_strength=0.5, init_images=[IMAGE, IMAGE]))[0, 0, 1] == 4


@pytest.mark.parametrize(("is_inverted", "drawn"), [(0, slice(0, 32)), (1, slice(32, 64))])
@pytest.mark.parametrize("only_masked", [True, False])
def test_white_of_the_mask_is_drawn_anew_unless_it_is_inverted(
    http: httpx.Client, is_inverted: int, drawn: slice, only_masked: bool
) -> None:
    found = pixels(
        img2img(
            http,
            mask=as_base64(left_half(transparent=False)),
            inpainting_mask_invert=is_inverted,
            inpaint_full_res=only_masked,
            mask_blur=0,
            inpainting_fill=1,
            width=64,
            height=96,
        )
    )
    is_drawn = (found == [7, 6, RED]).all(-1)
    assert is_drawn[:, drawn].all() and is_drawn.sum() == 96 * 32


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"init_images": []}, "init_images"),
        ({"init_images": None}, "init_images"),
        ({"init_images": [IMAGE, "another"]}, "init_images"),
        ({"init_images": ["http://example.com/cat.png"]}, "init_images"),
        ({"init_images": ["x"]}, "init_images"),
        ({"init_images": [as_base64(b"no image")]}, "init_images"),
        ({"mask": as_base64(b"no image")}, "mask"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"resize_mode": 3}, "resize_mode"),
        ({"denoising_strength": 0}, "denoising_strength"),
        ({"denoising_strength": 1.5}, "denoising_strength"),
        ({"initial_noise_multiplier": 1.1}, "initial_noise_multiplier"),
        ({"latent_mask": IMAGE}, "latent_mask"),
        ({"mask": IMAGE, "inpainting_fill": 2}, "inpainting_fill"),
        ({"mask_blur_x": 5}, "mask_blur_x"),
        ({"inpaint_full_res": 2}, "inpaint_full_res"),
        ({"width": 100}, "width"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(http: httpx.Client, given: dict[str, Any], name: str) -> None:
    answer = img2img(http, **given)
    assert answer.status_code == 400, answer.text
    assert answer.json()["body"].split(".")[0] == name


def test_fields_of_masks_are_reported_where_there_is_no_mask(http: httpx.Client) -> None:
    answer = img2img(http, mask_blur=8, inpainting_fill=2, inpainting_mask_invert=1, image_cfg_scale=3)
    assert answer.headers[IGNORED] == "image_cfg_scale, mask_blur, inpainting_fill, inpainting_mask_invert"


def test_fields_of_crops_are_reported_where_the_whole_image_is_generated(http: httpx.Client) -> None:
    mask = as_base64(left_half(transparent=False))
    given = {"mask": mask, "mask_blur": 8, "inpaint_full_res_padding": 4}
    assert img2img(http, **given, inpaint_full_res=False).headers[IGNORED] == "mask_blur, inpaint_full_res_padding"
    assert IGNORED not in img2img(http, **given, inpaint_full_res=True).headers


@pytest.mark.parametrize("path", ["variations", "edits"])
def test_forms_of_xinference_are_followed(http: httpx.Client, path: str) -> None:
    name = "images" if path == "edits" else "image"
    fields = {"prompt": "a cat", "size": "64*96", "kwargs": '{"seed": 7, "strength": 0.5, "guidance_scale": null}'}
    answer = http.post(
        f"/v1/images/{path}",
        data={"model": "any", "n": "1", "response_format": "b64_json", **fields},
        files={name: ("image", picture(), "application/octet-stream")},
    )
    assert answer.status_code == 200, answer.text
    assert decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))[0, 0].tolist() == [7, 4, RED]


def test_error_of_a_form_with_kwargs_has_xinference_s_detail(http: httpx.Client) -> None:
    data = {"prompt": "a cat", "kwargs": '{"seeed": 7}'}
    answer = http.post("/v1/images/inpainting", data=data, files={"image": ("image", picture())})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seeed")
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_mask_of_xinference_selects_what_is_drawn_anew(http: httpx.Client) -> None:
    files = {"image": ("image", picture()), "mask_image": ("mask_image", left_half(transparent=False))}
    data = {"prompt": "a cat", "response_format": "b64_json", "kwargs": json.dumps({"seed": 7})}
    answer = http.post("/v1/images/inpainting", data=data, files=files)
    found = decoded(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    assert (found[:, :32] == [7, 8, RED]).all() and (found[:, 32:] == [RED, 20, 30]).all()


def test_kwargs_beside_a_field_of_the_form_are_refused(http: httpx.Client) -> None:
    data = {"prompt": "a cat", "seed": "7", "kwargs": '{"seed": 7}'}
    answer = http.post("/v1/images/variations", data=data, files={"image": ("image", picture())})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seed")


# what vLLM-Omni's load tool sends for i2i (benchmarks/diffusion/backends.py, commit 0780e45)
def chat(*urls: Any, **extra: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "a cat"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    return {"model": "default", "messages": [{"role": "user", "content": parts}], "extra_body": extra}


def test_image_in_a_message_is_drawn_anew(http: httpx.Client) -> None:
    url = "data:image/png;base64," + IMAGE
    answer = http.post("/v1/chat/completions", json=chat(url, url, num_inference_steps=2, seed=7))
    assert answer.status_code == 200, answer.text
    (part,) = answer.json()["choices"][0]["message"]["content"]
    found = decoded(base64.b64decode(part["image_url"]["url"].split(",")[1]))
    assert found[0, 0].tolist() == [7, 2, RED]
    assert answer.headers[IGNORED] == "messages, model"


@pytest.mark.parametrize("url", ["http://example.com/cat.png", "data:image/png;base64,eA==", "x", 7, None])
def test_image_in_a_message_that_cannot_be_used_is_refused(http: httpx.Client, url: Any) -> None:
    answer = http.post("/v1/chat/completions", json=chat(url))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_init_image_beside_the_messages_is_refused_by_its_own_name(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=chat(init_image="eA=="))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "init_image")


def test_edits_of_vllm_omni_s_load_tool_are_followed(http: httpx.Client) -> None:
    """Fields of `async_request_image_edits` (benchmarks/diffusion/backends.py, commit 0780e45)."""
    data = {"model": "default", "prompt": "a cat", "size": "64x96", "response_format": "b64_json"}
    data |= {"num_inference_steps": "8", "seed": "7", "bot_task": "think"}
    answer = http.post("/v1/images/edits", data=data, files={"image": ("cat.png", picture(), "image/png")})
    assert answer.status_code == 200, answer.text
    assert answer.headers[IGNORED] == "bot_task, model"

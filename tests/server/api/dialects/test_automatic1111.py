"""AUTOMATIC1111's API: requests as its clients send them, and what each field does."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fakes.loop import LORAS, MANIFEST, MODEL, FakeLoop
from fakes.server import decoded, serving

from server.api.access import AccessPolicy
from server.api.dialects import lora_tags
from server.api.dialects.lora_tags import TaggedPrompt
from server.api.fields import MAX_PROMPT

IGNORED = "x-ignored-parameters"

# what Open WebUI sends (backend/open_webui/routers/images.py, commit 02530d5) with its default size
OPEN_WEBUI = {"prompt": "a cat", "batch_size": 1, "width": 128, "height": 64, "steps": 50}
# what LibreChat sends (api/app/clients/tools/structured/StableDiffusion.js, commit 00b3bc3), but for the size
LIBRECHAT = {
    "prompt": "a cat",
    "negative_prompt": "blue",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 128,
    "height": 64,
}
# what SillyTavern sends (public/scripts/extensions/stable-diffusion/index.js, commit ba6f7b7), but for the size
SILLYTAVERN = {
    "url": "http://localhost:7860",
    "auth": "",
    "prompt": "a cat",
    "negative_prompt": "blue",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 20,
    "cfg_scale": 7,
    "width": 128,
    "height": 64,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2.0,
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}


def txt2img(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/sdapi/v1/txt2img", json={"prompt": "a cat"} | body)


def info(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.json()["info"])
    return found


@pytest.mark.parametrize(
    ("request_body", "cfg_scale", "ignored"),
    [
        (OPEN_WEBUI, 1.0, None),
        (LIBRECHAT, 4.5, None),
        (
            SILLYTAVERN,
            7.0,
            "url, auth, sampler_name, scheduler, denoising_strength, save_images,"
            " override_settings.CLIP_stop_at_last_layers",
        ),
    ],
    ids=["Open WebUI", "LibreChat", "SillyTavern"],
)
def test_clients_get_what_they_ask_for(
    http: httpx.Client, request_body: dict[str, Any], cfg_scale: float, ignored: str | None
) -> None:
    answer = http.post("/sdapi/v1/txt2img", json=request_body)
    made = info(answer)
    assert (made["width"], made["height"]) == (128, 64)
    assert (made["steps"], made["cfg_scale"]) == (request_body["steps"], cfg_scale)
    assert answer.headers.get(IGNORED) == ignored
    image = decoded(base64.b64decode(answer.json()["images"][0]))
    assert image.shape == (64, 128, 3)
    assert image[0, 0].tolist() == [made["seed"] % 256, request_body["steps"], 5]
    text = f"Steps: {request_body['steps']}, Sampler: Euler, CFG scale: {cfg_scale:g}, Seed: {made['seed']}"
    assert text in made["infotexts"][0]


def test_absent_fields_are_the_model_s_and_not_the_web_ui_s(http: httpx.Client) -> None:
    made = info(txt2img(http))
    assert (made["steps"], made["cfg_scale"], made["width"], made["height"]) == (8, 1.0, 128, 96)
    assert made["sd_model_name"] == MODEL


def test_guidance_that_is_absent_is_the_models() -> None:
    manifest = replace(MANIFEST, model=replace(MANIFEST.model, default_guidance=4.0))
    with serving(FakeLoop(), manifest=manifest) as url, httpx.Client(base_url=url) as guided:
        for given, cfg_scale in (
            ({}, 5.0),
            ({"cfg_scale": None}, 5.0),
            ({"cfg_scale": 7}, 7.0),
            ({"cfg_scale": 1}, 1.0),
        ):
            answer = txt2img(guided, steps=2, negative_prompt="b", **given)
            assert info(answer)["cfg_scale"] == cfg_scale
            assert answer.headers.get(IGNORED) == ("negative_prompt" if cfg_scale == 1 else None)


def test_bounds_of_guidance_are_followed(http: httpx.Client) -> None:
    made = info(txt2img(http, cfg_scale=4.5, cfg_normalization=True, cfg_truncation=0.2))
    assert "CFG scale: 4.5" in made["infotexts"][0]
    assert "CFG normalization: 1, CFG truncation: 0.2" in made["infotexts"][0]


def test_batches_and_iterations_are_images_with_consecutive_seeds(http: httpx.Client) -> None:
    answer = txt2img(http, batch_size=2, n_iter=2.0, seed=7)
    assert info(answer)["all_seeds"] == [7, 8, 9, 10]
    assert len(info(answer)["infotexts"]) == 4
    pixels = [decoded(base64.b64decode(image))[0, 0, 0] for image in answer.json()["images"]]
    assert pixels == [7, 8, 9, 10]
    assert answer.json()["parameters"]["seed"] == 7
    assert txt2img(http, batch_size=4, n_iter=3).json()["body"] == "n_iter"


def test_seed_of_minus_one_is_random(http: httpx.Client) -> None:
    assert len({info(txt2img(http, seed=-1))["seed"] for _ in range(3)}) == 3


def test_images_are_left_out_on_request(http: httpx.Client) -> None:
    answer = txt2img(http, send_images=False, seed=3)
    assert answer.json()["images"] == []
    assert info(answer)["all_seeds"] == [3]


@pytest.mark.parametrize(
    ("given", "ignored"),
    [
        ({"negative_prompt": "blue"}, "negative_prompt"),
        ({"negative_prompt": "blue", "cfg_scale": 1}, "negative_prompt"),
        ({"negative_prompt": "blue", "cfg_scale": 2}, None),
        ({"sampler_name": "Euler", "scheduler": "Simple", "eta": None, "styles": []}, None),
        ({"sampler_name": "Euler a", "sampler_index": "DDIM"}, "sampler_name, sampler_index"),
        ({"override_settings": {"sd_model_checkpoint": MODEL, "sd_vae": None}}, None),
        ({"override_settings": {"sd_model_checkpoint": "sdxl", "sd_vae": "x"}}, "override_settings.sd_vae, model"),
        ({"force_task_id": "a", "script_args": [1]}, "force_task_id, script_args"),
    ],
)
def test_what_cannot_change_the_image_is_accepted_and_reported(
    http: httpx.Client, given: dict[str, Any], ignored: str | None
) -> None:
    answer = txt2img(http, **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get(IGNORED) == ignored


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["cinematic"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts"),
        ({"refiner_checkpoint": "sdxl"}, "refiner_checkpoint"),
        ({"infotext": "Steps: 3"}, "infotext"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"width": 100}, "width"),
        ({"cfg_scale": 32}, "cfg_scale"),
        ({"cfg_scale": "7"}, "cfg_scale"),
        ({"batch_size": 11}, "batch_size"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"override_settings": {"sd_model_checkpoint": 7}}, "override_settings.sd_model_checkpoint"),
        ({"hr_skale": 2}, "hr_skale"),
    ],
)
def test_what_would_change_the_image_or_is_unknown_is_refused_by_name(
    http: httpx.Client, given: dict[str, Any], name: str
) -> None:
    answer = txt2img(http, **given)
    assert answer.status_code == 400
    error = answer.json()
    assert error.keys() == {"error", "detail", "body", "errors"}
    assert error["body"] == name
    assert name in error["detail"] == error["errors"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat <lora:outlines>", TaggedPrompt("a cat", "outlines")),
        ("<lora:outlines:1> a cat", TaggedPrompt("a cat", "outlines")),
        ("a cat<lora:my lora:0.8>, blue", TaggedPrompt("a cat, blue", "my lora", 0.8)),
        ("a <lyco:outlines:-1.5> cat", TaggedPrompt("a cat", "outlines", -1.5)),
        ("a cat <lora:outlines:0>", TaggedPrompt("a cat")),
        ("a cat <lora:a:0> <lora:b:0.5>", TaggedPrompt("a cat", "b", 0.5)),
        ("a < b, <c> and <lora>", TaggedPrompt("a < b, <c> and <lora>")),
        (" a cat ", TaggedPrompt(" a cat ")),
    ],
)
def test_tag_in_a_prompt_names_a_lora_and_its_strength(prompt: str, expected: TaggedPrompt) -> None:
    assert lora_tags.parse(prompt) == expected


def test_time_for_a_prompt_of_spaces_is_that_of_other_prompts() -> None:
    def seconds(prompt: str) -> float:
        start = time.process_time()
        lora_tags.parse(prompt)
        return time.process_time() - start

    assert seconds(" " * MAX_PROMPT) < 100 * max(seconds("a" * MAX_PROMPT), 1e-4)  # thousands of times, if quadratic


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat <lora:a> <lora:b>",
        "a cat <lora:>",
        "a cat <lora:a:much>",
        "a cat <lora:a:nan>",
        "a cat <lora:a:1:0.5>",
        "a cat <lora:a:te=0>",
        "a cat <hypernet:a:1>",
        "a cat <lora:unknown>",
        f"a cat <lora:{LORAS[0]}:9>",
    ],
)
def test_tag_that_cannot_be_followed_is_refused(http: httpx.Client, prompt: str) -> None:
    answer = txt2img(http, prompt=prompt)
    assert (answer.status_code, answer.json()["body"]) == (400, "prompt")


def test_tagged_lora_is_used_and_its_tag_is_no_prompt(http: httpx.Client) -> None:
    made = info(txt2img(http, prompt=f"a cat <lora:{LORAS[0]}:0.8>"))
    assert (made["prompt"], f"LoRA: {LORAS[0]}, LoRA strength: 0.8" in made["infotexts"][0]) == ("a cat", True)
    assert info(txt2img(http, prompt="<lora:x>", disable_extra_networks=True))["prompt"] == "<lora:x>"
    assert [lora["name"] for lora in http.get("/sdapi/v1/loras").json()] == list(LORAS)


@pytest.mark.parametrize("path", ["extra-single-image", "extra-batch-images", "interrogate"])
def test_other_uses_of_images_are_refused(http: httpx.Client, path: str) -> None:
    answer = http.post(f"/sdapi/v1/{path}", json={"init_images": ["x"], "prompt": "a cat"})
    assert answer.status_code == 400
    assert "neither enlarged nor described" in answer.json()["detail"]


def test_settings_name_the_model_and_take_others_without_effect(http: httpx.Client) -> None:
    options = http.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == http.get("/sdapi/v1/sd-models").json()[0]["title"] == MODEL
    answer = http.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "sdxl", "eta_ancestral": 1})
    assert (answer.status_code, answer.headers[IGNORED]) == (200, "sd_model_checkpoint, eta_ancestral")
    assert http.get("/sdapi/v1/options").json() == options


@pytest.mark.parametrize(
    "name", ["samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae", "prompt-styles"]
)
def test_lists_have_names(http: httpx.Client, name: str) -> None:
    assert all("name" in item for item in http.get(f"/sdapi/v1/{name}").json())


def test_png_info_reads_the_texts_of_an_image(http: httpx.Client) -> None:
    answer = txt2img(http, prompt="a cät", seed=7)
    image = answer.json()["images"][0]
    for sent in (image, f"data:image/png;base64,{image}", image[:-40]):
        found = http.post("/sdapi/v1/png-info", json={"image": sent}).json()
        assert found["info"] == info(answer)["infotexts"][0]
        assert json.loads(found["items"]["zimage-trt"])["prompt"] == "a cät"


@pytest.mark.parametrize("image", ["", "x", "data:", base64.b64encode(b"\xff\xd8\xff\xe0").decode()])
def test_png_info_of_something_else_is_400(http: httpx.Client, image: str) -> None:
    answer = http.post("/sdapi/v1/png-info", json={"image": image})
    assert (answer.status_code, answer.json()["body"]) == (400, "image")


def test_png_info_takes_more_than_other_bodies_but_not_everything(http: httpx.Client) -> None:
    png = base64.b64decode(txt2img(http).json()["images"][0])
    large = base64.b64encode(png.ljust(3 << 20)).decode()
    assert http.post("/sdapi/v1/png-info", json={"image": large}).json()["info"].startswith("a cat")
    assert http.post("/sdapi/v1/png-info", json={"image": "x" * (12 << 20)}).status_code == 413


class Waiting(threading.Thread):
    """A request for an image of 100 steps, in the background."""

    def __init__(self, url: str, key: str, path: str = "/sdapi/v1/txt2img") -> None:
        super().__init__()
        self.http = httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=20)
        self._path = path
        self.start()

    def run(self) -> None:
        steps = "steps" if self._path.startswith("/sdapi") else "num_inference_steps"
        self.answer = self.http.post(self._path, json={"prompt": "a cat", steps: 100})

    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/sdapi/v1/progress").json()
        return found

    def wait_for_steps(self) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while (found := self.progress())["progress"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found


@pytest.fixture
def guarded() -> Iterator[str]:
    with serving(FakeLoop(seconds_per_step=0.02), policy=AccessPolicy(("mine", "other"))) as url:
        yield url


def test_progress_and_interrupt_are_of_the_client_s_own_jobs(guarded: str) -> None:
    mine = Waiting(guarded, "mine")
    found = mine.wait_for_steps()
    assert 0 < found["progress"] < 1 and found["eta_relative"] >= 0
    assert (found["state"]["job_count"], found["state"]["sampling_steps"]) == (1, 100)
    assert 0 < found["state"]["sampling_step"] < 100
    assert "job_" not in str(found["state"]["job"])  # by its id, anybody could read the task
    other = Waiting(guarded, "other")
    openai = Waiting(guarded, "mine", "/v1/images/generations")
    with httpx.Client(base_url=guarded, headers={"x-api-key": "other"}) as http:
        while http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0:
            time.sleep(0.01)
        assert http.post("/sdapi/v1/interrupt").status_code == 200
    other.join()
    assert (other.answer.status_code, other.answer.json()["error"]) == (409, "job_cancelled")
    assert mine.is_alive() and mine.progress()["state"]["job_count"] == 1
    assert mine.http.post("/sdapi/v1/interrupt").json() == {}
    mine.join()
    assert mine.answer.status_code == 409
    openai.join()
    assert openai.answer.status_code == 200  # is not a job of this API
    assert mine.progress()["progress"] == mine.progress()["state"]["job_count"] == 0
    for client in (mine, other, openai):
        client.http.close()


def test_every_endpoint_needs_a_key_which_may_be_a_basic_password(guarded: str) -> None:
    with httpx.Client(base_url=guarded) as http:
        for path in ("options", "sd-models", "samplers", "progress"):
            for auth in (None, ("user", "wrong"), ("mine", "")):
                answer = http.get(f"/sdapi/v1/{path}", auth=auth)
                assert (answer.status_code, answer.json()["error"]) == (401, "invalid_api_key")
            assert http.get(f"/sdapi/v1/{path}", auth=("user", "mine")).status_code == 200
        body = {"prompt": "a cat", "steps": 1}
        assert http.post("/sdapi/v1/txt2img", json=body).status_code == 401
        assert http.post("/sdapi/v1/txt2img", json=body, auth=("", "mine")).status_code == 200


def test_pages_of_other_sites_cannot_interrupt(http: httpx.Client) -> None:
    headers = {"origin": "http://evil.example"}
    answer = http.post("/sdapi/v1/interrupt", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (403, "foreign_origin")
    asked = headers | {"content-type": "application/json"}  # for which a browser needs the server's permission
    assert http.post("/sdapi/v1/interrupt", headers=asked).status_code == 200

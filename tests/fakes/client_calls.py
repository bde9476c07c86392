"""Calls of other projects' clients, unchanged, each in a process of its own: `python -m fakes.client_calls NAME URL`.

Prints the answers as JSON. The processes keep these packages' warnings and threads out of the tests.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT, SEED, STEPS = 128, 64, 7, 3
PROMPT = "a cat"
RED = 200  # of images to start from
KEY = "a-key"  # that the server knows


def main(name: str, url: str, folder: str) -> None:
    print(
        json.dumps(
            {
                "webuiapi": webuiapi,
                "gradio_client": gradio,
                "xinference_client": xinference,
                "langchain_community": langchain,
                "litellm": litellm,
            }[name](url, Path(folder))
        )
    )


def webuiapi(url: str, _: Path) -> Any:
    from webuiapi import WebUIApi

    api = WebUIApi(baseurl=f"{url}/sdapi/v1", username="user", password=KEY)
    answer = api.txt2img(
        prompt=f"{PROMPT} <lora:outlines:1>",
        seed=SEED,
        steps=STEPS,
        cfg_scale=1,
        width=WIDTH,
        height=HEIGHT,
        batch_size=2,
    )
    image = Image.new("RGB", (WIDTH, HEIGHT), (RED, 20, 30))
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, WIDTH // 2, HEIGHT))
    options = {"images": [image], "prompt": PROMPT, "seed": SEED, "steps": 8, "cfg_scale": 1}
    options |= {"width": WIDTH, "height": HEIGHT}
    drawn = api.img2img(**options)
    inpainted = api.img2img(**options, mask_image=mask, mask_blur=0).image.convert("RGB")
    loras = [lora["name"] for lora in api.get_loras()]
    api.util_set_model("sdxl")
    api.util_wait_for_ready(0.1)
    api.refresh_checkpoints()
    api.interrupt()
    return {
        "pixels": _pixels(answer.image),
        "images": len(answer.images),
        "drawn": _pixels(drawn.image),
        "inpainted": [inpainted.getpixel((at, 0)) for at in (0, WIDTH // 2 - 1, WIDTH // 2, WIDTH - 1)],
        "seeds": answer.info["all_seeds"],
        "info": api.png_info(answer.image).info,
        "infotext": answer.info["infotexts"][0],
        "model": api.util_get_current_model(),
        "names": [api.util_get_sampler_names(), api.util_get_scheduler_names(), loras],
        "progress": api.get_progress()["progress"],
        "error": _error(lambda: api.txt2img(prompt=PROMPT, enable_hr=True)),
    }


def gradio(url: str, folder: Path) -> Any:
    from gradio_client import Client

    headers = {"authorization": f"Bearer {KEY}"}
    client = Client(url, headers=headers, download_files=folder, verbose=False, analytics_enabled=False)
    first = client.predict(PROMPT, WIDTH, HEIGHT, STEPS, 1.0, SEED)
    named = client.predict(prompt=PROMPT, seed=SEED, api_name="/predict")
    running = [client.submit(PROMPT, 64, 64, STEPS, 1.0, seed) for seed in range(5)]
    answers = {
        "pixels": _pixels(Image.open(first)),
        "default": Image.open(named).size,
        "concurrent": [_pixels(Image.open(one.result(20)))[2] for one in running],
        "error": _error(lambda: client.predict(PROMPT, 17)),
    }
    client.close()
    return answers


def xinference(url: str, _: Path) -> Any:
    from xinference_client import RESTfulClient

    client = RESTfulClient(url, api_key=KEY)
    (name,) = client.list_models()
    model = client.get_model(name)
    answer = model.text_to_image(
        PROMPT, size=f"{WIDTH}*{HEIGHT}", response_format="b64_json", seed=SEED, num_inference_steps=STEPS
    )
    options = {"size": f"{WIDTH}*{HEIGHT}", "response_format": "b64_json", "seed": SEED, "num_inference_steps": 8}
    image, mask = _png("RGB", (RED, 20, 30)), _png("L", 255)
    drawn = {
        "image_to_image": model.image_to_image(image, PROMPT, **options, strength=0.5),
        "image_edit": model.image_edit(image, PROMPT, **options, strength=0.5),
        "inpainting": model.inpainting(image, mask, PROMPT, **options),
    }
    by_url = model.text_to_image(PROMPT, size=f"{WIDTH}*{HEIGHT}")
    return {
        "pixels": _pixels(_decoded(answer["data"][0]["b64_json"])),
        "drawn": {name: _pixels(_decoded(made["data"][0]["b64_json"])) for name, made in drawn.items()},
        "url": by_url["data"][0]["url"],
        "error": _error(lambda: model.text_to_image(PROMPT, size="17*17")),
    }


def langchain(url: str, _: Path) -> Any:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(api_key=KEY, base_url=f"{url}/v1", size=f"{WIDTH}x{HEIGHT}", max_retries=0)
    wrong = DallEAPIWrapper(api_key=KEY, base_url=f"{url}/v1", size="17x17", max_retries=0)
    return {"url": wrapper.run(PROMPT), "error": _error(lambda: wrong.run(PROMPT))}


def litellm(url: str, _: Path) -> Any:
    from litellm import image_edit, image_generation

    def call(model: str, size: str) -> Any:
        return image_generation(prompt=PROMPT, model=model, size=size, api_base=f"{url}/v1", api_key=KEY, max_retries=0)

    size = f"{WIDTH}x{HEIGHT}"
    edited = {
        model: image_edit(
            image=io.BytesIO(_png("RGB", (RED, 20, 30))),
            prompt=PROMPT,
            model=model,
            size=size,
            response_format="b64_json",
            api_base=f"{url}/v1",
            api_key=KEY,
        )
        for model in ("openai/dall-e-2", "openai/gpt-image-1")
    }
    answers = {model: call(model, size).data[0].b64_json for model in ("openai/dall-e-3", "xinference/any")}
    return {
        "edited": {model: _pixels(_decoded(answer.data[0].b64_json)) for model, answer in edited.items()},
        "sizes": {model: _decoded(data).size for model, data in answers.items()},
        "error": _error(lambda: call("openai/dall-e-3", "17x17")),
    }


def _png(mode: str, colour: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (WIDTH, HEIGHT), colour).save(file, "PNG")
    return file.getvalue()


def _decoded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def _pixels(image: Image.Image) -> list[int]:
    """Return width, height and the colour of an image."""
    return [*image.size, *image.convert("RGB").getpixel((0, 0))]


def _error(call: Any) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])

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
    loras = [lora["name"] for lora in api.get_loras()]
    api.util_set_model("sdxl")
    api.util_wait_for_ready(0.1)
    api.refresh_checkpoints()
    api.interrupt()
    return {
        "pixels": _pixels(answer.image),
        "images": len(answer.images),
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
    by_url = model.text_to_image(PROMPT, size=f"{WIDTH}*{HEIGHT}")
    return {
        "pixels": _pixels(_decoded(answer["data"][0]["b64_json"])),
        "url": by_url["data"][0]["url"],
        "error": _error(lambda: model.text_to_image(PROMPT, size="17*17")),
    }


def langchain(url: str, _: Path) -> Any:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(api_key=KEY, base_url=f"{url}/v1", size=f"{WIDTH}x{HEIGHT}", max_retries=0)
    wrong = DallEAPIWrapper(api_key=KEY, base_url=f"{url}/v1", size="17x17", max_retries=0)
    return {"url": wrapper.run(PROMPT), "error": _error(lambda: wrong.run(PROMPT))}


def litellm(url: str, _: Path) -> Any:
    from litellm import image_generation

    def call(model: str, size: str) -> Any:
        return image_generation(prompt=PROMPT, model=model, size=size, api_base=f"{url}/v1", api_key=KEY, max_retries=0)

    size = f"{WIDTH}x{HEIGHT}"
    answers = {model: call(model, size).data[0].b64_json for model in ("openai/dall-e-3", "xinference/any")}
    return {
        "sizes": {model: _decoded(data).size for model, data in answers.items()},
        "error": _error(lambda: call("openai/dall-e-3", "17x17")),
    }


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

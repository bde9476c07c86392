"""Images by the API of AUTOMATIC1111's web UI (`/sdapi/v1/...`), as far as its clients need it.

Read in Open WebUI, SillyTavern, LibreChat and the package `webuiapi`. Every endpoint needs a key, as with the web UI's
`--api-auth`; what there is to choose from is in `automatic1111_lists`.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from engine.errors import InvalidRequest
from engine.images.metadata import file_metadata
from server.api.base64_images import all_from_base64, hashes_of
from server.api.body import read_body
from server.api.client import client_of
from server.api.dialects import png_text
from server.api.dialects.automatic1111_lists import SAMPLER, Route, lists
from server.api.dialects.automatic1111_schemas import Img2ImgRequest, ProcessingRequest, Txt2ImgRequest
from server.api.dialects.routes import refuse_pages
from server.api.errors import ApiError
from server.api.fields import UNGUIDED, RequestBody
from server.api.image_input import Upload, image_input, read_body_with_images
from server.api.submit import (
    NEEDS_KEY,
    Jobs,
    Owner,
    Submission,
    answer_headers,
    encode_images,
    submit_request,
    wait_for_images,
)
from server.jobs.job import Job, StoredImage
from server.jobs.service import JobService

API = "automatic1111"
NAMES = {
    "strength": "denoising_strength",
    "padding_mask_crop": "inpaint_full_res_padding",
    "lora": "prompt",
    "lora_strength": "prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
}
MAX_PNG = 12 << 20  # bytes of a body with an image; base64 takes a third more than its file
PNG_HEAD = 1 << 20  # characters that are read; texts come before the pixels


class PngInfoRequest(RequestBody):
    """Body of `POST /sdapi/v1/png-info`."""

    image: str


async def _client(request: Request, owner: Owner) -> str:
    return client_of(request, owner)


Client = Annotated[str, Depends(_client)]

router = APIRouter(prefix="/sdapi/v1", route_class=Route, dependencies=[NEEDS_KEY], include_in_schema=False)
pngs_at_once = asyncio.Semaphore(2)


@router.post("/txt2img")
async def txt2img(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate images and answer with them, as base64."""
    return await _generate(request, jobs, owner, await read_body(request, Txt2ImgRequest))


@router.post("/img2img")
async def img2img(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Draw an image anew, or the part that a mask selects, and answer with the results, as base64."""
    images = image_input(request)
    images.require()  # before anything is read
    body = await read_body_with_images(request, owner, Img2ImgRequest)
    body.image()  # before images are decoded
    files = await all_from_base64(body.images(), images.max_upload)
    image, mask = files["init_images"], files.get("mask")
    hashes = await hashes_of(files)
    upload = body.upload(image, mask)
    body = body.model_copy(update=hashes | {"init_images": [hashes["init_images"]]})
    return await _generate(request, jobs, owner, body, upload)


async def _generate(
    request: Request, jobs: JobService, owner: str | None, body: ProcessingRequest, upload: Upload | None = None
) -> Response:
    submission = Submission(
        API,
        body,
        body.image(),
        body.image_count,
        is_awaited=True,
        names=NAMES,
        model=body.model,
        ignored=body.ignored(),
        upload=upload,
    )
    job = await submit_request(request, jobs, owner, submission)
    ended, images = await wait_for_images(request, jobs, job)
    content = await encode_images(images, partial(_answer, ended, images, body))
    return Response(content, media_type="application/json", headers=answer_headers(request, submission, ended, images))


@router.get("/progress")
async def progress(jobs: Jobs, client: Client) -> dict[str, Any]:
    """Return the progress of the client's first job; 0 if it has none."""
    waiting = await jobs.unfinished(client, API)
    now = await jobs.progress(waiting[0]) if waiting else None
    steps = waiting[0].request.steps_to_run(jobs.manifest) if waiting else 0
    done = now.done if now else 0
    return {
        "progress": done / now.steps if now and now.steps else 0.0,
        "eta_relative": round(now.eta, 3) if now else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": _script(waiting[0]) if waiting else "",  # no id: without keys, others may share the client's address
            "job_count": len(waiting),
            "job_timestamp": "0",
            "job_no": done // steps if steps else 0,
            "sampling_step": done % steps if steps else 0,
            "sampling_steps": steps,
        },
        "current_image": None,
        "textinfo": None,
    }


@router.post("/interrupt")
async def interrupt(request: Request, jobs: Jobs, client: Client) -> dict[str, str]:
    """Cancel the client's jobs of this API."""
    refuse_pages(request)
    for job in await jobs.unfinished(client, API):
        await jobs.cancel(job.id)
    return {}


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """Return the texts in a PNG file: how it was made."""
    async with pngs_at_once:
        body = await read_body(request, PngInfoRequest, most=MAX_PNG)
    encoded = body.image.partition(",")[2] if body.image.startswith("data:") else body.image
    try:
        found = png_text.texts(base64.b64decode(encoded[:PNG_HEAD]))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"image must be a PNG file as base64; {error}", "image") from error
    return {"info": found.pop("parameters", ""), "items": found, "parameters": {}}


@router.post("/extra-single-image")
@router.post("/extra-batch-images")
@router.post("/interrogate")
async def refuse_other_uses() -> None:
    """Refuse to enlarge or to describe an image."""
    raise ApiError(
        400,
        "Images are neither enlarged nor described here; /sdapi/v1/img2img draws one anew.",
        code="unsupported_value",
    )


router.include_router(lists)


def _script(job: Job) -> str:
    """Return the web UI's name of what a job does."""
    return "scripts_txt2img" if job.request.edit is None else "scripts_img2img"


def _answer(job: Job, images: Sequence[StoredImage], body: ProcessingRequest) -> str:
    sent = images if body.send_images else ()
    made = _made(job, images)
    parameters = {name: value for name, value in made.items() if name in type(body).model_fields}
    answer = {
        "images": [base64.b64encode(image.data).decode() for image in sent],
        "parameters": parameters | {"n_iter": body.n_iter, "batch_size": body.batch_size, "sampler_name": SAMPLER},
        "info": json.dumps(made | {"batch_size": body.batch_size}),
    }
    return json.dumps(answer)


def _made(job: Job, images: Sequence[StoredImage]) -> dict[str, Any]:
    """Return what the images were made with, in the web UI's words."""
    first, request = images[0].metadata, job.request
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(images),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(images),
        "seed": first.seed,
        "all_seeds": [image.metadata.seed for image in images],
        "width": first.width,
        "height": first.height,
        "steps": first.num_inference_steps,
        "cfg_scale": first.guidance_scale + UNGUIDED,
        "sampler_name": SAMPLER,
        "sd_model_name": first.model,
        "infotexts": [file_metadata(request, image.metadata)["parameters"] for image in images],
        "styles": [],
        "index_of_first_image": 0,
        "job_timestamp": str(int(job.created)),
    }

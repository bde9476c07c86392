"""OpenAI's images and models endpoints.

Knows bodies and events; what becomes of a job is the dispatcher's.
"""

import base64
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from engine.errors import InvalidRequest
from engine.plan.manifest import Manifest
from server.api import errors, openapi
from server.api.body import read
from server.api.openai_schemas import (
    Image,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelInfo,
    ModelList,
    StreamedImage,
    Usage,
)
from server.api.submit import Jobs, Owner, Submission, accept, image_path, timing, wait_for_images
from server.jobs.dispatcher import Dispatcher
from server.jobs.job import Job, JobState, StoredImage
from server.jobs.live_job import PreviewReady

INLINE = 1 << 18  # bytes of images that are encoded at once: a thread takes longer than they do
SEND_SECONDS = 60  # that a client of a stream may take to read an event
IMAGE_NAME = re.compile(r"([0-9]{1,2})\.(?:png|jpg|webp)")

router = APIRouter()


async def _card(request: Request) -> ModelCard:
    state = request.app.state
    return ModelCard(id=state.dispatcher.manifest.model.name, created=state.started)


Card = Annotated[ModelCard, Depends(_card)]


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    openapi_extra=openapi.takes(ImagesRequest),
    responses=openapi.generates(StreamedImage) | openapi.fails(404),
)
async def generate_images(request: Request, jobs: Jobs, owner: Owner, card: Card) -> Response:
    """Generates `n` images, of which everything is checked before the first; as a stream if that is asked for."""
    wanted = await read(request, ImagesRequest)
    if wanted.model not in (None, card.id):
        raise errors.model_not_found(wanted.model, card.id)
    if wanted.partial_images and not (wanted.stream and jobs.manifest.preview):
        reason = "needs stream: true" if jobs.manifest.preview else "is not served: these plans hold no preview"
        raise InvalidRequest(f"partial_images {reason}", "partial_images")
    if wanted.negative_prompt and not wanted.guidance_scale:
        raise InvalidRequest("negative_prompt needs a guidance_scale above 0", "negative_prompt")
    if wanted.stream and wanted.response_format == "url":
        raise InvalidRequest("response_format must be b64_json in a stream", "response_format")
    order = Submission(
        "openai",
        wanted,
        wanted.images(),
        is_awaited=True,
        format=wanted.format(),
        timeout=wanted.timeout,
        previews=wanted.partial_images,
        names={"height": "size", "width": "size"},
    )
    job = await accept(request, jobs, owner, order)
    if wanted.stream:
        events = _stream(jobs, job, wanted)
        return EventSourceResponse(events, headers={"x-job-id": job.id}, send_timeout=SEND_SECONDS)
    ended, images = await wait_for_images(request, jobs, job)
    work = partial(_answer, request, ended, images, jobs.manifest, wanted)
    is_large = sum(len(image.data) for image in images) > INLINE
    body = await run_in_threadpool(work) if is_large else work()
    return Response(body, media_type="application/json", headers=timing(ended, images))


@router.get("/v1/images/{job_id}/{name}", response_class=Response, responses=openapi.images() | openapi.fails(404, 503))
async def image(job_id: str, name: Annotated[str, openapi.matching(IMAGE_NAME)], jobs: Jobs) -> Response:
    """An image by its URL, which nobody can guess."""
    match = IMAGE_NAME.fullmatch(name)
    found = await jobs.image(job_id, int(match[1])) if match else None
    if found is None:
        raise errors.ApiError(404, "There is no such image, or it has been removed.", code="image_not_found")
    return Response(found.data, media_type=found.media_type, headers={"cache-control": "private, max-age=604800"})


@router.get("/v1/models")
async def list_models(card: Card) -> ModelList:
    return ModelList(data=[card])


@router.get("/v1/models/{model:path}", responses=openapi.fails(404))  # names may hold a slash
async def retrieve_model(model: str, card: Card) -> ModelCard:
    if model != card.id:
        raise errors.model_not_found(model, card.id)
    return card


@router.get("/v1/model_info")
async def model_info(jobs: Jobs) -> ModelInfo:
    manifest = jobs.manifest
    return ModelInfo(
        model_path=manifest.model.name,
        precision=manifest.precision,
        flavor=manifest.target.flavor,
        plan_id=manifest.plan_id,
        num_inference_steps=manifest.model.default_steps,
        default_size=str(manifest.default_size),
        loras=list(jobs.loras),
        sizes=[f"{p.width.min}x{p.height.min}..{p.width.max}x{p.height.max}" for p in manifest.profiles],
    )


async def _stream(jobs: Dispatcher, job: Job, wanted: ImagesRequest) -> AsyncIterator[ServerSentEvent]:
    """Previews and images as they come; an error as OpenAI's clients raise it."""
    sent = 0
    try:
        async for event in jobs.follow(job):
            match event:
                case PreviewReady(index, _, data) if sent < wanted.partial_images * wanted.n:
                    yield _event(_shown(jobs, job, wanted, index, data, sent))
                    sent += 1
                case StoredImage():
                    yield _event(_completed(jobs, wanted, event))
                case Job() if event.state is not JobState.DONE:
                    error = errors.of_job(event)
                    yield ServerSentEvent(json.dumps(error.body()), event="error")
    finally:
        if not job.durable:
            jobs.cancel(job.id)


def _event(image: StreamedImage) -> ServerSentEvent:
    return ServerSentEvent(image.model_dump_json(exclude_none=True), event=image.type)


def _shown(jobs: Dispatcher, job: Job, wanted: ImagesRequest, index: int, data: bytes, number: int) -> StreamedImage:
    return StreamedImage(
        type="image_generation.partial_image",
        index=index,
        b64_json=base64.b64encode(data).decode(),
        partial_image_index=number,
        created_at=int(time.time()),
        size=str(job.requests[index].size(jobs.manifest)),
        quality=wanted.quality,
        output_format=wanted.output_format,
    )


def _completed(jobs: Dispatcher, wanted: ImagesRequest, image: StoredImage) -> StreamedImage:
    metadata = image.metadata
    return StreamedImage(
        type="image_generation.completed",
        index=image.index,
        b64_json=base64.b64encode(image.data).decode(),
        created_at=int(time.time()),
        size=str(metadata.size),
        quality=wanted.quality,
        output_format=wanted.output_format,
        seed=metadata.seed,
        revised_prompt=metadata.revised_prompt,
        usage=Usage.of([image], jobs.manifest.model.size_multiple),
    )


def _answer(
    request: Request, job: Job, images: Sequence[StoredImage], manifest: Manifest, wanted: ImagesRequest
) -> str:
    metadata = images[0].metadata
    base = str(request.base_url) if wanted.response_format == "url" else None
    answer = ImagesResponse(
        created=int(job.created),
        data=[Image.of(image, base and base + image_path(job, image.index)) for image in images],
        output_format=wanted.output_format,
        quality=wanted.quality,
        size=str(metadata.size),
        usage=Usage.of(images, manifest.model.size_multiple),
    )
    return answer.model_dump_json(exclude_none=True)

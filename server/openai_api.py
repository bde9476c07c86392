"""OpenAI's images and models endpoints.

Knows bodies and events; what becomes of a job is the dispatcher's.
"""

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from engine.errors import InvalidRequest
from engine.manifest import Manifest
from server import errors
from server.connection import read, while_connected
from server.dispatcher import Dispatcher, Shown
from server.jobs import Job, JobState, StoredPicture, new_id
from server.schemas import Image, ImagesRequest, ImagesResponse, ModelCard, ModelInfo, ModelList, StreamedImage, Usage

MAX_KEY = 255  # characters of an Idempotency-Key

router = APIRouter()


async def _dispatcher(request: Request) -> Dispatcher:
    dispatcher: Dispatcher = request.app.state.dispatcher
    return dispatcher


async def _card(request: Request) -> ModelCard:
    state = request.app.state
    return ModelCard(id=state.dispatcher.manifest.model.name, created=state.started)


Jobs = Annotated[Dispatcher, Depends(_dispatcher)]
Card = Annotated[ModelCard, Depends(_card)]


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ImagesRequest.model_json_schema()}},
        }
    },
)
async def generate_images(request: Request, jobs: Jobs, card: Card) -> Response:
    """Draws `n` pictures, of which everything is checked before the first; as a stream if that is asked for."""
    wanted = await read(request, ImagesRequest)
    if wanted.model not in (None, card.id):
        raise errors.model_not_found(wanted.model)
    if wanted.partial_images and not (wanted.stream and jobs.manifest.preview):
        reason = "needs stream: true" if jobs.manifest.preview else "is not served: these plans hold no preview"
        raise InvalidRequest(f"partial_images {reason}", "partial_images")
    job = _job(request, wanted)
    job.requests[0].check(jobs.manifest)  # the others differ only in their seeds
    job = await jobs.accept(job, wanted.partial_images)
    if wanted.stream:
        return EventSourceResponse(_stream(jobs, job, wanted), headers={"x-job-id": job.id})
    ended = await while_connected(request, _wait(jobs, job))
    if ended.state is not JobState.DONE:
        raise errors.of_job(ended)
    pictures = await jobs.pictures(job.id)
    body = await run_in_threadpool(_answer, request, ended, pictures, jobs.manifest, wanted)
    return Response(body, media_type="application/json", headers=_headers(ended, pictures))


@router.get("/v1/pictures/{job_id}/{name}", response_class=Response)
async def picture(job_id: str, name: str, jobs: Jobs) -> Response:
    """A picture by its URL, which nobody can guess."""
    for one in await jobs.pictures(job_id):
        if name == _name(one):
            return Response(one.data, media_type=one.media_type, headers={"cache-control": "private, immutable"})
    raise errors.ApiError(404, "There is no such picture, or it has been removed.", code="picture_not_found")


@router.get("/v1/models")
async def list_models(card: Card) -> ModelList:
    return ModelList(data=[card])


@router.get("/v1/models/{model:path}")  # names may hold a slash
async def retrieve_model(model: str, card: Card) -> ModelCard:
    if model != card.id:
        raise errors.model_not_found(model)
    return card


@router.get("/v1/model_info")
async def model_info(jobs: Jobs) -> ModelInfo:
    manifest = jobs.manifest
    height, width = manifest.default_size
    return ModelInfo(
        model_path=manifest.model.name,
        precision=manifest.precision,
        flavor=manifest.target.flavor,
        plan_id=manifest.plan_id,
        num_inference_steps=manifest.model.default_steps,
        default_size=f"{width}x{height}",
        sizes=[f"{p.width.min}x{p.height.min}..{p.width.max}x{p.height.max}" for p in manifest.profiles],
    )


def _job(request: Request, wanted: ImagesRequest) -> Job:
    """Raises InvalidRequest."""
    now, key = time.time(), request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} characters", "Idempotency-Key")
    return Job(
        id=new_id(),
        requests=wanted.pictures(),
        format=wanted.format(),
        api="openai",
        durable=key is not None,  # such a client may come again for it
        idempotency_key=key,
        fingerprint=hashlib.sha256(wanted.model_dump_json().encode()).hexdigest(),
        created=now,
        deadline=None if wanted.timeout is None else now + wanted.timeout,
    )


async def _wait(jobs: Dispatcher, job: Job) -> Job:
    """The job when it has ended; cancelled with whoever waits, unless it is durable."""
    try:
        async for event in jobs.follow(job):
            if isinstance(event, Job):
                return event
        raise AssertionError("a job's last event is its end")
    finally:
        if not job.durable:
            jobs.cancel(job.id)


async def _stream(jobs: Dispatcher, job: Job, wanted: ImagesRequest) -> AsyncIterator[ServerSentEvent]:
    """Previews and pictures as they come; an error as OpenAI's clients raise it."""
    sent = 0
    try:
        async for event in jobs.follow(job):
            match event:
                case Shown(index, _, data) if sent < wanted.partial_images * wanted.n:
                    yield _event(_shown(jobs, job, wanted, index, data, sent))
                    sent += 1
                case StoredPicture():
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
    height, width = job.requests[index].size(jobs.manifest)
    return StreamedImage(
        type="image_generation.partial_image",
        b64_json=base64.b64encode(data).decode(),
        partial_image_index=number,
        created_at=int(time.time()),
        size=f"{width}x{height}",
        quality=wanted.quality,
        output_format=wanted.output_format,
    )


def _completed(jobs: Dispatcher, wanted: ImagesRequest, picture: StoredPicture) -> StreamedImage:
    receipt = picture.receipt
    return StreamedImage(
        type="image_generation.completed",
        b64_json=base64.b64encode(picture.data).decode(),
        created_at=int(time.time()),
        size=f"{receipt.width}x{receipt.height}",
        quality=wanted.quality,
        output_format=wanted.output_format,
        seed=receipt.seed,
        revised_prompt=receipt.revised_prompt,
        usage=Usage.of([picture], jobs.manifest.model.size_multiple),
    )


def _answer(
    request: Request, job: Job, pictures: list[StoredPicture], manifest: Manifest, wanted: ImagesRequest
) -> str:
    receipt = pictures[0].receipt
    base = f"{request.base_url}v1/pictures/{job.id}/" if wanted.response_format == "url" else None
    answer = ImagesResponse(
        created=int(job.created),
        data=[Image.of(picture, base and base + _name(picture)) for picture in pictures],
        output_format=wanted.output_format,
        quality=wanted.quality,
        size=f"{receipt.width}x{receipt.height}",
        usage=Usage.of(pictures, manifest.model.size_multiple),
    )
    return answer.model_dump_json(exclude_none=True)


def _name(picture: StoredPicture) -> str:
    """What a picture is called in its URL."""
    return f"{picture.index}.{picture.media_type.removeprefix('image/')}"


def _headers(job: Job, pictures: list[StoredPicture]) -> dict[str, str]:
    """Where the time went, as browsers and proxies read it (Server-Timing, milliseconds)."""
    assert job.started is not None
    seconds = {"queue": max(job.started - job.created, 0.0)}
    for picture in pictures:
        for stage, spent in picture.receipt.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    timing = ", ".join(f"{stage};dur={spent * 1e3:.1f}" for stage, spent in seconds.items())
    return {"server-timing": timing, "x-job-id": job.id}

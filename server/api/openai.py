"""OpenAI's endpoints for images and models. Knows bodies and events; jobs are those of `JobService`."""

import base64
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from engine.errors import InvalidRequest
from engine.images.header import read_header
from engine.plan.manifest import Manifest
from server.api import errors, openapi
from server.api.event_ids import event_id, images_of
from server.api.image_input import Upload, image_input, read_body_with_images, take_upload
from server.api.openai_schemas import (
    EventType,
    Image,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelList,
    StreamedImage,
    Usage,
)
from server.api.public_address import public_root
from server.api.schemas import image_path
from server.api.served_model import Model
from server.api.submit import Jobs, Owner, Submission, answer_headers, encode_images, submit_request, wait_for_images
from server.jobs.follower import JobPreview
from server.jobs.job import Job, JobState, StoredImage
from server.jobs.service import JobEvent, JobService

EventKind = Literal["image_generation", "image_edit"]
PARTIAL: dict[EventKind, EventType] = {
    "image_generation": "image_generation.partial_image",
    "image_edit": "image_edit.partial_image",
}
COMPLETED: dict[EventKind, EventType] = {
    "image_generation": "image_generation.completed",
    "image_edit": "image_edit.completed",
}

IMAGE_NAME = re.compile(r"([0-9]{1,2})\.(?:png|jpg|webp)")

router = APIRouter()


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    openapi_extra=openapi.request_body(ImagesRequest),
    responses=openapi.generation_responses(StreamedImage),
)
async def generate_images(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate `n` images; with `stream`, answer with server-sent events."""
    return await generate(request, jobs, owner, await read_body_with_images(request, owner, ImagesRequest))


async def generate(request: Request, jobs: JobService, owner: str | None, body: ImagesRequest) -> Response:
    """Generate the images of a body; with `stream`, answer with server-sent events."""
    body, upload = await take_upload(body, image_input(request))  # forgets the base64
    return await answer(request, jobs, owner, body, upload)


async def answer(
    request: Request,
    jobs: JobService,
    owner: str | None,
    body: ImagesRequest,
    upload: Upload | None,
    kind: EventKind = "image_generation",
    unused: Sequence[str] = (),
) -> Response:
    """Generate the images of a body that begin with an upload.

    Args:
        kind: of the events of a stream.
        unused: names of files that cannot change the images.
    """
    submission = _submission(body, upload, unused, has_previews=jobs.manifest.preview is not None)
    job = await submit_request(request, jobs, owner, submission)
    if body.stream:
        received = images_of(request.headers.get("last-event-id"))
        events = _stream(jobs, job, jobs.follow(job, received), received, body, kind)
        return EventSourceResponse(events, headers=answer_headers(request, submission, job))
    ended, images = await wait_for_images(request, jobs, job)
    content = await encode_images(images, partial(_images_response, request, ended, images, jobs.manifest, body))
    return Response(content, media_type="application/json", headers=answer_headers(request, submission, ended, images))


@router.get(
    "/v1/images/{job_id}/{name}",
    response_class=Response,
    responses=openapi.image_responses() | openapi.error_responses(404, 503),
)
async def image(job_id: str, name: Annotated[str, openapi.path_parameter(IMAGE_NAME)], jobs: Jobs) -> Response:
    """Return an image by its URL, which cannot be guessed."""
    match = IMAGE_NAME.fullmatch(name)
    found = await jobs.image(job_id, int(match[1])) if match else None
    if found is None:
        raise errors.ApiError(404, "The image does not exist or has been deleted.", code="image_not_found")
    return Response(found.data, media_type=found.media_type, headers={"cache-control": "private, max-age=604800"})


@router.get("/v1/models")
async def list_models(request: Request, served: Model) -> ModelList:
    """List the names of the model that is served."""
    return ModelList(data=[_card(request, name) for name in served.names])


@router.get("/v1/models/{model:path}", responses=openapi.error_responses(404))  # names may hold a slash
async def retrieve_model(request: Request, model: str, served: Model) -> ModelCard:
    """Return a model by its name."""
    if model not in served.names:
        raise errors.model_not_found(model, served.name)
    return _card(request, model)


def _card(request: Request, name: str) -> ModelCard:
    return ModelCard(id=name, created=request.app.state.started)


def _submission(body: ImagesRequest, upload: Upload | None, unused: Sequence[str], *, has_previews: bool) -> Submission:
    """Return the submission of a body.

    Raises:
        InvalidRequest: two fields contradict each other.
    """
    if body.stream and body.response_format == "url":
        raise InvalidRequest("response_format must be b64_json in a stream", "response_format")
    without_previews = ("partial_images",) if body.partial_images and not has_previews else ()
    return Submission(
        "openai",
        body,
        body.image(),
        body.n,
        is_awaited=True,
        format=body.format(),
        timeout=body.timeout,
        previews=body.partial_images if body.stream else 0,
        names=body.names(),
        model=body.model,
        ignored=(*body.ignored(), *without_previews, *unused),
        upload=upload,
        priority=body.job_priority(),
        plan_id=body.plan_id,
    )


async def _stream(
    jobs: JobService,
    job: Job,
    following: AsyncGenerator[JobEvent],
    received: frozenset[int],
    body: ImagesRequest,
    kind: EventKind,
) -> AsyncIterator[ServerSentEvent]:
    """Yield previews and images as they arrive, or an error as OpenAI's clients raise it.

    Args:
        received: indices of the images that the client has.
    """
    sent = 0
    try:
        async with aclosing(following) as events:
            async for event in events:
                match event:
                    case JobPreview(index, _, data) if sent < body.partial_images * body.n:
                        yield _event(_partial_image(jobs, job, body, kind, index, data, sent), received)
                        sent += 1
                    case StoredImage():
                        received |= {event.index}
                        yield await run_in_threadpool(_completed_event, jobs, body, kind, event, received)
                    case Job() if event.state is not JobState.DONE:
                        error = errors.from_job(event)
                        yield ServerSentEvent(json.dumps(error.body()), event="error", id=event_id(received))
    finally:
        if not job.durable:
            await jobs.cancel(job.id)


def _event(image: StreamedImage, received: frozenset[int]) -> ServerSentEvent:
    return ServerSentEvent(image.model_dump_json(exclude_none=True), event=image.type, id=event_id(received))


def _partial_image(
    jobs: JobService, job: Job, body: ImagesRequest, kind: EventKind, index: int, data: bytes, number: int
) -> StreamedImage:
    header = read_header(data)  # an image that is pasted has the size of its original
    return StreamedImage(
        type=PARTIAL[kind],
        index=index,
        b64_json=base64.b64encode(data).decode(),
        partial_image_index=number,
        created_at=int(time.time()),
        size=str(job.request.size(jobs.manifest) if header is None else header.size),
        output_format=body.output_format,
    )


def _completed_event(
    jobs: JobService, body: ImagesRequest, kind: EventKind, image: StoredImage, received: frozenset[int]
) -> ServerSentEvent:
    metadata = image.metadata
    completed = StreamedImage(
        type=COMPLETED[kind],
        index=image.index,
        b64_json=base64.b64encode(image.data).decode(),
        created_at=int(time.time()),
        size=str(metadata.size),
        output_format=body.output_format,
        seed=metadata.seed,
        revised_prompt=metadata.revised_prompt,
        usage=Usage.of([image], jobs.manifest.model.size_multiple),
    )
    return _event(completed, received)


def _images_response(
    request: Request, job: Job, images: Sequence[StoredImage], manifest: Manifest, body: ImagesRequest
) -> str:
    metadata = images[0].metadata
    base = None if body.response_format == "b64_json" else public_root(request)
    urls = [base and base + image_path(job, image.index) for image in images]
    is_embedded = body.response_format != "url"
    answer = ImagesResponse(
        created=int(job.created),
        data=[Image.of(image, url, is_embedded=is_embedded) for image, url in zip(images, urls, strict=True)],
        output_format=body.output_format,
        size=str(metadata.size),
        usage=Usage.of(images, manifest.model.size_multiple),
    )
    return answer.model_dump_json(exclude_none=True)

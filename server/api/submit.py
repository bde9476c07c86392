"""From a body that was understood to a job that is accepted, and to its end: what all endpoints share.

Knows headers and jobs; not what bodies look like.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from engine.errors import InvalidRequest
from engine.request import PNG, ImageFormat, ImageRequest
from server.api import errors
from server.api.access import Authenticator
from server.api.body import while_connected
from server.jobs.dispatcher import Dispatcher, JobGone
from server.jobs.job import Job, JobState, StoredImage, new_id

MAX_KEY = 255  # characters of an Idempotency-Key


async def _dispatcher(connection: HTTPConnection) -> Dispatcher:
    dispatcher: Dispatcher = connection.app.state.dispatcher
    return dispatcher


Jobs = Annotated[Dispatcher, Depends(_dispatcher)]


async def _owner(request: Request) -> str | None:
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.owner(request)


Owner = Annotated[str | None, Depends(_owner)]


@dataclass(frozen=True, slots=True)
class Submission:
    """What an endpoint made of a body.

    Attributes:
        body: as it was understood; tells a repeated request from another one with the same key.
        is_awaited: the client waits on its connection, and when that ends, so does the job.
        timeout: seconds until the images are of no use.
        previews: of each image on its way.
        names: of the body's fields where they differ from `ImageRequest`'s.
    """

    api: str
    body: BaseModel
    images: tuple[ImageRequest, ...]
    is_awaited: bool
    format: ImageFormat = PNG
    timeout: float | None = None
    previews: int = 0
    names: Mapping[str, str] = field(default_factory=dict)


async def accept(request: Request, jobs: Dispatcher, owner: str | None, order: Submission) -> Job:
    """The job that was made of a request's order, or that the same Idempotency-Key has made before.

    Raises:
        ApiError: too many requests of this owner.
        all that `place` raises.
    """
    request.app.state.authenticator.count(request, owner)
    return await place(jobs, owner, order, request.headers.get("idempotency-key"))


async def place(jobs: Dispatcher, owner: str | None, order: Submission, key: str | None = None) -> Job:
    """The job that was made of an order that has been counted, or that the same key has made before.

    Raises:
        InvalidRequest: the plans do not generate it.
        Refusal, IdempotencyMismatch, StoreUnavailable: as the dispatcher says.
    """
    now = time.time()
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} characters", "Idempotency-Key")
    try:
        order.images[0].check(jobs.manifest, jobs.loras)  # the others differ only in their seeds
    except InvalidRequest as error:
        raise InvalidRequest(str(error), order.names.get(error.param, error.param)) from error
    job = Job(
        id=new_id(),
        requests=order.images,
        format=order.format,
        api=order.api,
        owner=owner,
        durable=not order.is_awaited or key is not None,  # a client with a key may come again for it
        idempotency_key=key,
        fingerprint=hashlib.sha256(f"{order.api} {order.body.model_dump_json()}".encode()).hexdigest(),
        created=now,
        deadline=None if order.timeout is None else now + order.timeout,
    )
    return await jobs.accept(job, order.previews)


async def wait_for_images(request: Request, jobs: Dispatcher, job: Job) -> tuple[Job, Sequence[StoredImage]]:
    """The job as it ended, and its images.

    Raises:
        ApiError, JobGone: why there are none.
        ClientDisconnect: there is nobody left to answer.
    """
    ended, images = await while_connected(request, _end(jobs, job))
    if ended.state is not JobState.DONE:
        raise errors.of_job(ended)
    if len(images) < len(ended.requests):
        raise JobGone
    return ended, images


async def _end(jobs: Dispatcher, job: Job) -> tuple[Job, list[StoredImage]]:
    """The job when it has ended; cancelled with whoever waits, unless it is durable."""
    try:
        return await jobs.end(job)
    finally:
        if not job.durable:
            jobs.cancel(job.id)


def timing(job: Job, images: Sequence[StoredImage]) -> dict[str, str]:
    """Headers: where the time went, as browsers and proxies read it (Server-Timing, milliseconds)."""
    assert job.started is not None
    seconds = {"queue": max(job.started - job.created, 0.0)}
    for image in images:
        for stage, spent in asdict(image.metadata.seconds).items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    stages = ", ".join(f"{stage};dur={spent * 1e3:.1f}" for stage, spent in seconds.items())
    return {"server-timing": stages, "x-job-id": job.id}


def image_path(job: Job, index: int) -> str:
    """Where an image is, for whoever was told; relative to the server's root."""
    return f"v1/images/{job.id}/{index}{job.format.suffix}"

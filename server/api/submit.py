"""Submission of jobs, shared by all endpoints: from a validated body to a queued job, and to its images.

Knows headers and jobs; not the shape of bodies.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from engine.errors import InvalidRequest
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import PNG, ImageFormat, ImageRequest
from server import tracing
from server.api import errors
from server.api.access import Authenticator
from server.api.body import while_connected
from server.api.client import client_of
from server.api.image_input import ImageInput, Upload, image_input
from server.api.served_model import ServedModel
from server.errors import JobNotFound, UploadsBusy
from server.jobs.follower import JobPreview
from server.jobs.job import Job, JobState, Priority, StoredImage, new_id
from server.jobs.service import JobService
from server.worker.packed_image import PackedImage, pack

Encoded = TypeVar("Encoded")

INLINE_BYTES = 1 << 18  # of images that are encoded in the event loop; a thread would take longer
MAX_KEY = 255  # characters of an Idempotency-Key
FIELD = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,64}")  # a name that is safe in a header
MAX_IGNORED = 64  # names in a header


async def _jobs(connection: HTTPConnection) -> JobService:
    jobs: JobService = connection.app.state.jobs
    return jobs


Jobs = Annotated[JobService, Depends(_jobs)]


async def _owner(request: Request) -> str | None:
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.owner(request)


NEEDS_KEY = Depends(_owner)  # of a router all of whose endpoints need a key
Owner = Annotated[str | None, NEEDS_KEY]


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for images, as an endpoint passes it on.

    Attributes:
        api: name of the endpoint's API, such as "openai".
        body: the validated body; a repeated Idempotency-Key must come with an equal one.
        image: request for the first image.
        image_count: number of images, which differ only in their seeds; see `ImageRequest.numbered`.
        is_awaited: True if the client waits for the images; the job is then cancelled when the client disconnects.
        format: file format of the images.
        timeout: seconds until the images are no longer wanted; None for no limit.
        previews: number of previews per image.
        names: the body's names of the fields of `ImageRequest`, where they differ.
        model: name of the model that the client asked for.
        ignored: names of the given fields that cannot change the images, as the client wrote them; `answer_headers`
            adds those that depend on the served model.
        upload: an image to start from; `body` must tell it apart from others, as `take_upload` makes it.
        priority: batch jobs come after interactive ones.
        plan_id: of the plans to generate with; None for any.
    """

    api: str
    body: BaseModel
    image: ImageRequest
    image_count: int
    is_awaited: bool
    format: ImageFormat = PNG
    timeout: float | None = None
    previews: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    ignored: tuple[str, ...] = ()
    upload: Upload | None = None
    priority: Priority = "interactive"
    plan_id: str | None = None


async def submit_request(request: Request, jobs: JobService, owner: str | None, submission: Submission) -> Job:
    """Count a request and queue its job; return the earlier job if the Idempotency-Key is repeated.

    Raises:
        ApiError: the owner exceeds the rate limit, or the server refuses other models and the client named one, or it
            takes no images.
        UploadsBusy: too many images wait to be decoded.
        InvalidRequest, JobRefused, IdempotencyKeyReused, StoreUnavailable: see `enqueue`.
    """
    model: ServedModel = request.app.state.model
    model.check(submission.model)
    await request.app.state.authenticator.count(request, owner)
    key, client, packed = request.headers.get("idempotency-key"), client_of(request, owner), None
    if submission.upload is not None:
        submission, init_image = await _with_init_image(jobs, submission, image_input(request), client)
        packed = await run_in_threadpool(pack, init_image)
        request.state.notes = init_image.notes
    return await enqueue(jobs, owner, submission, client=client, key=key, init_image=packed)


async def _with_init_image(
    jobs: JobService, submission: Submission, images: ImageInput, client: str
) -> tuple[Submission, InitImage]:
    """Return a submission whose request begins with its upload, and the prepared upload.

    Raises:
        InvalidRequest: the plans cannot generate the image, or the upload cannot be used.
        UploadsBusy, ApiError: see `ImageInput.prepare`.
    """
    upload, image = submission.upload, submission.image
    assert upload is not None
    limits = jobs.manifest.size_limits
    try:
        upload.check(image, jobs.manifest, jobs.loras)  # before the file is decoded
        init_image = await images.prepare(upload, upload.preparation(limits, image), client)
    except UploadsBusy as refusal:
        jobs.metrics.job_refused(refusal.code)
        raise
    except InvalidRequest as error:
        raise InvalidRequest(str(error), submission.names.get(error.param, error.param)) from error
    begun = await run_in_threadpool(image.starting_from, init_image, upload.strength)
    return replace(submission, image=begun, upload=None), init_image


async def enqueue(
    jobs: JobService,
    owner: str | None,
    submission: Submission,
    *,
    client: str,
    key: str | None = None,
    init_image: PackedImage | None = None,
) -> Job:
    """Queue a job, without counting it; return the earlier job if the idempotency key is repeated.

    Args:
        init_image: the image that the request's `edit` describes.

    Raises:
        InvalidRequest: the plans cannot generate the images, no worker has the plans, or the key is too long.
        JobRefused: the server takes no more jobs now, or cannot finish this one before its deadline.
        IdempotencyKeyReused: the key was used with another body.
        StoreUnavailable: the job cannot be stored.
    """
    image = submission.image
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} characters, got {len(key)}", "Idempotency-Key")
    try:
        image.check(jobs.manifest, jobs.loras)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), submission.names.get(error.param, error.param)) from error
    _check_plan(jobs, submission.plan_id)
    return await jobs.submit(_job(jobs.manifest, owner, submission, client, key), init_image)


def _job(manifest: Manifest, owner: str | None, submission: Submission, client: str, key: str | None) -> Job:
    """Return the job that a submission asks for, not queued yet."""
    now, image, count = time.time(), submission.image, submission.image_count
    return Job(
        id=new_id(),
        request=image,
        image_count=count,
        format=submission.format,
        api=submission.api,
        owner=owner,
        durable=not submission.is_awaited or key is not None,  # a client with a key may reconnect
        idempotency_key=key,
        fingerprint=_fingerprint(submission),
        created=now,
        deadline=None if submission.timeout is None else now + submission.timeout,
        client=client,
        previews=submission.previews,
        priority=submission.priority,
        model=manifest.model.name,
        plan_id=submission.plan_id,
        trace=tracing.traceparent(),
        cost=image.forwards(manifest) * image.size(manifest).area * count,
    )


def _check_plan(jobs: JobService, plan_id: str | None) -> None:
    if plan_id is not None and plan_id not in (served := jobs.plan_ids()):
        raise InvalidRequest(f"plan_id must be one of {', '.join(served)}, or absent; got {plan_id!r}", "plan_id")


def _fingerprint(submission: Submission) -> str:
    """Return the hash of a body; defaults that are written out make no difference, nor do fields of later versions."""
    body, edit = submission.body.model_dump_json(exclude_defaults=True), submission.image.edit
    use = "inpainting " if edit is not None and edit.is_inpainting else ""  # an image may be its own mask, or not
    return hashlib.sha256(f"{submission.api} {use}{body}".encode()).hexdigest()


async def wait_for_images(request: Request, jobs: JobService, job: Job) -> tuple[Job, Sequence[StoredImage]]:
    """Return the finished job and its images.

    Raises:
        ApiError: the job failed or was cancelled.
        JobNotFound: the job was deleted.
        ClientDisconnect: the client disconnected first.
    """
    ended, images = await while_connected(request, _end(jobs, job))
    if ended.state is not JobState.DONE:
        raise errors.from_job(ended)
    if len(images) < ended.image_count:
        raise JobNotFound(f"there is no job {job.id}, or it was deleted")
    return ended, images


async def _end(jobs: JobService, job: Job) -> tuple[Job, list[StoredImage]]:
    """Wait for a job; cancel it with the waiting client unless it is durable."""
    try:
        return await jobs.wait(job)
    finally:
        if not job.durable:
            await jobs.cancel(job.id)


async def encode_images(images: Sequence[StoredImage | JobPreview], work: Callable[[], Encoded]) -> Encoded:
    """Return the result of `work`, which encodes images as base64: in a thread if they are large."""
    is_large = sum(len(image.data) for image in images) > INLINE_BYTES
    return await run_in_threadpool(work) if is_large else work()


def answer_headers(
    request: Request, submission: Submission, job: Job, images: Sequence[StoredImage] = ()
) -> dict[str, str]:
    """Return the headers of every answer to a submission.

    X-Job-Id, X-Model, X-Ignored-Parameters, X-Image-Notes (how its image was read), Server-Timing.

    Args:
        images: finished images, whose times Server-Timing tells; none if the answer comes before them.
    """
    model: ServedModel = request.app.state.model
    headers = {"x-job-id": job.id, "x-model": model.name}
    jobs: JobService = request.app.state.jobs
    unguided = submission.image.without_effect(jobs.manifest)
    headers |= ignored_header(
        (*unguided, *submission.ignored, *(["model"] if model.is_other(submission.model) else []))
    )
    if notes := getattr(request.state, "notes", ()):
        headers["x-image-notes"] = "; ".join(notes).encode("ascii", "replace").decode()
    if images:
        headers["server-timing"] = _timing(job, images)
    return headers


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """Return the header X-Ignored-Parameters; none if there are no names."""
    safe = [name for name in dict.fromkeys(names) if FIELD.fullmatch(name)][:MAX_IGNORED]
    return {"x-ignored-parameters": ", ".join(safe)} if safe else {}


def _timing(job: Job, images: Sequence[StoredImage]) -> str:
    """Return milliseconds per stage, summed over the images."""
    assert job.started is not None
    seconds = {"queue": max(job.started - job.created, 0.0)}
    for image in images:
        for stage, spent in asdict(image.metadata.seconds).items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    return ", ".join(f"{stage};dur={spent * 1e3:.1f}" for stage, spent in seconds.items())

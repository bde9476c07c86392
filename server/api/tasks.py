"""Endpoints of existing Z-Image-Turbo deployments: wait for images, or submit a task and ask for it later.

A task is a job. Knows bodies and events; jobs are those of `JobService`.
"""

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect, HTTPConnection

from server.api import errors, openapi
from server.api.access import Authenticator
from server.api.body import while_connected
from server.api.event_ids import LastEventId, LastEventIdQuery, event_id, images_of
from server.api.image_input import Upload, image_input, read_body_with_images, take_upload
from server.api.public_address import public_root
from server.api.submit import Jobs, Owner, Submission, answer_headers, encode_images, submit_request, wait_for_images
from server.api.task_events import EncodedEvent, TaskEventEncoder
from server.api.task_schemas import GenerateRequest, Images, Submitted, Task, TaskEvent, TaskList
from server.errors import TooManyFollowers
from server.jobs.job import MAX_SEQUENCE, Job, JobState, StoredImage
from server.jobs.service import JobEvent, JobService
from server.jobs.storage.history import HistoryPage

MAX_PAGE = 200  # tasks
MAX_IDS, MAX_ID = 50, 64  # ids of one request, and characters of each with its comma
TASK_NOT_FOUND = 4404  # close codes of WebSockets
TRY_AGAIN_LATER = 1013

router = APIRouter()

BODY = openapi.request_body(GenerateRequest)
LINKS = openapi.links_to("/v1/task/{task_id}", "task_id", "get", "delete")


@router.post("/api/v1/generate", response_model=Images, openapi_extra=BODY, responses=openapi.generation_responses())
async def generate(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate images and answer with them."""
    return await wait_for_task(request, jobs, owner, await read_body_with_images(request, owner, GenerateRequest))


async def wait_for_task(request: Request, jobs: JobService, owner: str | None, body: GenerateRequest) -> Response:
    """Generate the images of a body and answer with them."""
    body, upload = await take_upload(body, image_input(request))
    submission = _submission(body, jobs, upload, is_awaited=True)
    job = await submit_request(request, jobs, owner, submission)
    ended, images = await wait_for_images(request, jobs, job)

    def encoded() -> str:
        return Images(
            images=[base64.b64encode(image.data).decode() for image in images],
            seeds=[image.metadata.seed for image in images],
        ).model_dump_json()

    content = await encode_images(images, encoded)
    return Response(content, media_type="application/json", headers=answer_headers(request, submission, ended, images))


@router.post("/api/v1/generate_async", openapi_extra=BODY, responses=openapi.submission_responses(LINKS))
@router.post("/v1/generate", openapi_extra=BODY, responses=openapi.submission_responses(LINKS))
async def submit(request: Request, response: Response, jobs: Jobs, owner: Owner) -> Submitted:
    """Submit a task. It runs whether or not a client waits for it."""
    body = await read_body_with_images(request, owner, GenerateRequest)
    return await submit_task(request, response, jobs, owner, body)


async def submit_task(
    request: Request, response: Response, jobs: JobService, owner: str | None, body: GenerateRequest
) -> Submitted:
    """Submit the task of a body. `response`: the one whose headers tell about it."""
    body, upload = await take_upload(body, image_input(request))
    submission = _submission(body, jobs, upload, is_awaited=False)
    job = await submit_request(request, jobs, owner, submission)
    response.headers.update(answer_headers(request, submission, job))
    return Submitted(task_id=job.id)


@router.get("/v1/task/{task_id}", responses=openapi.error_responses(404, 503))
async def task(task_id: str, request: Request, jobs: Jobs) -> Task:
    """Return the state of a task, with the URLs of its images once it is done."""
    return await _task(request, jobs, await _find(jobs, task_id))


@router.delete("/v1/task/{task_id}", responses=openapi.error_responses(401, 404, 503))
async def cancel(task_id: str, request: Request, jobs: Jobs, owner: Owner) -> Task:
    """Cancel a task at its next step, or delete a finished task with its images."""
    job = await _find(jobs, task_id)
    if job.owner != owner:
        raise errors.task_not_found()
    if job.state.is_final:
        answer = await _task(request, jobs, job)
        await jobs.delete(task_id)
        return answer
    await jobs.cancel(task_id)
    return await _task(request, jobs, await _find(jobs, task_id))


@router.get(
    "/v1/task/{task_id}/events",
    response_class=EventSourceResponse,
    responses=openapi.event_responses(TaskEvent) | openapi.error_responses(404, 503),
)
async def events(
    task_id: str,
    request: Request,
    jobs: Jobs,
    images: Annotated[bool, Query(description="false to leave out the finished images, which have URLs")] = True,
    last_event_id: LastEventId = None,
) -> EventSourceResponse:
    """Send the events of a task as server-sent events: progress, previews, images, end."""
    received = images_of(last_event_id)
    following = jobs.follow(await _find(jobs, task_id), received)

    async def stream() -> AsyncIterator[bytes]:
        async with aclosing(_encoded(request, following, received, with_images=images)) as encoded:
            async for event in encoded:
                yield event.server_sent

    return EventSourceResponse(stream())


@router.websocket("/v1/task/{task_id}/ws")
async def events_by_websocket(
    task_id: str, socket: WebSocket, jobs: Jobs, last_event_id: LastEventIdQuery = None
) -> None:
    """Send the events of a task as JSON messages."""
    job = await jobs.get(task_id)
    await socket.accept()
    if job is None:
        await socket.close(TASK_NOT_FOUND, "no such task")
        return
    received = images_of(last_event_id)
    try:
        following = jobs.follow(job, received)
    except TooManyFollowers as error:
        await socket.close(TRY_AGAIN_LATER, str(error))
        return
    with suppress(WebSocketDisconnect, ClientDisconnect):
        await while_connected(socket, _send_events(socket, following, received))


async def _send_events(socket: WebSocket, following: AsyncGenerator[JobEvent], received: frozenset[int]) -> None:
    async with aclosing(_encoded(socket, following, received)) as encoded:
        async for event in encoded:
            await socket.send_text(event.text)
    await socket.close()


async def _encoded(
    connection: HTTPConnection,
    following: AsyncGenerator[JobEvent],
    received: frozenset[int],
    *,
    with_images: bool = True,
) -> AsyncGenerator[EncodedEvent]:
    """Yield the events of a task for a client that has received some of its images."""
    encoder: TaskEventEncoder = connection.app.state.task_events
    async with aclosing(following):
        async for event in following:
            if isinstance(event, StoredImage):
                if not with_images:
                    continue
                received |= {event.index}
            yield await encoder.encode(event, event_id(received), public_root(connection))


@router.get("/v1/tasks", response_model=TaskList, responses=openapi.error_responses(401, 503))
async def history(
    request: Request,
    jobs: Jobs,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[int, Query(ge=1, le=MAX_SEQUENCE)] | None = None,
    ids: Annotated[str, Query(max_length=MAX_IDS * MAX_ID, description="task ids, separated by commas")] | None = None,
) -> Response:
    """List the key's tasks, newest first; `before` is the `sequence` of the last task of the previous page.

    Without keys, the list is empty unless the server shares its history: it would be everybody's.
    A page has fewer than `limit` tasks if their prompts have more than a megabyte.

    With `ids`, list those of these tasks that exist, whoever submitted them; `limit` and `before` do not count.
    """
    authenticator: Authenticator = request.app.state.authenticator
    if ids is not None:
        page = await jobs.find(_ids(ids))
    elif authenticator.lists_history:
        page = await jobs.history(limit, before, owner)
    else:
        page = HistoryPage([], {}, has_more=False)
    base_url = public_root(request)
    tasks = [Task.of(job, await jobs.progress(job), page.metadata[job.id], base_url) for job in page.jobs]
    answer = TaskList(tasks=tasks, has_more=page.has_more)
    return Response(answer.model_dump_json(), media_type="application/json")  # FastAPI would validate it again


def _submission(body: GenerateRequest, jobs: JobService, upload: Upload | None, *, is_awaited: bool) -> Submission:
    has_previews = jobs.manifest.preview is not None and not is_awaited
    without_previews = ("previews",) if body.previews and not has_previews else ()
    return Submission(
        "tasks",
        body,
        body.image(),
        body.image_count,
        is_awaited,
        format=body.format(),
        timeout=body.timeout,
        previews=body.previews if has_previews else 0,
        names=body.names(),
        model=body.model,
        ignored=(*body.ignored(), *without_previews),
        upload=upload,
        priority=body.job_priority(),
        plan_id=body.plan_id,
    )


def _ids(text: str) -> list[str]:
    """Return the ids in a list, each once. Raises ApiError: there are too many."""
    ids = list(dict.fromkeys(filter(None, text.split(","))))
    if len(ids) > MAX_IDS:
        raise errors.ApiError(
            400, f"ids must name {MAX_IDS} tasks at most, got {len(ids)}.", code="invalid_value", param="ids"
        )
    return ids


async def _find(jobs: JobService, task_id: str) -> Job:
    job = await jobs.get(task_id)
    if job is None:
        raise errors.task_not_found()
    return job


async def _task(request: Request, jobs: JobService, job: Job) -> Task:
    all_metadata = await jobs.metadata(job.id) if job.state is JobState.DONE else []
    return Task.of(job, await jobs.progress(job), all_metadata, public_root(request))

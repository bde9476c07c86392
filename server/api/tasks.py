"""Endpoints of existing Z-Image-Turbo deployments: wait for images, or submit a task and ask for it later.

A task is a job. Knows bodies and events; jobs are those of `JobService`.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect

from engine.images.metadata import ImageMetadata
from server.api import errors, openapi
from server.api.body import read_body, while_connected
from server.api.submit import Jobs, Owner, Submission, image_path, submit_request, timing_headers, wait_for_images
from server.api.task_schemas import GenerateRequest, Images, Submitted, Task, TaskEvent, TaskList, TaskResult
from server.jobs.job import MAX_SEQUENCE, Job, JobState, StoredImage
from server.jobs.live_job import JobEvent, JobPreview, Progress
from server.jobs.service import JobService

STATES = {JobState.QUEUED: "pending"}  # other states keep their names
MAX_PAGE = 200  # tasks
TASK_NOT_FOUND = 4404  # close code of WebSockets

router = APIRouter()

BODY = openapi.request_body(GenerateRequest)
LINKS = openapi.links_to("/v1/task/{task_id}", "task_id", "get", "delete")


@router.post("/api/v1/generate", response_model=Images, openapi_extra=BODY, responses=openapi.generation_responses())
async def generate(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate images and answer with them."""
    job = await _submit(request, jobs, owner, is_awaited=True)
    ended, images = await wait_for_images(request, jobs, job)
    seeds = [image.metadata.seed for image in images]
    answer = Images(images=[base64.b64encode(image.data).decode() for image in images], seeds=seeds)
    return Response(answer.model_dump_json(), media_type="application/json", headers=timing_headers(ended, images))


@router.post("/api/v1/generate_async", openapi_extra=BODY, responses=openapi.submission_responses(LINKS))
@router.post("/v1/generate", openapi_extra=BODY, responses=openapi.submission_responses(LINKS))
async def submit(request: Request, jobs: Jobs, owner: Owner) -> Submitted:
    """Submit a task. It runs whether or not a client waits for it."""
    return Submitted(task_id=(await _submit(request, jobs, owner, is_awaited=False)).id)


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
    jobs.cancel(task_id)
    return await _task(request, jobs, await _find(jobs, task_id))


@router.get(
    "/v1/task/{task_id}/events",
    response_class=EventSourceResponse,
    responses=openapi.event_responses(TaskEvent) | openapi.error_responses(404, 503),
)
async def events(task_id: str, request: Request, jobs: Jobs) -> EventSourceResponse:
    """Send the events of a task as server-sent events: progress, previews, images, end."""
    job = await _find(jobs, task_id)

    async def stream() -> AsyncIterator[ServerSentEvent]:
        async for event in jobs.follow(job):
            sent = await _event(request, jobs, event)
            yield ServerSentEvent(sent.model_dump_json(exclude_unset=True), event=sent.type)

    return EventSourceResponse(stream(), send_timeout=60)


@router.websocket("/v1/task/{task_id}/ws")
async def events_by_websocket(task_id: str, socket: WebSocket, jobs: Jobs) -> None:
    """Send the events of a task as JSON messages."""
    job = await jobs.get(task_id)
    await socket.accept()
    if job is None:
        await socket.close(TASK_NOT_FOUND, "no such task")
        return
    with suppress(WebSocketDisconnect, ClientDisconnect):
        await while_connected(socket, _send_events(socket, jobs, job))


async def _send_events(socket: WebSocket, jobs: JobService, job: Job) -> None:
    async for event in jobs.follow(job):
        await socket.send_text((await _event(socket, jobs, event)).model_dump_json(exclude_unset=True))
    await socket.close()


@router.get("/v1/tasks", responses=openapi.error_responses(401, 503))
async def history(
    request: Request,
    jobs: Jobs,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[int, Query(ge=1, le=MAX_SEQUENCE)] | None = None,
) -> TaskList:
    """List the owner's tasks, newest first; `before` is the `sequence` of the last task of the previous page."""
    found = await jobs.history(limit, before, owner)
    return TaskList(tasks=[await _task(request, jobs, job) for job in found])


async def _submit(request: Request, jobs: JobService, owner: str | None, *, is_awaited: bool) -> Job:
    body = await read_body(request, GenerateRequest)
    submission = Submission(
        "tasks",
        body,
        body.image(),
        body.num_images,
        is_awaited,
        timeout=body.timeout,
        previews=body.previews,
    )
    return await submit_request(request, jobs, owner, submission)


async def _find(jobs: JobService, task_id: str) -> Job:
    job = await jobs.get(task_id)
    if job is None:
        raise errors.task_not_found()
    return job


async def _task(request: Request | WebSocket, jobs: JobService, job: Job) -> Task:
    progress = jobs.progress(job)
    all_metadata = await jobs.metadata(job.id) if job.state is JobState.DONE else []
    share = 1.0 if job.state is JobState.DONE else progress.done / progress.steps if progress.steps else 0.0
    return Task(
        task_id=job.id,
        status=STATES.get(job.state, job.state.value),
        progress=int(100 * share),
        queue_position=progress.position,
        eta=None if job.state.is_final else round(progress.eta, 3),
        created=job.created,
        sequence=job.sequence,
        prompt=job.request.prompt,
        result=_result(request, job, all_metadata) if all_metadata else None,
        error=None if job.error is None else job.error.message,
        error_code=None if job.error is None else job.error.code,
    )


def _result(request: Request | WebSocket, job: Job, all_metadata: list[ImageMetadata]) -> TaskResult:
    assert job.started is not None and job.finished is not None
    base = str(request.base_url)
    return TaskResult(
        paths=[base + image_path(job, index) for index in range(len(all_metadata))],
        time=round(job.finished - job.started, 3),
        metadata=all_metadata,
    )


async def _event(request: Request | WebSocket, jobs: JobService, event: JobEvent) -> TaskEvent:
    match event:
        case Progress():
            return TaskEvent(
                type="progress",
                status=STATES.get(event.state, event.state.value),
                progress=int(100 * event.done / max(event.steps, 1)),
                queue_position=event.position,
                eta=round(event.eta, 3),
            )
        case JobPreview():
            return TaskEvent(type="preview", index=event.index, step=event.done, image=_base64(event.data))
        case StoredImage():
            return TaskEvent(type="image", index=event.index, seed=event.metadata.seed, image=_base64(event.data))
        case Job():
            return TaskEvent(type="end", task=await _task(request, jobs, event))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""The endpoints that deployments of Z-Image-Turbo already call: wait for images, or leave a task and ask for it.

Knows bodies; what becomes of a task, which is a job by another name, is the dispatcher's.
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
from server.api.body import read, while_connected
from server.api.submit import Jobs, Owner, Submission, accept, image_path, timing, wait_for_images
from server.api.task_schemas import GenerateRequest, Images, Submitted, Task, TaskEvent, TaskList, TaskResult
from server.jobs.dispatcher import Dispatcher
from server.jobs.job import Job, JobState, StoredImage
from server.jobs.live_job import JobEvent, PreviewReady, Progress
from server.jobs.store import MAX_SEQUENCE

STATES = {JobState.QUEUED: "pending"}  # others are called as they are
MAX_PAGE = 200  # tasks
CALLED_OFF = 4404  # WebSocket close code: there is no such task

router = APIRouter()

BODY = openapi.takes(GenerateRequest)
LINKS = openapi.leads_to("task_id", "/v1/task/{task_id}", "get", "delete")


@router.post("/api/v1/generate", response_model=Images, openapi_extra=BODY, responses=openapi.generates())
async def generate(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generates, and answers with the images."""
    job = await _accept(request, jobs, owner, is_awaited=True)
    ended, images = await wait_for_images(request, jobs, job)
    seeds = [image.metadata.seed for image in images]
    answer = Images(images=[base64.b64encode(image.data).decode() for image in images], seeds=seeds)
    return Response(answer.model_dump_json(), media_type="application/json", headers=timing(ended, images))


@router.post("/api/v1/generate_async", openapi_extra=BODY, responses=openapi.submits(LINKS))
@router.post("/v1/generate", openapi_extra=BODY, responses=openapi.submits(LINKS))
async def submit(request: Request, jobs: Jobs, owner: Owner) -> Submitted:
    """Takes a task, which is generated whether or not anybody waits for it."""
    return Submitted(task_id=(await _accept(request, jobs, owner, is_awaited=False)).id)


@router.get("/v1/task/{task_id}", responses=openapi.fails(404, 503))
async def task(task_id: str, request: Request, jobs: Jobs) -> Task:
    """Where a task is, and when it is done, where its images are."""
    return await _task(request, jobs, await _find(jobs, task_id))


@router.delete("/v1/task/{task_id}", responses=openapi.fails(401, 404, 503))
async def cancel(task_id: str, request: Request, jobs: Jobs, owner: Owner) -> Task:
    """Ends a task at its next step; one that has ended is forgotten, images and all."""
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
    responses=openapi.streams(TaskEvent) | openapi.fails(404, 503),
)
async def events(task_id: str, request: Request, jobs: Jobs) -> EventSourceResponse:
    """What happens to a task, as server-sent events: progress, previews, images, its end."""
    job = await _find(jobs, task_id)

    async def stream() -> AsyncIterator[ServerSentEvent]:
        async for event in jobs.follow(job):
            told = await _event(request, jobs, event)
            yield ServerSentEvent(told.model_dump_json(exclude_unset=True), event=told.type)

    return EventSourceResponse(stream(), send_timeout=60)


@router.websocket("/v1/task/{task_id}/ws")
async def events_by_websocket(task_id: str, socket: WebSocket, jobs: Jobs) -> None:
    """The same events as JSON messages."""
    job = await jobs.get(task_id)
    await socket.accept()
    if job is None:
        await socket.close(CALLED_OFF, "no such task")
        return
    with suppress(WebSocketDisconnect, ClientDisconnect):
        await while_connected(socket, _tell(socket, jobs, job))


async def _tell(socket: WebSocket, jobs: Dispatcher, job: Job) -> None:
    async for event in jobs.follow(job):
        await socket.send_text((await _event(socket, jobs, event)).model_dump_json(exclude_unset=True))
    await socket.close()


@router.get("/v1/tasks", responses=openapi.fails(401, 503))
async def history(
    request: Request,
    jobs: Jobs,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[int, Query(ge=1, le=MAX_SEQUENCE)] | None = None,
) -> TaskList:
    """One's own tasks, newest first; `before` is the last one's `sequence`."""
    found = await jobs.history(limit, before, owner)
    return TaskList(tasks=[await _task(request, jobs, job) for job in found])


async def _accept(request: Request, jobs: Dispatcher, owner: str | None, *, is_awaited: bool) -> Job:
    wanted = await read(request, GenerateRequest)
    order = Submission("tasks", wanted, wanted.images(), is_awaited, timeout=wanted.timeout, previews=wanted.previews)
    return await accept(request, jobs, owner, order)


async def _find(jobs: Dispatcher, task_id: str) -> Job:
    job = await jobs.get(task_id)
    if job is None:
        raise errors.task_not_found()
    return job


async def _task(request: Request | WebSocket, jobs: Dispatcher, job: Job) -> Task:
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
        prompt=job.requests[0].prompt,
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


async def _event(request: Request | WebSocket, jobs: Dispatcher, event: JobEvent) -> TaskEvent:
    match event:
        case Progress():
            return TaskEvent(
                type="progress",
                status=STATES.get(event.state, event.state.value),
                progress=int(100 * event.done / max(event.steps, 1)),
                queue_position=event.position,
                eta=round(event.eta, 3),
            )
        case PreviewReady():
            return TaskEvent(type="preview", index=event.index, step=event.done, image=_base64(event.data))
        case StoredImage():
            return TaskEvent(type="image", index=event.index, seed=event.metadata.seed, image=_base64(event.data))
        case Job():
            return TaskEvent(type="end", task=await _task(request, jobs, event))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

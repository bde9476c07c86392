"""Gradio's API with one function, `predict`: prompt, width, height, steps, CFG scale, seed and negative prompt.

`POST /api/predict/` answers at once with the image as a data URL, as Gradio 3 did in the first deployments. Gradio's
newer clients submit a call and read its events: `gradio_client` from its session's stream, curl from the call's own.
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from engine.errors import InvalidRequest
from server.api import openai
from server.api.body import read_body
from server.api.dialects.gradio_queue import Sessions, failed, file_data
from server.api.dialects.gradio_schemas import MAX_NAME, PREFIX, Call, Cancel, check_function, config, info
from server.api.dialects.routes import with_errors
from server.api.errors import ApiError, from_job, logged, missing_parameter, task_not_found, translate
from server.api.public_address import public_root
from server.api.submit import (
    Jobs,
    Owner,
    Submission,
    answer_headers,
    encode_images,
    submit_request,
    wait_for_images,
)
from server.jobs.job import Job, JobState, StoredImage, new_id
from server.jobs.service import JobService

API = "gradio"
SEPARATOR = "\n"  # of lines; gradio_client knows no other
IMAGE = r"v1/images/{job_id}/{name}"  # as in `gradio_queue.file_data`


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": str(error), "detail": str(error)}


router = APIRouter(route_class=with_errors(_error), include_in_schema=False)


@router.get("/config")
@router.get(f"{PREFIX}/config")
async def get_config(request: Request) -> dict[str, Any]:
    """Return what a client reads first."""
    return config(request)


@router.get("/info")
@router.get(f"{PREFIX}/info")
async def get_info(jobs: Jobs) -> dict[str, Any]:
    """Return the names and defaults of the function's arguments."""
    return info(jobs.manifest)


@router.post("/api/predict")
@router.post("/api/predict/")
@router.post("/run/predict")
@router.post(f"{PREFIX}/run/predict")
async def predict(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate an image and answer with it, as a data URL."""
    submission = _submission(await read_body(request, Call))
    job = await submit_request(request, jobs, owner, submission)
    ended, images = await wait_for_images(request, jobs, job)
    content = await encode_images(images, partial(_answer, ended, images[0]))
    return Response(content, media_type="application/json", headers=answer_headers(request, submission, ended, images))


@router.post("/call/{name}")
@router.post(f"{PREFIX}/call/{{name}}")
async def call(name: str, request: Request, response: Response, jobs: Jobs, owner: Owner) -> dict[str, str]:
    """Submit a call, whose end is read from its own stream."""
    check_function(name)
    job = await _submit(request, response, jobs, owner, await read_body(request, Call))
    return {"event_id": job.id}


@router.get("/call/{name}/{event_id}")
@router.get(f"{PREFIX}/call/{{name}}/{{event_id}}")
async def call_events(name: str, event_id: str, request: Request, jobs: Jobs, owner: Owner) -> EventSourceResponse:
    """Send the end of a call: its image, or an error."""
    check_function(name)
    job = await _find(jobs, event_id, owner)
    end = _end(jobs, job, public_root(request))
    ping = partial(ServerSentEvent, "null", event="heartbeat", sep=SEPARATOR)
    return EventSourceResponse(end, sep=SEPARATOR, ping_message_factory=ping)


@router.post("/queue/join")
@router.post(f"{PREFIX}/queue/join")
async def join(request: Request, response: Response, jobs: Jobs, owner: Owner) -> dict[str, str]:
    """Submit a call of a session. The reason why one is invalid is an event: of statuses, clients show no reasons."""
    body = await read_body(request, Call)
    if not body.session_hash:  # all clients without one would share a stream
        raise missing_parameter("session_hash")
    session = owner, body.session_hash
    try:
        job = await _submit(request, response, jobs, owner, body)
    except (ApiError, InvalidRequest) as error:
        if translate(request, error).status != 400:
            raise
        _sessions(request).add(session, failed(event_id := new_id(), str(logged(request, error))))
        return {"event_id": event_id}
    try:
        _sessions(request).add(session, job)
    except ApiError:
        await jobs.cancel(job.id)
        raise
    return {"event_id": job.id}


@router.get("/queue/data")
@router.get(f"{PREFIX}/queue/data")
async def session_events(
    request: Request, jobs: Jobs, owner: Owner, session_hash: str = Query(min_length=1, max_length=MAX_NAME)
) -> EventSourceResponse:
    """Send the events of a session's calls."""
    following = _sessions(request).events((owner, session_hash), jobs, public_root(request))

    async def lines() -> AsyncIterator[str]:
        async with aclosing(following) as events:
            async for event in events:
                yield json.dumps(event)

    ping = partial(ServerSentEvent, '{"msg": "heartbeat"}', sep=SEPARATOR)
    return EventSourceResponse(lines(), sep=SEPARATOR, ping_message_factory=ping)


@router.post("/reset")
@router.post(f"{PREFIX}/reset")
@router.post(f"{PREFIX}/cancel")
async def cancel(request: Request, jobs: Jobs, owner: Owner) -> dict[str, bool]:
    """Cancel a call."""
    body = await read_body(request, Cancel)
    job = await _find(jobs, body.event_id or "", owner)
    return {"success": await jobs.cancel(job.id)}


@router.get(f"/file={IMAGE}")
@router.get(f"{PREFIX}/file={IMAGE}")
async def file(job_id: str, name: str, jobs: Jobs) -> Response:
    """Return an image by the path in a call's result."""
    return await openai.image(job_id, name, jobs)


def _submission(body: Call) -> Submission:
    arguments = body.arguments()
    image, ignored = arguments.image(), arguments.ignored()
    return Submission(API, arguments, image, image_count=1, is_awaited=True, ignored=ignored)


async def _submit(request: Request, response: Response, jobs: JobService, owner: str | None, body: Call) -> Job:
    submission = _submission(body)
    job = await submit_request(request, jobs, owner, submission)
    response.headers.update(answer_headers(request, submission, job))
    return job


async def _find(jobs: JobService, event_id: str, owner: str | None) -> Job:
    job = await jobs.get(event_id)
    if job is None or job.api != API or job.owner != owner:
        raise task_not_found()
    return job


async def _end(jobs: JobService, job: Job, base_url: str) -> AsyncIterator[dict[str, str]]:
    """Yield the end of a job; cancel it if its client leaves before."""
    try:
        ended, _ = await jobs.wait(job)
    finally:
        if not job.durable:
            await jobs.cancel(job.id)
    if ended.state is JobState.DONE:
        yield {"event": "complete", "data": json.dumps([file_data(ended, base_url)])}
    else:
        yield {"event": "error", "data": json.dumps(str(from_job(ended)))}


def _answer(job: Job, image: StoredImage) -> str:
    assert job.started is not None and job.finished is not None
    url = f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
    seconds = max(job.finished - job.started, 0.0)
    return json.dumps({"data": [url], "is_generating": False, "duration": seconds, "average_duration": seconds})


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.gradio_sessions
    return sessions

"""Gradio's queue: the calls of each client's session, with their events in one stream. Knows jobs; no routes."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from server.api import errors
from server.api.schemas import image_path
from server.jobs.follower import Progress
from server.jobs.job import Job, JobState
from server.jobs.service import JobService

MAX_SESSIONS = 1024  # whose calls are remembered; the oldest one without a stream is forgotten
MAX_WAITING = 64  # calls and events of a session that its stream has not taken up
LINGER = 1.0  # seconds without calls until a stream ends; gradio_client loses a call that meets the end of its stream
COMPLETED = "process_completed"

Message = dict[str, Any]
Session = tuple[str | None, str]  # owner and the client's own name for it


class Submitted(NamedTuple):
    """A call that waits for its session's stream: its job without the prompt, which would fill the memory."""

    id: str
    is_durable: bool


class Sessions:
    """The sessions of all clients. A client submits its calls first, and then opens the session's stream."""

    def __init__(self) -> None:
        self._inboxes: OrderedDict[Session, asyncio.Queue[Submitted | Message]] = OrderedDict()
        self._streams: Counter[Session] = Counter()  # open ones

    def add(self, session: Session, call: Job | Message) -> None:
        """Add the job of a call, or the end of one that has no job.

        Raises:
            ApiError: 429, too many calls of the session wait for a stream, or too many sessions have streams.
        """
        inbox = self._inboxes.setdefault(session, asyncio.Queue(MAX_WAITING))
        if len(self._inboxes) > MAX_SESSIONS:
            self._forget_oldest(session)
        try:
            inbox.put_nowait(Submitted(call.id, call.durable) if isinstance(call, Job) else call)
        except asyncio.QueueFull:
            raise errors.ApiError(
                429, "Too many calls of the session wait for its stream.", code="queue_full"
            ) from None

    async def events(self, session: Session, jobs: JobService, base_url: str) -> AsyncGenerator[Message]:
        """Yield the events of a session's calls until there are no more. Cancel those of a client that leaves."""
        inbox = self._inboxes.setdefault(session, asyncio.Queue(MAX_WAITING))
        self._streams[session] += 1
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                async with asyncio.timeout(None if running else LINGER):
                    received = await inbox.get()
                if isinstance(received, Submitted):
                    if received.id not in running:  # it is, if its idempotency key was repeated
                        running[received.id] = asyncio.create_task(_follow(jobs, received, inbox, base_url))
                    continue
                if received["msg"] == COMPLETED:
                    running.pop(received["event_id"], None)
                yield received
        except TimeoutError:
            pass
        finally:
            for task in running.values():
                task.cancel()
            while not inbox.empty():
                if isinstance(call := inbox.get_nowait(), Submitted):
                    await _abandon(jobs, call)
            if self._inboxes.get(session) is inbox:
                del self._inboxes[session]
            self._streams[session] -= 1
            self._streams += Counter()  # drops those at 0
        yield {"msg": "close_stream", "event_id": None}

    def _forget_oldest(self, newest: Session) -> None:
        """Forget a session; not one with a stream, whose next calls would never end for its client."""
        oldest = next(session for session in self._inboxes if session not in self._streams)
        del self._inboxes[oldest]
        if oldest == newest:
            raise errors.ApiError(429, "Too many sessions have streams.", code="queue_full")


async def _follow(jobs: JobService, call: Submitted, inbox: asyncio.Queue[Submitted | Message], base_url: str) -> None:
    """Put the events of a job into its session's inbox; cancel the job if nobody waits for it any more."""
    end = failed(call.id, "The events of the call cannot be read; see the server's log.")
    try:
        with suppress(*errors.EXPECTED):
            if (job := await jobs.get(call.id)) is None:
                raise errors.task_not_found()
            async with aclosing(jobs.follow(job)) as events:
                async for event in events:
                    match event:
                        case Progress():
                            await inbox.put(_progress(job, event))
                        case Job():
                            end = _completed(event, base_url)
    finally:
        await _abandon(jobs, call)
    await inbox.put(end)


async def _abandon(jobs: JobService, call: Submitted) -> None:
    """Cancel a job that has not ended, unless its client may come back for it."""
    if not call.is_durable:
        await jobs.cancel(call.id)


def failed(event_id: str, reason: str) -> Message:
    """Return the end of a call that failed."""
    return {"msg": COMPLETED, "event_id": event_id, "success": False, "output": {"error": reason}}


def _progress(job: Job, progress: Progress) -> Message:
    if progress.state is JobState.QUEUED:
        place = {"rank": progress.position, "queue_size": progress.position + 1, "rank_eta": progress.eta}
        return {"msg": "estimation", "event_id": job.id} | place
    unit = {"index": progress.done, "length": progress.steps, "unit": "steps", "progress": None, "desc": None}
    return {"msg": "progress", "event_id": job.id, "progress_data": [unit]}


def _completed(job: Job, base_url: str) -> Message:
    if job.state is not JobState.DONE:
        return failed(job.id, str(errors.from_job(job)))
    assert job.started is not None and job.finished is not None
    seconds = max(job.finished - job.started, 0.0)
    output = {"data": [file_data(job, base_url)], "is_generating": False, "duration": seconds}
    return {"msg": COMPLETED, "event_id": job.id, "success": True, "output": output | {"average_duration": seconds}}


def file_data(job: Job, base_url: str) -> Message:
    """Return the image of a finished job as Gradio describes files. `base_url`: the server's root."""
    path = image_path(job, 0)
    return {
        "path": path,
        "url": base_url + path,
        "size": None,
        "orig_name": f"image{job.format.suffix}",
        "mime_type": job.format.media_type,
        "is_stream": False,
        "meta": {"_type": "gradio.FileData"},
    }

"""Events of a task as JSON, encoded once for all clients that follow the task. Knows events; not connections."""

import asyncio
import base64
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from server.api.submit import encode_images
from server.api.task_schemas import STATUS, Task, TaskEvent
from server.jobs.follower import JobPreview, Progress
from server.jobs.job import Job, StoredImage
from server.jobs.service import JobEvent, JobService


@dataclass(frozen=True, slots=True, weakref_slot=True)
class EncodedEvent:
    """An event as the message of a WebSocket, and as a server-sent event."""

    text: str
    server_sent: bytes


class TaskEventEncoder:
    """Encodes events. Clients that follow one task share what is encoded for as long as one of them needs it."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._encoding = asyncio.Lock()
        self._shared: WeakKeyDictionary[StoredImage | JobPreview, dict[str, EncodedEvent]] = WeakKeyDictionary()

    async def encode(self, event: JobEvent, id: str, base_url: str) -> EncodedEvent:
        """Encode an event.

        Args:
            id: of the event; see `event_ids`.
            base_url: the server's root, as this client sees it.
        """
        match event:
            case Progress():
                return _encoded(_progress(event, id))
            case Job():
                all_metadata = await self._jobs.metadata(event.id)
                task = Task.of(event, await self._jobs.progress(event), all_metadata, base_url)
                return _encoded(TaskEvent(type="end", id=id, task=task))
            case JobPreview() | StoredImage():
                return await self._encode_once(event, id)

    async def _encode_once(self, event: JobPreview | StoredImage, id: str) -> EncodedEvent:
        """Encode an image, once for all clients that have the same images, as nearly all have."""
        async with self._encoding:
            by_id = self._shared.setdefault(event, {})
            if id not in by_id:
                by_id[id] = await encode_images([event], partial(_encoded_image, event, id))
            return by_id[id]


def _progress(event: Progress, id: str) -> TaskEvent:
    return TaskEvent(
        type="progress",
        id=id,
        status=STATUS[event.state],
        progress=int(100 * event.done / max(event.steps, 1)),
        queue_position=event.position,
        eta=round(event.eta, 3),
    )


def _encoded_image(event: JobPreview | StoredImage, id: str) -> EncodedEvent:
    image = base64.b64encode(event.data).decode()
    if isinstance(event, JobPreview):
        return _encoded(TaskEvent(type="preview", id=id, index=event.index, step=event.done, image=image))
    return _encoded(TaskEvent(type="image", id=id, index=event.index, seed=event.metadata.seed, image=image))


def _encoded(event: TaskEvent) -> EncodedEvent:
    text = event.model_dump_json(exclude_unset=True)  # without line breaks
    return EncodedEvent(text, f"id: {event.id}\r\nevent: {event.type}\r\ndata: {text}\r\n\r\n".encode())

"""Image files on their way to an image store, each until it is there. Used from one event loop.

Knows names and retries; neither rows nor where files are.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from server.errors import StoreUnavailable
from server.jobs.job import ImageFile, StoredImage
from server.jobs.storage.images.image_store import ImageStore

log = logging.getLogger(__name__)

RETRY_DELAY, MAX_RETRY_DELAY = 1.0, 10.0  # seconds between two attempts to store a file; the delay doubles
MAX_WRITES = 32  # files that are written at the same time


class ImageFiles:
    """The files of jobs' images.

    Attributes:
        is_refused: True if the last attempt to store a file failed.
    """

    def __init__(self, images: ImageStore) -> None:
        self.is_refused = False
        self._images = images
        self._limit = asyncio.Semaphore(MAX_WRITES)
        self._tasks: dict[str, set[asyncio.Task[object]]] = {}  # by job

    @property
    def pending(self) -> int:
        """Number of files and rows that are not stored yet."""
        return sum(map(len, self._tasks.values()))

    def write(
        self, job_id: str, image: StoredImage, then: Callable[[StoredImage], Awaitable[object]]
    ) -> asyncio.Task[object]:
        """Store an image's file, however often it takes, and then call `then` with the image without its data."""
        return self._start(job_id, self._write(job_id, image, then))

    def after_writes(self, job_id: str, then: Callable[[], Awaitable[object]]) -> asyncio.Task[object]:
        """Call `then` when the writes of a job so far are done."""
        return self._start(job_id, self._wait(set(self._tasks.get(job_id, ())), then))

    def give_up(self, job_id: str) -> None:
        """Drop what is not stored yet of a job."""
        for task in self._tasks.get(job_id, ()):
            task.cancel()

    async def settle(self) -> None:
        """Wait for all writes so far."""
        if tasks := [task for tasks in self._tasks.values() for task in tasks]:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Drop all that is not stored yet."""
        for job_id in self._tasks:
            self.give_up(job_id)

    async def read(self, job_id: str, image: StoredImage) -> StoredImage | None:
        """Return an image with its data; None if its file is missing or incomplete.

        Raises:
            StoreUnavailable: the image store cannot be read now.
        """
        if image.file is None:
            return image
        data = await self._images.get(job_id, image.file.name)
        if data is None or len(data) != image.file.bytes:
            size = "missing" if data is None else f"{len(data)} bytes long"
            log.error("image %d of %s is lost: its file %s is %s", image.index, job_id, image.file.name, size)
            return None
        return replace(image, data=data)

    def _start(self, job_id: str, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(work)
        tasks = self._tasks.setdefault(job_id, set())
        tasks.add(task)
        task.add_done_callback(lambda _: self._on_done(job_id, task))
        return task

    def _on_done(self, job_id: str, task: asyncio.Task[object]) -> None:
        tasks = self._tasks[job_id]
        tasks.discard(task)
        if not tasks:
            del self._tasks[job_id]

    async def _write(self, job_id: str, image: StoredImage, then: Callable[[StoredImage], Awaitable[object]]) -> object:
        # a new name each time: no writer can change the file that a row tells of
        kind = image.media_type.rpartition("/")[2]
        file = ImageFile(f"{image.index}-{secrets.token_hex(4)}.{kind}", len(image.data))
        delay = RETRY_DELAY
        async with self._limit:
            while not await self._attempt(job_id, image, file):
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_RETRY_DELAY)
        return await then(replace(image, data=b"", file=file))

    async def _attempt(self, job_id: str, image: StoredImage, file: ImageFile) -> bool:
        try:
            await self._images.put(job_id, file.name, image.media_type, image.data)
        except StoreUnavailable as error:
            self.is_refused = True
            log.error("%s; image %d of %s is kept in memory and stored later", error, image.index, job_id)
            return False
        except Exception:
            self.is_refused = True
            log.exception("image %d of %s is kept in memory and stored later", image.index, job_id)
            return False
        self.is_refused = False
        return True

    async def _wait(self, tasks: set[asyncio.Task[object]], then: Callable[[], Awaitable[object]]) -> object:
        if tasks:
            await asyncio.wait(tasks)
        return await then()

"""The job store for an event loop: reads are awaited, writes follow in the background, in order.

Knows calls; not what jobs mean.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from server.errors import StoreUnavailable
from server.jobs.job import Job, StoredImage
from server.jobs.storage.images.image_deletion import ImageDeletion
from server.jobs.storage.images.image_files import ImageFiles
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import PRUNE_EVERY, Retention
from server.jobs.storage.store import JobStore
from server.jobs.storage.write_queue import WriteQueue
from server.worker.packed_image import PackedImage

log = logging.getLogger(__name__)

T = TypeVar("T")
FLUSH_TIMEOUT = 2.0  # seconds
MAX_REFUSED_WRITES = 512  # that wait in memory, each with one image at most, before new jobs are refused
CLOSE_SECONDS = 2.0  # for calls under way at the end; one to a database whose network is cut takes 11 s to fail
CLOSE_POLL = 0.005  # seconds between two looks at them


class AsyncStore:
    """One store, used from one event loop.

    Args:
        retention: of jobs that have ended, with their images.
        images: keeps the bytes of new images; None for the database.
        threads: that call the store; more than one only for a database that many may use at once.

    Attributes:
        store: for its methods, which go through `call` and `write_later`. Images are read and written, and jobs ended
            and deleted, by the methods here.
    """

    def __init__(
        self, store: JobStore, retention: Retention, images: ImageStore | None = None, threads: int = 1
    ) -> None:
        self.store = store
        self._retention = retention
        self._files = None if images is None else ImageFiles(images)
        self._deletion = None
        if images is not None:
            store.deleted.may_have_files = True
        if images is not None and store.deletes_jobs:
            self._deletion = ImageDeletion(images, store.deleted, self.call, retention.max_age)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="store")  # one keeps the order of the calls
        self._calls: set[asyncio.Future[Any]] = set()  # in threads; meanwhile the event loop makes none itself
        self._closing: Future[None] | None = None
        self._writes = WriteQueue(self.call, self._on_written)
        self._tasks: list[asyncio.Task[None]] = []
        self._prune_due = asyncio.Event()

    @property
    def is_shared(self) -> bool:
        return self.store.database.is_shared

    @property
    def is_in_memory(self) -> bool:
        return self.store.database.is_in_memory

    @property
    def pending_writes(self) -> int:
        """Writes that the store has not taken yet, and files that the image store has not taken."""
        return self._writes.pending + (self._files.pending if self._files else 0)

    @property
    def refusal(self) -> str | None:
        """Reason for which no more images may be generated: too many wait in memory, and no write succeeds."""
        if self._writes.is_refused and self._writes.pending > MAX_REFUSED_WRITES:
            return f"{self._writes.pending} writes wait for the disk; free disk space"
        if self._files is not None and self._files.is_refused and self._files.pending > MAX_REFUSED_WRITES:
            return f"{self._files.pending} images wait for their store; the server's log says why"
        return None

    def start(self) -> None:
        work = [self._writes.run, self._prune, self._check, *([self._deletion.run] if self._deletion else [])]
        self._tasks = [asyncio.create_task(call()) for call in work]

    def close(self) -> None:
        """Drop the pending writes, and close the store after the calls under way. Does not wait; see `wait_closed`."""
        for task in self._tasks:
            task.cancel()
        if self._files is not None:
            self._files.close()
        self._closing = self._threads.submit(self.store.close)
        self._threads.shutdown(wait=False)

    async def wait_closed(self) -> None:
        """Wait until the store is closed, CLOSE_SECONDS at most. A call that takes longer ends in its thread."""
        assert self._closing is not None, "call close first"
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._calls or not self._closing.done():
                    await asyncio.sleep(CLOSE_POLL)
        for call in self._calls:
            call.cancel()  # the event loop may be closed when it ends
        if self._closing.done():
            self._closing.result()

    async def call(self, method: Callable[..., T], *args: object) -> T:
        """Return the result of a method of the store; raise what it raises."""
        if self.is_in_memory and not self._calls:  # faster than a trip to the thread
            return method(*args)
        return await self.call_in_thread(method, *args)

    async def add(self, job: Job, init_image: PackedImage | None = None) -> Job:
        """Store a job; see `JobStore.add`.

        Raises:
            StoreUnavailable: also if the disk takes small jobs but no images, which would fill the memory.
        """
        if (reason := self.refusal) is not None:
            raise StoreUnavailable(reason)
        return await self.call(self.store.add, job, init_image)

    async def init_image(self, id: str) -> PackedImage | None:
        """Return the image that a job begins with; None if it is damaged."""
        return await self.call(self.store.init_images.get, id)

    async def image(self, id: str, index: int) -> StoredImage | None:
        """Return an image with its data; None if there is none, or it is lost."""
        image = await self.call(self.store.image, id, index)
        return image if image is None or self._files is None else await self._files.read(id, image)

    async def images(self, id: str) -> list[StoredImage]:
        """Return the images so far, by index, with their data."""
        images = await self.call(self.store.images, id)
        if self._files is None:
            return images
        read = await asyncio.gather(*(self._files.read(id, image) for image in images))
        return [image for image in read if image is not None]

    async def delete(self, id: str) -> bool:
        """Delete a job that has ended, with its images; see `JobStore.delete`."""
        is_deleted = await self.call(self.store.delete, id)
        if self._deletion is not None:
            self._deletion.on_deleted()
        return is_deleted

    def add_image(self, id: str, image: StoredImage) -> "asyncio.Future[object]":
        """Store an image in the background; see `write_later`. Its row is written when its file is there."""
        if self._files is None:
            return self.write_later(partial(self.store.add_image, id, image))
        return self._files.write(id, image, lambda stored: self.write_later(partial(self.store.add_image, id, stored)))

    def finish(self, id: str, then: Callable[[], object] = lambda: None) -> "asyncio.Future[object]":
        """End a job in the background, after its images are stored; see `write_later`."""
        write = partial(self.store.finish, id)
        if self._files is None:
            return self.write_later(write, then)
        return self._files.after_writes(id, lambda: self.write_later(write, then))

    def end(
        self, id: str, write: Callable[[], object], then: Callable[[], object] = lambda: None
    ) -> "asyncio.Future[object]":
        """Write the end of a job that failed or was cancelled; its images that are not stored yet are dropped."""
        self.give_up_images(id)
        return self.write_later(write, then)

    def give_up_images(self, id: str) -> None:
        """Drop what is not stored yet of the images of a job that is not this server's any more."""
        if self._files is not None:
            self._files.give_up(id)

    def write_later(
        self, write: Callable[[], object], then: Callable[[], object] = lambda: None
    ) -> "asyncio.Future[object]":
        """Write in the background, after earlier writes, and again and again until the disk takes it.

        Args:
            then: called when the write is done.

        Returns:
            A future of the write's result; None for a write that failed and is dropped.
        """
        return self._writes.put(write, then)

    async def flush(self) -> None:
        """Wait until all writes so far are done. Raises StoreUnavailable after FLUSH_TIMEOUT."""
        if not self.pending_writes:
            return
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                if self._files is not None:
                    await self._files.settle()
                await asyncio.shield(self.write_later(lambda: None))
        except TimeoutError as error:
            raise StoreUnavailable(f"earlier writes were not done in {FLUSH_TIMEOUT:.0f} s; try again later") from error

    async def call_in_thread(self, method: Callable[..., T], *args: object) -> T:
        """Return the result of a method that may take long, without holding up the event loop."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, method, *args)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)  # a cancelled caller leaves the call running

    def _on_written(self) -> None:
        if self._retention.is_due(self.store.bytes_since_prune):
            self._prune_due.set()

    async def _check(self) -> None:
        """Log what is wrong with the file, once, while the server runs already."""
        try:
            problems = await asyncio.to_thread(self.store.database.check)
        except (StoreUnavailable, sqlite3.Error) as error:
            problems = [str(error)]
        for problem in problems:
            log.error("%s; stop the server and put a copy in its place, or save what `sqlite3 .recover` reads", problem)

    async def _prune(self) -> None:
        """Delete expired jobs, every PRUNE_EVERY seconds and when much is new."""
        while True:
            try:
                while await self.call_in_thread(self.store.prune, self._retention):
                    if self._deletion is not None:
                        self._deletion.on_deleted()  # few jobs at a time, so that other calls come in between
            except StoreUnavailable as error:
                log.error("%s; expired jobs are kept for now", error)
            except Exception:
                log.exception("pruning the job store failed; expired jobs are kept for now")
            with suppress(TimeoutError):
                async with asyncio.timeout(PRUNE_EVERY):
                    await self._prune_due.wait()
            self._prune_due.clear()

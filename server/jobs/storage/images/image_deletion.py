"""Deletion of the files of deleted jobs, in the background. Knows when; neither rows nor where files are."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from server.errors import StoreUnavailable
from server.jobs.storage.deleted_jobs import DeletedJobs
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import DAY

log = logging.getLogger(__name__)

DELETE_EVERY = 60.0  # seconds between two attempts, unless a job is deleted
SWEEP_EVERY = DAY  # seconds between two searches for files that belong to no job
FIRST_SWEEP = 3600.0  # seconds from the start, so that restarts do not list a large bucket again and again


class ImageDeletion:
    """Deletes files. What an image store refuses is tried again, also after a restart, since the job store has a list.

    Once a day it also searches for files that belong to no job, as a crash may leave one, and deletes those that are
    older than any job can be. The age protects the files if the database was replaced by an empty one.

    Args:
        images: where the files are.
        deleted: the jobs whose files must be deleted.
        call: awaits a method of `deleted`, as `AsyncStore.call` does.
        max_age: seconds for which jobs are kept.
        clock: returns unix seconds.
    """

    def __init__(
        self,
        images: ImageStore,
        deleted: DeletedJobs,
        call: Callable[..., Any],
        max_age: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._images, self._deleted, self._call = images, deleted, call
        self._max_age, self._clock = max_age, clock
        self._due = asyncio.Event()
        self._sweep_due = time.monotonic() + FIRST_SWEEP  # by the monotonic clock

    def on_deleted(self) -> None:
        """Delete soon, since a job was deleted."""
        self._due.set()

    async def run(self) -> None:
        """Delete files until cancelled."""
        while True:
            self._due.clear()
            try:
                await self.delete()
                if time.monotonic() >= self._sweep_due:
                    await self.sweep()
                    self._sweep_due = time.monotonic() + SWEEP_EVERY
            except StoreUnavailable as error:
                log.error("%s; files of deleted jobs are deleted later", error)
            except Exception:  # the next attempt may succeed, and nobody else deletes them
                log.exception("files of deleted jobs are deleted later")
            with suppress(TimeoutError):
                async with asyncio.timeout(DELETE_EVERY):
                    await self._due.wait()

    async def delete(self) -> None:
        """Delete the files of all deleted jobs."""
        while jobs := await self._call(self._deleted.listed):
            for job in jobs:
                await self._images.delete(job)
                await self._call(self._deleted.forget, job)

    async def sweep(self) -> int:
        """Delete the files of jobs that are unknown and would be too old; return the number of jobs."""
        found = 0
        async for jobs in self._images.jobs_before(self._clock() - self._max_age - DAY):
            for job in await self._call(self._deleted.unknown, jobs):
                log.warning("the files of %s belong to no job and are deleted", job)
                await self._images.delete(job)
                found += 1
        return found

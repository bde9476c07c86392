"""Deletion of the files of deleted jobs, in the background. Knows when; neither rows nor where files are."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from server.errors import StoreUnavailable
from server.jobs.job import ID_PREFIX
from server.jobs.storage.deleted_jobs import DeletedJobs
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import DAY

log = logging.getLogger(__name__)

DELETE_EVERY = 60.0  # seconds between two attempts, unless a job is deleted
SWEEP_EVERY = DAY  # seconds between two searches for files that belong to no job
FIRST_SWEEP = 3600.0  # seconds from the start, so that restarts do not list a large bucket again and again
MAX_REFUSED = 8  # jobs that one run tries in vain; perhaps the image store is away, and each of them takes seconds


class ImageDeletion:
    """Deletes the files of deleted jobs, which the job store lists.

    Files that the image store refuses to delete hold up no others. They are tried again, also after a restart.

    Once a day it also searches for files that belong to no job, as a crash may leave one, and lists those that are
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
        self._after = ""  # job behind which the next run begins
        self._refused: set[str] = set()  # jobs that the last run tried in vain
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
                    if await self.sweep():
                        await self.delete()
                    self._sweep_due = time.monotonic() + SWEEP_EVERY
            except StoreUnavailable as error:
                log.error("%s; files of deleted jobs are deleted later", error)
            except Exception:  # the next attempt may succeed, and nobody else deletes them
                log.exception("files of deleted jobs are deleted later")
            with suppress(TimeoutError):
                async with asyncio.timeout(DELETE_EVERY):
                    await self._due.wait()

    async def delete(self) -> None:
        """Delete the files of deleted jobs. A job whose files are refused is left for a later call.

        The call ends after MAX_REFUSED such jobs, and the next one begins behind them.
        """
        refused: dict[str, Exception] = {}
        while len(refused) < MAX_REFUSED:
            jobs = await self._call(self._deleted.listed, self._after)
            if not jobs:
                self._after = ""
                break
            for job in jobs:
                self._after = job
                if (error := await self._refusal(job)) is None:
                    await self._call(self._deleted.forget, job)
                    continue
                refused[job] = error
                if len(refused) == MAX_REFUSED:
                    break
        self._report(refused)

    def _report(self, refused: dict[str, Exception]) -> None:
        """Log that files are refused, unless it was said of these jobs already."""
        new = [job for job in refused if job not in self._refused]
        self._refused = set(refused)
        if new:
            error = refused[new[0]]
            cause = None if isinstance(error, StoreUnavailable) else error
            text = "%s; the files of %d deleted jobs, such as %s, are deleted later"
            log.error(text, error, len(refused), new[0], exc_info=cause)

    async def _refusal(self, job: str) -> Exception | None:
        """Delete the files of a job, and return the error if they are refused."""
        try:
            await self._images.delete(job)
        except Exception as error:  # noqa: BLE001  (whatever it is, the files of other jobs must not wait for it)
            return error
        return None

    async def sweep(self) -> int:
        """List the jobs that are unknown and would be too old, for `delete`; return their number.

        What has no job's name is left alone: the image store may have been given a place that is not empty.
        """
        found = 0
        async for jobs in self._images.jobs_before(self._clock() - self._max_age - DAY):
            named = [job for job in jobs if job.startswith(ID_PREFIX)]
            for job in await self._call(self._deleted.unknown, named):
                log.warning("the files of %s belong to no job and are deleted", job)
                await self._call(self._deleted.add, job)
                found += 1
        return found

"""The images that jobs begin with, read from the store for the jobs that are about to be sent. Knows no devices."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from server.errors import StoreUnavailable
from server.jobs.live_job import LiveJob
from server.jobs.tracker import JobTracker

log = logging.getLogger(__name__)

LOAD_AGAIN = 1.0  # seconds between two attempts to read an init image that the disk refuses


class InitImages(Protocol):
    """The init images of jobs: `InitImageLoader`, or those of a simulation."""

    def is_ready(self, live: LiveJob) -> bool:
        """Return True if a job may be sent."""
        ...

    def stop(self) -> None: ...


class InitImageLoader:
    """Loads init images. A job whose init image is damaged fails.

    Args:
        on_loaded: called when a job has its init image, or has ended.
    """

    def __init__(self, tracker: JobTracker, on_loaded: Callable[[], None]) -> None:
        self._tracker, self._on_loaded = tracker, on_loaded
        self._loading: dict[str, asyncio.Task[None]] = {}  # by job

    def is_ready(self, live: LiveJob) -> bool:
        """Return True if a job has its init image in memory, or needs none; else begin to load it."""
        if live.job.request.edit is None or live.init_image is not None:
            return True
        if live.job.id not in self._loading:
            self._loading[live.job.id] = asyncio.create_task(self._load(live))
        return False

    def stop(self) -> None:
        """Load no more."""
        for task in self._loading.values():
            task.cancel()

    async def _load(self, live: LiveJob) -> None:
        try:
            while live.init_image is None and not live.job.state.is_final:
                try:
                    live.init_image = await self._tracker.stored_init_image(live.job.id)
                except StoreUnavailable as error:
                    log.error("%s; the image of %s is read again later", error, live.job.id)
                    await asyncio.sleep(LOAD_AGAIN)
                    continue
                if live.init_image is None:
                    message = "The image that this job begins with is damaged or missing; send the request again."
                    self._tracker.fail(live, "job_damaged", message)
        finally:
            del self._loading[live.job.id]
        self._on_loaded()

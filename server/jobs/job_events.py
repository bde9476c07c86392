"""Events of jobs for the clients that follow them, and the images that these events are about.

Knows jobs in memory and in the store; neither HTTP nor workers.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from weakref import WeakValueDictionary

from server.errors import TooManyFollowers
from server.jobs.follower import ImageFinished
from server.jobs.job import Job, StoredImage
from server.jobs.live_job import LiveJob
from server.jobs.service import JobEvent
from server.jobs.storage.async_store import AsyncStore
from server.jobs.tracker import JobTracker

MAX_FOLLOWERS = 32  # of one job


class JobEvents:
    """Events of all jobs. Followers of one job share its images in memory."""

    def __init__(self, tracker: JobTracker, store: AsyncStore) -> None:
        self._tracker, self._store = tracker, store
        self._followers: Counter[str] = Counter()  # by job
        self._reading = asyncio.Lock()
        self._shared: WeakValueDictionary[tuple[str, int], StoredImage] = WeakValueDictionary()

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        """Return an image; None if there is none."""
        live = self._tracker.get(job_id)
        if live is not None:
            return live.images.get(index)
        async with self._reading:
            image = self._shared.get((job_id, index))
            if image is None:
                image = await self._store.image(job_id, index)
                if image is not None:
                    self._shared[job_id, index] = image
            return image

    def forget_images(self, job_id: str) -> None:
        """Read the images of a job from the store again, since it is deleted."""
        for key in [key for key in self._shared if key[0] == job_id]:
            del self._shared[key]

    def follow(self, job: Job, received: Collection[int] = ()) -> AsyncGenerator[JobEvent]:
        """Yield the events of a job; see `JobService.follow`.

        Raises:
            TooManyFollowers: MAX_FOLLOWERS clients follow the job already.
        """
        if self._followers[job.id] >= MAX_FOLLOWERS:
            raise TooManyFollowers(f"{MAX_FOLLOWERS} clients follow this task already; try again later.")
        return self._counted(job, received)

    async def _counted(self, job: Job, received: Collection[int]) -> AsyncGenerator[JobEvent]:
        if self._followers[job.id] >= MAX_FOLLOWERS:  # others came since `follow` was called
            return
        self._followers[job.id] += 1
        try:
            live = self._tracker.get(job.id)
            events = self._of_ended(job, received) if live is None else self._of_live(live, received)
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            self._followers[job.id] -= 1
            self._followers += Counter()  # drops those at 0

    async def _of_live(self, live: LiveJob, received: Collection[int]) -> AsyncGenerator[JobEvent]:
        with live.follow(self._tracker.progress(live.job), received) as follower:
            while True:
                match change := await follower.get():
                    case ImageFinished(index):
                        if (image := await self.image(live.job.id, index)) is not None:
                            yield image
                    case Job():
                        await live.saved()
                        yield change
                        return
                    case _:
                        yield change

    async def _of_ended(self, job: Job, received: Collection[int]) -> AsyncGenerator[JobEvent]:
        for index in range(job.image_count):
            if index not in received and (image := await self.image(job.id, index)) is not None:
                yield image
        if (ended := await self._store.call(self._store.store.get, job.id)) is not None:
            yield ended

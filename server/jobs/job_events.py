"""Events of jobs for the clients that follow them, and the images that these events are about.

Knows followers and images; neither HTTP nor where events come from.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractContextManager, aclosing
from typing import NamedTuple
from weakref import WeakValueDictionary

from server.errors import TooManyFollowers
from server.jobs.follower import Follower, ImageFinished
from server.jobs.job import Job, StoredImage
from server.jobs.service import JobEvent
from server.jobs.storage.async_store import AsyncStore
from server.jobs.tracker import JobTracker

MAX_FOLLOWERS = 32  # of one job


class JobEvents(ABC):
    """Events of all jobs. Followers of one job share its images in memory."""

    def __init__(self) -> None:
        self._followers: Counter[str] = Counter()  # by job
        self._reading: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()
        self._shared: WeakValueDictionary[tuple[str, int], StoredImage] = WeakValueDictionary()

    @abstractmethod
    async def _read_image(self, job_id: str, index: int) -> StoredImage | None:
        """Return an image from the store."""

    @abstractmethod
    async def _read_job(self, job_id: str) -> Job | None:
        """Return a job from the store."""

    @abstractmethod
    def _following(self, job: Job, received: Collection[int]) -> "Following | None":
        """Return what a follower of an unfinished job needs; None if the job has ended."""

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        """Return an image; None if there is none."""
        key = job_id, index
        async with self._reading.setdefault(key, asyncio.Lock()):
            image = self._shared.get(key)
            if image is None:
                image = await self._read_image(job_id, index)
                if image is not None:
                    self._shared[key] = image
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
            following = self._following(job, received)
            events = self._of_ended(job, received) if following is None else self._of_unfinished(job, following)
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            self._followers[job.id] -= 1
            self._followers += Counter()  # drops those at 0

    async def _of_unfinished(self, job: Job, following: "Following") -> AsyncGenerator[JobEvent]:
        with following.follower as follower:
            while (change := await follower.get()) is not None:
                match change:
                    case ImageFinished(index):
                        if (image := await self.image(job.id, index)) is not None:
                            yield image
                    case Job():
                        await following.saved()
                        yield change
                        return
                    case _:
                        yield change

    async def _of_ended(self, job: Job, received: Collection[int]) -> AsyncGenerator[JobEvent]:
        for index in range(job.image_count):
            if index not in received and (image := await self.image(job.id, index)) is not None:
                yield image
        if (ended := await self._read_job(job.id)) is not None:
            yield ended


class Following(NamedTuple):
    """A follower that gets the events of a job so far and those to come, and the wait for what its end says."""

    follower: AbstractContextManager[Follower]
    saved: Callable[[], Awaitable[None]]


class LiveJobEvents(JobEvents):
    """Events of the jobs that a tracker has in memory, and of those in its store."""

    def __init__(self, tracker: JobTracker, store: AsyncStore) -> None:
        super().__init__()
        self._tracker, self._store = tracker, store

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        live = self._tracker.get(job_id)
        return await super().image(job_id, index) if live is None else live.images.get(index)

    async def _read_image(self, job_id: str, index: int) -> StoredImage | None:
        return await self._store.image(job_id, index)

    async def _read_job(self, job_id: str) -> Job | None:
        return await self._store.call(self._store.store.get, job_id)

    def _following(self, job: Job, received: Collection[int]) -> Following | None:
        live = self._tracker.get(job.id)
        return None if live is None else Following(live.follow(self._tracker.progress(live.job), received), live.saved)

"""Events of jobs for the clients of an API replica that follow them. Knows followers and reads; no events' origin."""

from collections.abc import Awaitable, Callable, Collection

from server.fleet.replica.watch import Watch
from server.jobs.job import Job, StoredImage
from server.jobs.job_events import Following, JobEvents


class WatchedEvents(JobEvents):
    """Events of the jobs that a `Watch` watches, and of those that have ended.

    Args:
        read_image: returns an image from the store; None if there is none.
        read_job: returns a job from the store; None if there is none.
    """

    def __init__(
        self,
        watch: Watch,
        read_image: Callable[[str, int], Awaitable[StoredImage | None]],
        read_job: Callable[[str], Awaitable[Job | None]],
    ) -> None:
        super().__init__()
        self._watch, self._image_of, self._job_of = watch, read_image, read_job

    async def _read_image(self, job_id: str, index: int) -> StoredImage | None:
        return await self._image_of(job_id, index)

    async def _read_job(self, job_id: str) -> Job | None:
        return await self._job_of(job_id)

    def _following(self, job: Job, received: Collection[int]) -> Following | None:
        return None if job.state.is_final else Following(self._watch.follow(job, received), _is_saved)


async def _is_saved() -> None:
    """Return at once: what a replica tells of comes from the database."""

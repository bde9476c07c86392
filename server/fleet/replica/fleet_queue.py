"""The queue of the fleet as an API replica estimates it: places, times and bytes of init images.

Knows rows and measured times; not who gets a job. What it knows is up to MAX_AGE old: it decides what is refused for
being late, and what clients are told, but not the bound of the queue, which the database keeps. A replica reads the
queue once in MAX_AGE at most, whatever its clients ask for; jobs that are newer than the last read are put in by `add`.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from engine.plan.manifest import Manifest
from engine.size import Size
from engine.stages import StageTimes
from server.errors import StoreUnavailable
from server.fleet.fleet_view import FleetView
from server.jobs.admission.estimates import Estimates
from server.jobs.admission.queue_order import QueueOrder
from server.jobs.job import Job
from server.jobs.live_job import LiveJob
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import JobStatus, SizeAverage, WorkerInfo

log = logging.getLogger(__name__)

MAX_AGE = 0.9  # seconds; less than the POLL_SECONDS of `Watch`, so that each poll finds it exceeded


class FleetQueue:
    """The unfinished jobs of the fleet that workers of one model generate, in their estimated order.

    Args:
        view: returns the hosts of the fleet.

    Attributes:
        order: the jobs as they were when they were last read, each with the images that are left of it.
    """

    def __init__(self, calls: AsyncStore, store: FleetStore, manifest: Manifest, view: Callable[[], FleetView]) -> None:
        self._calls, self._store, self._manifest, self._view = calls, store, manifest, view
        self._averages: tuple[SizeAverage, ...] = ()  # of the last hosts that had any
        self._jobs: dict[str, LiveJob] = {}
        self._newest = 0  # sequence of the newest job at the last read
        self._read_at = -MAX_AGE  # by the monotonic clock
        self._reading: asyncio.Task[None] | None = None
        self.order = self._ordered([])

    async def refresh(self) -> None:
        """Read the jobs again if they were read more than MAX_AGE ago.

        If the database does not answer, they stay as they are.
        """
        if self._reading is None:
            if time.monotonic() - self._read_at < MAX_AGE:
                return
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    def add(self, job: Job, init_image_bytes: int = 0) -> None:
        """Add a job if it is newer than those that were read, so that it has a place at once."""
        is_new = job.sequence > self._newest and job.id not in self._jobs
        if is_new and self._is_of_model(job) and not job.state.is_final:
            self._jobs[job.id] = live = LiveJob(job, init_image_bytes=init_image_bytes)
            self.order.add(live)

    def remove(self, job_id: str) -> None:
        """Remove a job that has ended."""
        if (live := self._jobs.pop(job_id, None)) is not None:
            self.order.remove(live)

    def place(self, job_id: str) -> tuple[int, float]:
        """Return the number of jobs before one, and the estimated seconds until its end; 0 for an unknown one."""
        live = self._jobs.get(job_id)
        return (0, 0.0) if live is None else self.order.place(live)

    async def _read(self) -> None:
        try:
            jobs, states, sizes = await self._calls.call(self._unfinished)
        except StoreUnavailable as error:
            log.warning("%s; the estimates are old", error)
            return
        finally:
            self._reading = None
        self._newest = max([self._newest, *(job.sequence for job in jobs)])
        left = (self._left(job, states.get(job.id), sizes.get(job.id, 0)) for job in jobs if self._is_of_model(job))
        self.order = self._ordered([live for live in left if live is not None])
        self._jobs = {live.job.id: live for live in self.order}

    def _unfinished(self) -> tuple[list[Job], dict[str, JobStatus], dict[str, int]]:
        jobs = self._store.unfinished()
        sizes = self._store.init_images.unpacked_bytes() if self._manifest.has_image_input else {}
        return jobs, self._store.states([job.id for job in jobs if self._is_of_model(job)]), sizes

    def _is_of_model(self, job: Job) -> bool:
        return job.model in (None, self._manifest.model.name)

    def _left(self, job: Job, status: JobStatus | None, init_image_bytes: int) -> LiveJob | None:
        """Return what is left of a job: its images that are not stored yet, with the steps that they have."""
        if job.state.is_final or status is None or status.state.is_final:  # it ended meanwhile, or is damaged
            return None
        left = job.image_count - len(status.images)
        if left < 1:
            return None
        steps = job.request.steps_to_run(self._manifest)
        done = max(0, min(status.steps_done - len(status.images) * steps, left * steps))
        begun = {index: min(steps, done - index * steps) for index in range(left) if index * steps < done}
        return LiveJob(replace(job, image_count=left), steps_done=begun, init_image_bytes=init_image_bytes)

    def _ordered(self, jobs: list[LiveJob]) -> QueueOrder:
        workers = [worker for worker in self._view().workers if worker.model == self._manifest.model.name]
        self._averages = tuple(_means(workers)) or self._averages
        estimates = Estimates(self._manifest)
        for each in self._averages:
            estimates.learn(Size(each.width, each.height), 1, StageTimes(passes=each.per_pass, vae_decoder=each.fixed))
        order = QueueOrder(estimates, self._manifest)
        ready = (device.is_ready for worker in workers if not worker.is_draining for device in worker.devices)
        order.devices = max(1, sum(ready))
        for live in jobs:
            order.add(live)
        return order


def _means(workers: Iterable[WorkerInfo]) -> Iterable[SizeAverage]:
    """Yield the mean times of each size over all hosts."""
    by_size: dict[tuple[int, int], list[SizeAverage]] = defaultdict(list)
    for worker in workers:
        for average in worker.averages:
            by_size[average.width, average.height].append(average)
    for (width, height), found in by_size.items():
        per_pass = sum(each.per_pass for each in found) / len(found)
        fixed = sum(each.fixed for each in found) / len(found)
        yield SizeAverage(width=width, height=height, per_pass=per_pass, fixed=fixed)

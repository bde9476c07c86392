"""Jobs of an API replica: they are rows of the fleet's database, and worker hosts generate their images.

Knows rows, events and tickets; neither HTTP nor engines. A replica holds nothing that another needs: each answers for
every job, and one that is killed loses only its connections.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from server.errors import JobNotFound, JobRefused, QueueFull, StoreUnavailable
from server.fleet.fleet_options import FleetOptions
from server.fleet.messaging.events import CancelJob, JobEnded
from server.fleet.replica.fleet_connection import FleetConnection
from server.fleet.replica.fleet_queue import FleetQueue
from server.fleet.replica.replica_store import ReplicaStore
from server.fleet.replica.watch import Watch
from server.fleet.replica.watched_events import WatchedEvents
from server.jobs.admission.admission import Admission, Limits
from server.jobs.admission.rate import Rate
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.follower import Progress
from server.jobs.job import Job, StoredImage
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.service import JobEvent, JobService, ServiceStatus
from server.jobs.storage.fleet.client_hash import client_hash
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.jobs.storage.history import HistoryPage
from server.jobs.storage.images.image_store import ImageStore
from server.worker.packed_image import PackedImage

log = logging.getLogger(__name__)

T = TypeVar("T")

SHUTDOWN_SECONDS = 2.0  # for the cancellations of clients that were disconnected, and again for the broker


class FleetJobs(JobService):
    """All jobs of a fleet.

    Args:
        loras: names that requests may ask for even while no host has them.
        images: where the bytes of images are; None for the database.

    Raises:
        InvalidBroker: the broker's URL cannot be used.
    """

    def __init__(
        self,
        store: FleetStore,
        manifest: Manifest,
        options: FleetOptions,
        limits: Limits | None = None,
        loras: tuple[str, ...] = (),
        images: ImageStore | None = None,
    ) -> None:
        self.manifest, self.is_leaving, self.metrics = manifest, False, Metrics()
        self._store, self._limits, self._own_loras = store, limits or Limits(), loras
        self._calls = ReplicaStore(store, self._limits.history, images)
        self._fleet = FleetConnection(store, options, self.metrics, lambda event: self._watch.on_event(event))
        self._queue = FleetQueue(self._calls, store, manifest, lambda: self._fleet.view)
        self._watch = Watch(self._calls, store, self._queue, manifest)
        self._events = WatchedEvents(
            self._watch,
            lambda job_id, index: self._calls.patient(partial(self._calls.image, job_id, index)),
            lambda job_id: self._calls.patient(partial(self._calls.call, store.get, job_id)),
        )
        self._admission = Admission(self._limits)
        self._watching: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._drain_started: float | None = None  # by the event loop's clock

    @property
    def loras(self) -> tuple[str, ...]:
        found = {lora for worker in self._workers() for lora in worker.loras}
        return (*self._own_loras, *sorted(found.difference(self._own_loras)))

    @property
    def status(self) -> ServiceStatus:
        if self.is_leaving:
            return "draining"
        return "ok" if self.is_ready else "store_unavailable"

    @property
    def is_ready(self) -> bool:
        """True if the database answers: jobs are accepted even while there are no hosts, which may come for them."""
        return self._fleet.is_database_up

    @property
    def last_failure(self) -> str | None:
        return self._calls.last_failure

    def devices(self) -> list[DeviceStatus]:
        return [replace(device, host=worker.host) for worker in self.workers() for device in worker.devices]

    def workers(self) -> list[WorkerInfo]:
        return list(self._fleet.view.workers)

    def plan_ids(self) -> list[str]:
        return list(dict.fromkeys([self.manifest.plan_id, *(worker.plan_id for worker in self._workers())]))

    async def start(self) -> None:
        """Begin to listen for events and to watch over the fleet. Raises StoreUnavailable."""
        await self._fleet.start()
        self._calls.start()
        self._watching = asyncio.create_task(self._watch.run())

    def leave(self) -> None:
        self.is_leaving = True

    def drain(self) -> None:
        self.is_leaving = True
        if self._drain_started is None:
            self._drain_started = asyncio.get_running_loop().time()

    async def stop(self, grace: float) -> None:
        """Cancel the jobs of disconnected clients, and leave the fleet, which goes on with all other jobs.

        Args:
            grace: seconds since `drain`; at least SHUTDOWN_SECONDS from now.
        """
        self.drain()
        assert self._drain_started is not None
        left = self._drain_started + grace - asyncio.get_running_loop().time()
        if self._background:
            await asyncio.wait(self._background, timeout=max(left, SHUTDOWN_SECONDS))
        if self._watching is not None:
            self._watching.cancel()
        await self._fleet.close(SHUTDOWN_SECONDS)
        self._calls.close()
        await self._calls.wait_closed()

    def fail_connected(self, reason: str) -> None:
        """Do nothing: hosts that cannot start a worker leave the jobs to other hosts."""

    async def hit(self, client: str, rate: Rate) -> float:
        return await self._calls.call(self._store.rates.hit, client_hash(client), rate.amount, rate.seconds)

    async def submit(self, job: Job, init_image: PackedImage | None = None) -> Job:
        job = replace(job, client=client_hash(job.client))
        if job.idempotency_key is not None and (known := await self._calls.call(self._store.find_by_key, job)):
            return known
        try:
            await self._admit(job, init_image)
            # shielded: the ticket of a job that is in the database must go, even if the client disconnects meanwhile
            return await asyncio.shield(self._keep(self._add(job, init_image)))
        except JobRefused as refusal:
            self.metrics.job_refused(refusal.code)
            raise

    async def _admit(self, job: Job, init_image: PackedImage | None) -> None:
        """Refuse a job for all reasons but the bound of the queue, which the database keeps."""
        self._admission.check_memory()
        if init_image is not None or job.deadline is not None:
            await self._queue.refresh()
            size = 0 if init_image is None else init_image.unpacked_bytes
            self._admission.check_estimates(LiveJob(job, init_image_bytes=size), self._queue.order)

    async def _add(self, job: Job, init_image: PackedImage | None) -> Job:
        add = partial(self._store.add, job, init_image, self._limits.queue)
        try:
            try:
                stored = await self._calls.call(add)
            except StoreUnavailable:  # if a connection was lost at the commit, the job may be there, and is then found
                stored = await self._calls.call(add)
        except QueueFull as refusal:
            await self._queue.refresh()
            refusal.retry_after = self._admission.soon(self._queue.order)
            raise
        if stored.id == job.id:
            self.metrics.job_accepted(stored)
            log.info("%s accepted", job.id, extra={"job": job.id, "api": job.api, "images": job.image_count})
            self._fleet.send_ticket(stored)
            self._queue.add(stored, 0 if init_image is None else init_image.unpacked_bytes)
        return stored

    async def get(self, job_id: str) -> Job | None:
        return await self._calls.call(self._store.get, job_id)

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        return await self._events.image(job_id, index)

    async def metadata(self, job_id: str) -> list[ImageMetadata]:
        return await self._calls.call(self._store.metadata, job_id)

    async def history(self, limit: int, before: int | None, owner: str | None) -> HistoryPage:
        return await self._calls.call(self._store.history, limit, before, owner)

    async def find(self, ids: Sequence[str]) -> HistoryPage:
        return await self._calls.call(self._store.find, ids)

    async def delete(self, job_id: str) -> bool:
        is_deleted = await self._calls.delete(job_id)
        self._events.forget_images(job_id)
        return is_deleted

    async def cancel(self, job_id: str) -> bool:
        if self._watch.has_ended(job_id):
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._keep(self._cancel_surely(job_id, answer))
        return await answer

    async def _cancel_surely(self, job_id: str, answer: "asyncio.Future[bool]") -> None:
        """Cancel a job; if the store is away, tell the caller, and go on: it may not be there to ask again."""
        try:
            is_cancelled = await self._cancel(job_id)
        except StoreUnavailable as error:
            if not answer.done():
                answer.set_exception(error)
            try:
                await self._calls.patient(partial(self._cancel, job_id))
            except StoreUnavailable as last_error:
                log.error("%s is not cancelled: %s", job_id, last_error)
        else:
            if not answer.done():
                answer.set_result(is_cancelled)

    async def _cancel(self, job_id: str) -> bool:
        if not await self._calls.call(self._store.cancel, job_id):
            return False
        self._fleet.publish(CancelJob(job_id))
        self._fleet.publish(JobEnded(job_id))
        self._watch.wake(job_id)
        self._queue.remove(job_id)
        if (job := await self._calls.call(self._store.get, job_id)) is not None:
            self.metrics.job_ended(job)
        return True

    async def unfinished(self, client: str, api: str) -> list[Job]:
        name = client_hash(client)
        jobs = await self._calls.call(self._store.unfinished)
        return [job for job in jobs if job.client == name and job.api == api]

    async def progress(self, job: Job) -> Progress:
        return await self._watch.progress(job)

    async def wait(self, job: Job) -> tuple[Job, list[StoredImage]]:
        if not job.state.is_final:
            await self._watch.wait(job)
        images = await self._calls.patient(partial(self._calls.images, job.id))
        ended = await self._calls.patient(partial(self._calls.call, self._store.get, job.id))
        if ended is None:
            raise JobNotFound(f"there is no job {job.id}, or it was deleted")
        return ended, images

    def follow(self, job: Job, received: Collection[int] = ()) -> AsyncGenerator[JobEvent]:
        return self._events.follow(job, received)

    def _workers(self) -> list[WorkerInfo]:
        """Return the hosts that generate images of this replica's model."""
        return [worker for worker in self.workers() if worker.model == self.manifest.model.name]

    def _keep(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run what is finished even if its caller is gone."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # was raised where the caller still waits; asyncio logs those that nobody looked at

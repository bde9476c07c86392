"""Jobs of the workers of this machine: submission, queries, events and the end of the server.

Knows jobs; neither HTTP nor how workers get them.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from server.errors import JobNotFound, JobRefused, StoreUnavailable, WorkerUnavailable
from server.jobs.admission.admission import Admission, Limits
from server.jobs.admission.rate import Rate, RateLimiter
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.devices.worker_queue import WorkerQueue
from server.jobs.follower import Progress
from server.jobs.job import Job, JobState, StoredImage
from server.jobs.job_events import LiveJobEvents
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.recovery import recover
from server.jobs.service import JobEvent, JobService, ServiceStatus
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.history import HistoryPage
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.images.archive_writer import ArchiveWriter
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.store import JobStore
from server.jobs.tracker import JobTracker
from server.worker.packed_image import PackedImage

log = logging.getLogger(__name__)

SHUTDOWN_STORE_SECONDS = 2.0  # minimum for the store at shutdown, even after the grace period
POLL_SECONDS = 0.02  # between two checks for unfinished jobs at shutdown


class EmbeddedJobs(JobService):
    """All jobs of one server with workers of its own.

    Attributes:
        worker_queue: sends the jobs to a worker; `server.serving` connects it.
    """

    def __init__(
        self,
        store: JobStore,
        manifest: Manifest,
        limits: Limits | None = None,
        archive: Archive | None = None,
        loras: tuple[str, ...] = (),
        images: ImageStore | None = None,
    ) -> None:
        limits = limits or Limits()
        self.manifest, self._loras = manifest, loras
        self.metrics = Metrics()
        self._store, self._async_store = store, AsyncStore(store, limits.history, images)
        self._archive = ArchiveWriter(archive) if archive else None
        self._tracker = JobTracker(self._async_store, manifest, self.metrics, self._archive)
        self.worker_queue = WorkerQueue(self._tracker, self.metrics)
        self._events = LiveJobEvents(self._tracker, self._async_store)
        self._admission = Admission(limits)
        self._admitting: Counter[str] = Counter()  # admitted jobs that are not in the store yet, by client
        self._admitting_bytes = 0  # of their init images
        self._limiters: dict[Rate, RateLimiter] = {}
        self._drain_started: float | None = None  # by the event loop's clock
        self.is_leaving = False

    async def start(self) -> None:
        self._async_store.start()
        if self._archive is not None:
            self._archive.start()
        await recover(self._async_store, self._tracker, self.worker_queue)

    def leave(self) -> None:
        self.is_leaving = True

    def drain(self) -> None:
        self.is_leaving = True
        if self._drain_started is None:
            self._drain_started = asyncio.get_running_loop().time()

    async def stop(self, grace: float) -> None:
        """Wait until no client waits for a job, then for the store.

        Args:
            grace: seconds since `drain` for the jobs; the store has at least SHUTDOWN_STORE_SECONDS from now.
        """
        self.drain()
        assert self._drain_started is not None
        until = max(self._drain_started + grace, asyncio.get_running_loop().time() + SHUTDOWN_STORE_SECONDS)
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout_at(until):
                while any(not live.job.durable for live in self._tracker.unfinished):
                    await asyncio.sleep(POLL_SECONDS)
                for live in self._tracker.unfinished:
                    if live.job.state is JobState.RUNNING:  # this end is not the job's fault
                        self._async_store.write_later(partial(self._store.requeue, live.job.id, refund_attempt=True))
                await self._async_store.flush()
        self.worker_queue.stop()
        if self._store.database.is_in_memory and self._tracker.unfinished:
            log.warning("%d unfinished jobs are lost, since there is no --database", len(self._tracker.unfinished))
        self._async_store.close()
        await self._async_store.wait_closed()
        if self._archive is not None:
            await asyncio.to_thread(self._archive.close, SHUTDOWN_STORE_SECONDS)

    def fail_connected(self, reason: str) -> None:
        """Fail the jobs whose clients wait, since no worker starts. Durable jobs stay for the next server."""
        for live in list(self._tracker.unfinished):
            if not live.job.durable:
                self._tracker.fail(live, "worker_unavailable", f"No worker can be started: {reason}")

    @property
    def is_ready(self) -> bool:
        return self.worker_queue.is_ready

    @property
    def last_failure(self) -> str | None:
        return self.worker_queue.last_failure

    @property
    def status(self) -> ServiceStatus:
        if self.worker_queue.is_hopeless:
            return "failing"
        if self.is_leaving:
            return "draining"
        return "ok" if self.is_ready else "starting"

    def plan_ids(self) -> list[str]:
        return [self.manifest.plan_id]

    @property
    def loras(self) -> tuple[str, ...]:
        return self._loras

    def devices(self) -> list[DeviceStatus]:
        return self.worker_queue.devices()

    async def hit(self, client: str, rate: Rate) -> float:
        if rate not in self._limiters:
            self._limiters[rate] = RateLimiter(rate)
        return self._limiters[rate].hit(client)

    async def submit(self, job: Job, init_image: PackedImage | None = None) -> Job:
        known = None
        if job.idempotency_key is not None and (known := await self._async_store.call(self._store.find_by_key, job)):
            live = self._tracker.get(known.id)
            if live is None or live.job.error is None or not live.job.error.is_transient:
                return known
        size = 0 if init_image is None else init_image.unpacked_bytes
        submitted = LiveJob(job, init_image=init_image, init_image_bytes=size)
        try:
            self._admit(submitted)
        except JobRefused as refusal:
            self.metrics.job_refused(refusal.code)
            raise
        self._admitting[job.client] += 1
        self._admitting_bytes += size
        # shielded: a job that is in the store must be queued, even if the client disconnects meanwhile
        return await asyncio.shield(self._add(submitted, has_failed_before=known is not None))

    def _admit(self, live: LiveJob) -> None:
        if self.worker_queue.is_hopeless:
            raise WorkerUnavailable("No worker can be started; the server's log says why.", 30.0)
        self._admission.check(live, self._tracker.unfinished, self._admitting, self._admitting_bytes)

    async def _add(self, live: LiveJob, *, has_failed_before: bool) -> Job:
        """Store an admitted job. `has_failed_before`: its key is free once that failure is in the store."""
        job = live.job
        try:
            if has_failed_before:
                await self._async_store.flush()
            stored = await self._async_store.add(job, live.init_image)
        finally:
            self._admitting_bytes -= live.init_image_bytes
            self._admitting[job.client] -= 1
            self._admitting += Counter()  # drops those at 0
        if stored.id == job.id:
            self.metrics.job_accepted(job)
            log.info("%s accepted", job.id, extra={"job": job.id, "api": job.api, "images": job.image_count})
            live.job = stored
            self._tracker.add(live)
            self.worker_queue.send_pending()
        return stored

    async def get(self, job_id: str) -> Job | None:
        live = self._tracker.get(job_id)
        return live.job if live is not None else await self._async_store.call(self._store.get, job_id)

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        return await self._events.image(job_id, index)

    async def metadata(self, job_id: str) -> list[ImageMetadata]:
        live = self._tracker.get(job_id)
        if live is None:
            return await self._async_store.call(self._store.metadata, job_id)
        return [image.metadata for image in live.finished_images()]

    async def history(self, limit: int, before: int | None, owner: str | None) -> HistoryPage:
        return await self._page(partial(self._store.history, limit, before, owner))

    async def find(self, ids: Sequence[str]) -> HistoryPage:
        return await self._page(partial(self._store.find, ids))

    async def _page(self, read: Callable[[], HistoryPage]) -> HistoryPage:
        """Return a page as the store has it, with what memory knows better."""
        page = await self._async_store.call_in_thread(read)
        if any(not job.state.is_final and self._tracker.get(job.id) is None for job in page.jobs):
            # they ended, and left the memory, after the page was read
            page = await self._async_store.call_in_thread(read)
        in_memory = [live for job in page.jobs if (live := self._tracker.get(job.id))]
        jobs = {job.id: job for job in page.jobs} | {live.job.id: live.job for live in in_memory}
        metadata = {live.job.id: [image.metadata for image in live.finished_images()] for live in in_memory}
        return replace(page, jobs=list(jobs.values()), metadata=page.metadata | metadata)

    async def delete(self, job_id: str) -> bool:
        if self._tracker.get(job_id) is not None:
            await self._async_store.flush()  # its end may not be stored yet
        is_deleted = await self._async_store.delete(job_id)
        self._events.forget_images(job_id)
        return is_deleted

    async def cancel(self, job_id: str) -> bool:
        live = self._tracker.get(job_id)
        return live is not None and self._tracker.cancel(live)

    async def unfinished(self, client: str, api: str) -> list[Job]:
        return [live.job for live in self._tracker.unfinished if live.job.client == client and live.job.api == api]

    async def progress(self, job: Job) -> Progress:
        return self._tracker.progress(job)

    async def wait(self, job: Job) -> tuple[Job, list[StoredImage]]:
        live = self._tracker.get(job.id)
        if live is not None:
            await live.ended.wait()
            await live.saved()
            return live.job, live.finished_images()
        images = await self._async_store.images(job.id)
        ended = await self._async_store.call(self._store.get, job.id)
        if ended is None:
            raise JobNotFound(f"there is no job {job.id}, or it was deleted")
        return ended, images

    def follow(self, job: Job, received: Collection[int] = ()) -> AsyncGenerator[JobEvent]:
        return self._events.follow(job, received)

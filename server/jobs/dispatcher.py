"""Jobs between those who ask and the worker that generates: admission, order, progress, replays, the end of each.

Knows jobs and messages; not HTTP, not processes. What it has accepted is in the store before anybody is told so, and
every accepted job ends once: done, failed with a name, or cancelled.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from server.jobs.admission import Admission, Limits, Refusal
from server.jobs.archive import Archive, Archivist
from server.jobs.async_store import AsyncStore
from server.jobs.estimates import Estimates
from server.jobs.job import Job, JobError, JobState, StoredImage
from server.jobs.live_job import JobEvent, LiveJob, PreviewReady, Progress
from server.jobs.metrics import Metrics
from server.jobs.store import JobStore, StoreUnavailable, size_of
from server.worker import messages
from server.worker.messages import FromWorker, ToWorker

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2  # of a job whose worker dies: the first, and one replay
MAX_BEGUN = 4  # attempts at a job over all servers, so that one that ends servers does so no more
HOPELESS_STARTS = 5  # of a worker in a row, after which nobody is kept waiting any more
STORE_LAST = 2.0  # seconds that the store has at the end, even if those of the images are over


class JobGone(Exception):
    """A job that was deleted, or forgotten, while somebody asked for it."""


class WorkerLink(Protocol):
    """The way to the worker: `server.worker.supervisor.Supervisor`, or a fake."""

    is_ready: bool
    failed_starts: int
    last_failure: str | None
    starts: int

    @property
    def pid(self) -> int | None:
        """The worker's, while there is one."""
        ...

    def send(self, message: ToWorker) -> None: ...

    def expect(self, is_busy: bool) -> None: ...


class Dispatcher:
    """Owns the jobs. Used from one event loop."""

    def __init__(
        self,
        store: JobStore,
        manifest: Manifest,
        limits: Limits | None = None,
        archive: Archive | None = None,
        loras: tuple[str, ...] = (),
    ) -> None:
        limits = limits or Limits()
        self.manifest = manifest
        self.loras = loras  # names that images may ask for
        self.metrics = Metrics(lambda: self.link.pid if self.link is not None else None)
        self.metrics.watch(self._gauges)
        self.link: WorkerLink | None = None
        self._store = store
        self._async_store = AsyncStore(store, limits.history, limits.history_bytes)
        self._estimates = Estimates(manifest)
        self._admission = Admission(limits, self._estimates)
        self._archivist = Archivist(archive) if archive else None
        self._live: dict[str, LiveJob] = {}
        self._unfinished: dict[str, LiveJob] = {}  # of those, in the order of acceptance
        self._suspects: deque[LiveJob] = deque()  # were being generated when a worker died: replayed one at a time
        self._admitting = 0
        self._device_memory: messages.DeviceMemory | None = None
        self._draining: float | None = None  # since when, by the event loop's clock

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    async def start(self) -> None:
        """Takes up what an earlier server has left unfinished."""
        self._async_store.start()
        if self._archivist is not None:
            self._archivist.start()
        found = []
        for job in await self._async_store.call(self._store.recover):
            images = await self._async_store.call(self._store.images, job.id)
            found.append(LiveJob(job, images={image.index: image for image in images}))
        for live in found:
            self._enter(live)
            if not live.missing():
                self._end(live, JobState.DONE)
            elif live.job.attempts >= MAX_BEGUN:
                self._fail(live, "worker_lost", f"Generating this was begun {live.job.attempts} times and never ended.")
            elif live.job.attempts:  # it may be what ended that server
                self._suspects.append(live)
        self._feed()

    def drain(self) -> None:
        """Accepts nothing more."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().time()

    async def stop(self, grace: float) -> None:
        """Waits for who is connected, until `grace` seconds after the beginning of the end, and for the store."""
        self.drain()
        assert self._draining is not None
        last = asyncio.get_running_loop().time() + STORE_LAST
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout_at(max(self._draining + grace, last)):
                while any(not live.job.durable for live in self._unfinished.values()):
                    await asyncio.sleep(0.02)
                for live in self._unfinished.values():
                    if live.is_begun:  # the next server begins it anew, and it is not to blame for that
                        self._async_store.later(partial(self._store.requeue, live.job.id, forgive=True))
                await self._async_store.written()
        self._async_store.close()
        if self._archivist is not None:
            await asyncio.to_thread(self._archivist.close, STORE_LAST)

    def give_up(self, reason: str) -> None:
        """There will be no worker: who is connected is told; durable jobs are the next server's."""
        for live in list(self._unfinished.values()):
            if not live.job.durable:
                self._fail(live, "worker_unavailable", f"No worker can be started: {reason}")

    async def accept(self, job: Job, previews: int = 0) -> Job:
        """Takes a job, or finds the one that the same idempotency key has made.

        Raises:
            Refusal: the queue is full, the deadline cannot be met, or there is no worker.
            IdempotencyMismatch, StoreUnavailable: as the store says.
        """
        known = None
        if job.idempotency_key is not None and (known := await self._async_store.call(self._store.known, job)):
            live = self._live.get(known.id)
            if live is None or live.job.error is None or not live.job.error.is_transient:
                return known
        try:
            self._admit(job)
        except Refusal as refusal:
            self.metrics.refused(refusal.code)
            raise
        self._admitting += 1
        # to its end even if whoever asked is gone meanwhile: what is in the store has to be generated
        return await asyncio.shield(self._take(job, previews, known))

    async def _take(self, job: Job, previews: int, failed: Job | None) -> Job:
        """`failed`: had the same key."""
        try:
            if failed is not None:
                await self._async_store.written()  # then the key is free
            stored = await self._async_store.call(self._store.add, job)
        finally:
            self._admitting -= 1
        if stored.id == job.id:
            self.metrics.accepted(job)
            log.info("%s accepted", job.id, extra={"job": job.id, "api": job.api, "images": len(job.requests)})
            self._enter(LiveJob(stored, previews))
            self._feed()
        return stored

    async def get(self, job_id: str) -> Job | None:
        live = self._live.get(job_id)
        return live.job if live is not None else await self._async_store.call(self._store.get, job_id)

    async def image(self, job_id: str, index: int) -> StoredImage | None:
        live = self._live.get(job_id)
        if live is None:
            return await self._async_store.call(self._store.image, job_id, index)
        return live.images.get(index)

    async def metadata(self, job_id: str) -> list[ImageMetadata]:
        """Those of its images, without the images."""
        live = self._live.get(job_id)
        if live is None:
            return await self._async_store.call(self._store.metadata, job_id)
        return [image.metadata for image in live.finished_images()]

    async def history(self, limit: int, before: int | None, owner: str | None) -> list[Job]:
        """An owner's jobs, newest first; see `JobStore.history`."""
        found = await self._async_store.call(self._store.history, limit, before, owner)
        return [self._live[job.id].job if job.id in self._live else job for job in found]

    async def delete(self, job_id: str) -> bool:
        """Forgets a job that has ended, and its images."""
        if job_id in self._live:
            await self._async_store.written()  # its end is on its way to the store
        return await self._async_store.call(self._store.delete, job_id)

    def cancel(self, job_id: str) -> bool:
        """Ends a job that nobody wants any more; at the next step, if it is being generated."""
        live = self._live.get(job_id)
        if live is None or live.job.state.is_final:
            return False
        self._end(live, JobState.CANCELLED)
        return True

    def progress(self, job: Job) -> Progress:
        live = self._live.get(job.id)
        if live is None or live.job.state.is_final:
            return Progress(job.state, 0, 0.0, 0, 0)
        ahead = [other for other in self._unfinished.values() if other.job.sequence < job.sequence]
        eta = sum(map(self._estimates.remaining, [*ahead, live]))
        steps = sum(request.steps(self.manifest) for request in live.job.requests)
        return Progress(live.job.state, len(ahead), eta, sum(live.done.values()), steps)

    async def end(self, job: Job) -> tuple[Job, list[StoredImage]]:
        """The job when it has ended, with its images.

        Raises:
            JobGone: it was deleted.
        """
        live = self._live.get(job.id)
        if live is not None:
            await live.ended.wait()
            return live.job, live.finished_images()
        images = await self._async_store.call(self._store.images, job.id)
        ended = await self._async_store.call(self._store.get, job.id)
        if ended is None:
            raise JobGone
        return ended, images

    async def follow(self, job: Job) -> AsyncIterator[JobEvent]:
        """What happens to a job from now on; first what has happened, last, unless it was deleted, how it ended."""
        live = self._live.get(job.id)
        if live is None:
            with suppress(JobGone):
                ended, images = await self.end(job)
                for image in images:
                    yield image
                yield ended
            return
        events: asyncio.Queue[JobEvent] = asyncio.Queue()
        if not live.job.state.is_final:
            events.put_nowait(self.progress(live.job))
        for image in live.finished_images():
            events.put_nowait(image)
        if live.job.state.is_final:
            events.put_nowait(live.job)
        live.followers.add(events)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Job):
                    return
        finally:
            live.followers.discard(events)

    # what the worker says

    def hear(self, message: FromWorker) -> None:
        match message:
            case messages.Started(key):
                self._begun(key)
            case messages.Preview(key, done, data):
                if (found := self._find(key)) and found[1] not in found[0].images:
                    found[0].tell(PreviewReady(found[1], done, data))
            case messages.Heartbeat():
                self.metrics.passed(message)
                for key, done in message.done.items():
                    self._stepped(key, done)
            case messages.DeviceMemory():
                self._device_memory = message
            case messages.Switched(seconds):
                self.metrics.switched(seconds)
            case messages.Finished(key):
                if found := self._find(key):
                    self._generated(*found, message)
            case messages.Failed(key, code, text):
                if found := self._find(key):
                    self._fail(found[0], code, text)

    def worker_ready(self) -> None:
        self._feed()

    def worker_lost(self, reason: str) -> None:
        """Replays the jobs it was generating, one at a time, so that one that kills workers takes no other along."""
        assert self.link is not None
        hopeless = self.link.failed_starts >= HOPELESS_STARTS
        unfinished = list(self._unfinished.values())
        begun = [live for live in unfinished if live.is_begun]
        for live in unfinished:
            live.is_sent = live.is_begun = False
            live.done.clear()
            if live.job.state is JobState.RUNNING:
                live.job = replace(live.job, state=JobState.QUEUED)
                self._async_store.later(partial(self._store.requeue, live.job.id))
            if hopeless:
                self._fail(live, "worker_unavailable", f"No worker can be started: {reason}.")
            elif live in begun and live.job.attempts >= MAX_ATTEMPTS:
                self._fail(live, "worker_lost", f"The worker died twice while generating this: {reason}.")
        self._suspects = deque(live for live in dict.fromkeys([*begun, *self._suspects]) if not live.job.state.is_final)

    def _stepped(self, key: str, done: int) -> None:
        if found := self._find(key):
            live, index = found
            live.done[index] = done
            if live.followers:
                live.tell(self.progress(live.job))

    def _begun(self, key: str) -> None:
        found = self._find(key)
        if found is None or found[0].is_begun:
            return
        live = found[0]
        live.is_begun = True
        is_first, started = live.job.started is None, live.job.started or time.time()
        live.job = replace(live.job, state=JobState.RUNNING, attempts=live.job.attempts + 1, started=started)
        if is_first:
            self.metrics.begun(live.job)
        self._async_store.later(lambda: self._store.begin(live.job.id))

    def _generated(self, live: LiveJob, index: int, message: messages.Finished) -> None:
        metadata = message.metadata
        self._estimates.learn(metadata.size, metadata.forwards, metadata.seconds)
        image = StoredImage(index, live.job.format.media_type, message.data, metadata)
        live.images[index] = image
        self.metrics.generated(metadata)
        live.tell(image)
        kept = partial(self._async_store.kept, len(image.data))
        self._async_store.later(lambda: self._store.add_image(live.job.id, image), then=kept)
        if self._archivist is not None:
            self._archivist.keep(live.job, image)
        if not live.missing():
            self._end(live, JobState.DONE)

    # what becomes of jobs

    def _admit(self, job: Job) -> None:
        assert self.link is not None
        if self.is_draining:
            raise Refusal("server_shutting_down", "The server is shutting down; send the request again.", 1.0)
        if self.link.failed_starts >= HOPELESS_STARTS:
            raise Refusal("worker_unavailable", "No worker can be started; the server's log says why.", 30.0)
        self._admission.check(job, list(self._unfinished.values()), self._admitting)

    def _enter(self, live: LiveJob) -> None:
        job = live.job
        self._live[job.id] = self._unfinished[job.id] = live
        if job.deadline is not None:
            loop, left = asyncio.get_running_loop(), job.deadline - time.time()
            live.expiry = loop.call_later(max(left, 0.0), self._expire, live)

    def _expire(self, live: LiveJob) -> None:
        self._fail(live, "deadline_exceeded", "The deadline passed before the images were generated.")

    def _feed(self) -> None:
        """Sends the worker what it does not have yet: all that is queued, or after a death one suspect at a time."""
        if self.link is None or not self.link.is_ready:
            return
        while self._suspects and self._suspects[0].job.state.is_final:
            self._suspects.popleft()
        for live in list(self._suspects)[:1] or self._unfinished.values():
            if not live.is_sent:
                live.is_sent = True
                for index in live.missing():
                    request, image_format = live.job.requests[index], live.job.format
                    self.link.send(messages.Generate(_key(live.job, index), request, image_format, live.previews))
        self.link.expect(bool(self._unfinished))

    def _drop(self, live: LiveJob) -> None:
        if self.link is not None and live.is_sent:
            for index in live.missing():
                self.link.send(messages.Cancel(_key(live.job, index)))

    def _fail(self, live: LiveJob, code: str, message: str) -> None:
        if not live.job.state.is_final:
            self._end(live, JobState.FAILED, JobError(code, message))

    def _end(self, live: LiveJob, state: JobState, error: JobError | None = None) -> None:
        """Tells who follows at once; the job leaves memory when the store has taken its end."""
        job_id = live.job.id
        self._drop(live)
        now = time.time()
        live.job = replace(live.job, state=state, error=error, finished=now)
        del self._unfinished[job_id]
        self.metrics.ended(live.job)
        seconds, code = now - live.job.created, error.code if error else ""
        told = {"job": job_id, "state": state.value, "code": code, "seconds": round(seconds, 3)}
        log.info("%s %s in %.3f s", job_id, code or state.value, seconds, extra=told)
        if live.expiry is not None:
            live.expiry.cancel()
        live.tell(live.job)
        live.ended.set()

        def write() -> None:
            match state:
                case JobState.DONE:
                    self._store.finish(job_id)
                case JobState.CANCELLED:
                    self._store.cancel(job_id)
                case _:
                    assert error is not None
                    self._store.fail(job_id, error)

        def written() -> None:
            self._live.pop(job_id, None)
            self._async_store.kept(size_of(live.job))

        self._async_store.later(write, then=written)
        self._feed()

    def _find(self, key: str) -> tuple[LiveJob, int] | None:
        """The job and image that a message is about, unless the job has ended."""
        job_id, _, index = key.rpartition(":")
        live = self._live.get(job_id)
        return None if live is None or live.job.state.is_final else (live, int(index))

    def _gauges(self) -> dict[str, float]:
        link, unfinished = self.link, self._unfinished.values()
        running = sum(live.job.state is JobState.RUNNING for live in unfinished)
        return {
            "zimage_jobs_running": running,
            "zimage_jobs_waiting": len(unfinished) - running,
            "zimage_queue_estimated_seconds": sum(map(self._estimates.remaining, unfinished)),
            "zimage_store_writes_pending": self._async_store.pending,
            "zimage_worker_ready": float(link is not None and link.is_ready),
            "zimage_worker_starts_total": float(link.starts if link is not None else 0),
        } | self._device()

    def _device(self) -> dict[str, float]:
        memory = self._device_memory
        if memory is None:
            return {}
        return {"zimage_device_memory_used_bytes": memory.taken, "zimage_device_memory_total_bytes": memory.total}


def _key(job: Job, index: int) -> str:
    """What the worker calls an image."""
    return f"{job.id}:{index}"

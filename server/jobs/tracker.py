"""Unfinished jobs and every change of their state: in memory, in the store and for their followers.

Knows neither workers nor HTTP. A change is visible at once and reaches the store in the background. Every job ends
once: done, failed with an error, or cancelled.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol

from engine.plan.manifest import Manifest
from server.jobs.admission.estimates import Estimates
from server.jobs.admission.queue_order import QueueOrder
from server.jobs.clock import SYSTEM, Clock
from server.jobs.follower import ImageFinished, JobPreview, Progress
from server.jobs.job import Job, JobError, JobState, StoredImage
from server.jobs.job_traces import JobTraces
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.storage.images.archive_writer import ArchiveWriter
from server.worker.packed_image import PackedImage

log = logging.getLogger(__name__)


class JobStates(Protocol):
    """The states of jobs in a store; see `server.jobs.storage.store.JobStore`."""

    def start(self, id: str) -> bool: ...

    def requeue(self, id: str) -> bool: ...

    def fail(self, id: str, error: JobError) -> bool: ...

    def cancel(self, id: str) -> bool: ...


class TrackedStore(Protocol):
    """The store of jobs that are tracked: `server.jobs.storage.async_store.AsyncStore`, or one that only simulates."""

    @property
    def store(self) -> JobStates: ...

    @property
    def is_shared(self) -> bool:
        """True if other processes may change the jobs."""
        ...

    @property
    def is_in_memory(self) -> bool:
        """True if the jobs do not survive this process."""
        ...

    @property
    def pending_writes(self) -> int: ...

    async def init_image(self, id: str) -> PackedImage | None: ...

    def write_later(
        self, write: Callable[[], object], then: Callable[[], object] = ...
    ) -> "asyncio.Future[object]": ...

    def add_image(self, id: str, image: StoredImage) -> "asyncio.Future[object]": ...

    def finish(self, id: str, then: Callable[[], object] = ...) -> "asyncio.Future[object]": ...

    def end(
        self, id: str, write: Callable[[], object], then: Callable[[], object] = ...
    ) -> "asyncio.Future[object]": ...

    def give_up_images(self, id: str) -> None: ...


class JobTracker:
    """Jobs that have not ended, or whose end is not stored yet.

    Attributes:
        manifest: of the plans.
        clock: of the jobs.
        estimates: learned from the images that are added.
        unfinished: jobs that have not ended, in their order.
        traces: spans of the jobs.
        on_ended: called with each job that has ended.
        on_stored: called with a job once the store has its state, and with the index of an image once it has that.
    """

    def __init__(
        self,
        store: TrackedStore,
        manifest: Manifest,
        metrics: Metrics,
        archive: ArchiveWriter | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.manifest, self.clock, self.estimates = manifest, clock, Estimates(manifest)
        self.on_ended: Callable[[LiveJob], None] = lambda _: None
        self.on_stored: Callable[[Job, int | None], object] = lambda _, __: None
        self._store, self._metrics, self._archive = store, metrics, archive
        self.traces = JobTraces()
        self.unfinished = QueueOrder(self.estimates, manifest)
        self._live: dict[str, LiveJob] = {}
        metrics.add_gauges(self._gauges)

    def get(self, job_id: str) -> LiveJob | None:
        """Return a job that is still in memory."""
        return self._live.get(job_id)

    def in_memory(self) -> list[LiveJob]:
        """Return the jobs that have not ended, and those whose end is not stored yet."""
        return list(self._live.values())

    def add(self, live: LiveJob) -> None:
        """Track a job that is stored, and fail it at its deadline."""
        job = live.job
        self._live[job.id] = live
        self.unfinished.add(live)
        if job.deadline is not None:
            left = max(job.deadline - self.clock.time(), 0.0)
            live.deadline_timer = self.clock.call_later(left, partial(self._expire, live))

    async def stored_init_image(self, job_id: str) -> PackedImage | None:
        """Return the image that a job begins with, from the store; None if it is damaged."""
        return await self._store.init_image(job_id)

    def progress(self, job: Job) -> Progress:
        """Return the place of a job in the queue, its steps and the estimated time until its end."""
        live = self._live.get(job.id)
        if live is None or live.job.state.is_final:
            return Progress(job.state, 0, 0.0, 0, 0)
        position, eta = self.unfinished.place(live)
        steps = live.job.request.steps_to_run(self.manifest)
        done = steps * len(live.images) + sum(live.steps_done.values())
        return Progress(live.job.state, position, eta, done, steps * live.job.image_count)

    def record_attempt(self, live: LiveJob) -> None:
        """Set a job to running, since a worker has started to generate it, and count the attempt."""
        is_first, started = live.job.started is None, live.job.started or self._not_before(live.job)
        live.job = replace(live.job, state=JobState.RUNNING, attempts=live.job.attempts + 1, started=started)
        if is_first:
            self._metrics.job_started(live.job)
        self.traces.started(live.job)
        self._announce(self._store.write_later(partial(self._store.store.start, live.job.id)), live.job)

    def requeue(self, live: LiveJob) -> None:
        """Put a job whose worker died back into the queue. Its images so far stay."""
        if live.job.state is JobState.RUNNING:
            live.job = replace(live.job, state=JobState.QUEUED)
            self.traces.stopped(live.job, "the worker was lost")
            self._store.write_later(partial(self._store.store.requeue, live.job.id))

    def set_steps_done(self, steps: Iterable[tuple[LiveJob, int, int]]) -> None:
        """Record the steps that are done, as jobs with an image's index and its steps."""
        changed: dict[LiveJob, None] = {}
        for live, index, done in steps:
            if index not in live.images:
                live.steps_done[index] = done
                changed[live] = None
        self.unfinished.on_progress()
        for live in changed:
            if live.followers:
                live.notify_followers(self.progress(live.job))

    def show_preview(self, live: LiveJob, preview: JobPreview) -> None:
        """Send a preview to the followers, unless the image is finished. Previews are not stored."""
        if preview.index not in live.images:
            live.notify_followers(preview)

    def add_image(self, live: LiveJob, image: StoredImage) -> None:
        """Store a finished image. The job ends with its last one."""
        metadata = image.metadata
        self.estimates.learn(live.job.request.size(self.manifest), metadata.forwards, metadata.seconds)
        live.images[image.index] = image
        live.steps_done.pop(image.index, None)
        self.unfinished.on_image(live)
        self._metrics.image_finished(metadata)
        self.traces.image_finished(live.job, image)
        live.notify_followers(ImageFinished(image.index))
        self._announce(self._store.add_image(live.job.id, image), live.job, image.index)
        if self._archive is not None:
            live.saving.append(asyncio.wrap_future(self._archive.put(live.job, image)))
        if not live.missing():
            self.finish(live)

    def finish(self, live: LiveJob) -> None:
        """End a job that has all its images."""
        self._end(live, JobState.DONE)

    def cancel(self, live: LiveJob) -> bool:
        """End a job that is no longer wanted. False: it had ended."""
        return self._end(live, JobState.CANCELLED, partial(self._store.store.cancel, live.job.id))

    def fail(self, live: LiveJob, code: str, message: str) -> None:
        error = JobError(code, message)
        self._end(live, JobState.FAILED, partial(self._store.store.fail, live.job.id, error), error)

    def forget(self, live: LiveJob) -> None:
        """Stop with a job that is not this process's any more, without a write: another one has it, or has ended it."""
        if live.job.state.is_final:
            return
        live.job = replace(live.job, state=JobState.CANCELLED, finished=self._not_before(live.job))
        self._live.pop(live.job.id, None)
        self.traces.stopped(live.job, "the job was given up")
        self._store.give_up_images(live.job.id)
        self._leave_queue(live)
        self.on_ended(live)

    def _expire(self, live: LiveJob) -> None:
        self.fail(live, "deadline_exceeded", "The deadline passed before the images were generated.")

    def _end(
        self, live: LiveJob, state: JobState, write: Callable[[], object] | None = None, error: JobError | None = None
    ) -> bool:
        """End a job, unless it has ended. It stays in memory until the store has its end.

        Args:
            write: stores the end; None for that of a job with all its images.
        """
        if live.job.state.is_final:
            return False
        live.job = job = replace(live.job, state=state, error=error, finished=self._not_before(live.job))
        self._leave_queue(live)
        self.traces.ended(job)
        live.notify_followers(job)
        self._tell_places()
        forget = partial(self._live.pop, job.id, None)
        stored = self._store.end(job.id, write, forget) if write else self._store.finish(job.id, forget)
        self._announce(stored, job)
        if self._store.is_shared:  # another process may have ended it first
            stored.add_done_callback(lambda done: None if done.cancelled() or not done.result() else self._count(job))
        else:
            self._count(job)
        if not self._store.is_in_memory:
            live.saving.append(stored)
        self.on_ended(live)
        return True

    def _count(self, job: Job) -> None:
        """Count and log a job that this process has ended."""
        self._metrics.job_ended(job)
        _log_end(job)

    def _leave_queue(self, live: LiveJob) -> None:
        self.unfinished.remove(live)
        if live.deadline_timer is not None:
            live.deadline_timer.cancel()
        live.ended.set()

    def _announce(self, stored: "asyncio.Future[object]", job: Job, index: int | None = None) -> None:
        """Call `on_stored` when the store has a job's state, or its image at an index."""
        stored.add_done_callback(lambda future: None if future.cancelled() else self.on_stored(job, index))

    def _tell_places(self) -> None:
        """Tell the followers of waiting jobs their new places, since another job has ended."""
        for live in self.unfinished:
            if live.followers and live.job.state is JobState.QUEUED:
                live.notify_followers(self.progress(live.job))

    def _not_before(self, job: Job) -> float:
        """Return the time, but not before the job's acceptance and start, since the clock may have been set back."""
        return max(self.clock.time(), job.created, job.started or 0.0)

    def _gauges(self) -> dict[str, float]:
        running = sum(live.job.state is JobState.RUNNING for live in self.unfinished)
        return {
            "zimage_jobs_running": running,
            "zimage_jobs_waiting": len(self.unfinished) - running,
            "zimage_queue_estimated_seconds": self.unfinished.seconds,
            "zimage_store_writes_pending": self._store.pending_writes,
        }


def _log_end(job: Job) -> None:
    assert job.finished is not None
    seconds, code = job.finished - job.created, job.error.code if job.error else ""
    fields = {"job": job.id, "state": job.state.value, "code": code, "seconds": round(seconds, 3)}
    log.info("%s %s in %.3f s", job.id, code or job.state.value, seconds, extra=fields)

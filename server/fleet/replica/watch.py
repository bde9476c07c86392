"""Jobs that clients of an API replica wait for, or follow: what the broker's events and the database say about them.

Events make it fast, the database makes it true: since an event may be lost, the states of all watched jobs are read
every POLL_SECONDS. Knows followers; neither HTTP nor who generates the images.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from engine.plan.manifest import Manifest
from server.errors import StoreUnavailable
from server.fleet.messaging.events import Event, ImageStored, JobEnded, JobRunning, Preview, StepsDone
from server.fleet.replica.fleet_queue import FleetQueue
from server.jobs.follower import Change, Follower, ImageFinished, JobPreview, Progress
from server.jobs.job import Job, JobState
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import JobStatus

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two reads of all watched jobs
MAX_REMEMBERED = 4096  # jobs whose steps, or whose end, are remembered
END_SECONDS = 10.0  # for which an end is remembered; later the job may be queued again by `zimage-admin retry`


@dataclass(eq=False, slots=True)
class _WatchedJob:
    """A job with those that watch it.

    Attributes:
        images: indices of those that are stored.
        followers: with the indices of the images that each had before.
        end: the ended job; None while it has not ended, and if it was deleted.
    """

    job: Job
    state: JobState
    steps_done: int
    images: set[int] = field(default_factory=set)
    watchers: int = 0
    followers: dict[Follower, frozenset[int]] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    end: Job | None = None

    def notify(self, change: Change) -> None:
        for follower, received in self.followers.items():
            if not isinstance(change, ImageFinished) or change.index not in received:
                follower.put(change)


class Watch:
    """Watches jobs. Used from one event loop, in which `run` runs."""

    def __init__(self, calls: AsyncStore, store: FleetStore, queue: FleetQueue, manifest: Manifest) -> None:
        self._calls, self._store, self._queue, self._manifest = calls, store, queue, manifest
        self._jobs: dict[str, _WatchedJob] = {}
        self._due: set[str] = set()  # jobs whose states are to be read now
        self._is_due = asyncio.Event()
        self._steps: OrderedDict[str, int] = OrderedDict()  # that events told of, by job
        self._ended: OrderedDict[str, float] = OrderedDict()  # times of ends, by job

    def has_ended(self, job_id: str) -> bool:
        """Return True if a job has ended a moment ago."""
        return time.monotonic() - self._ended.get(job_id, -END_SECONDS) < END_SECONDS

    async def progress(self, job: Job) -> Progress:
        """Return the progress of a job."""
        if not job.state.is_final:
            await self._queue.refresh()
            self._queue.add(job)
        return self._progress(job, job.state, self._steps_done(job))

    async def wait(self, job: Job) -> None:
        """Wait until a job has ended, or was deleted."""
        with self._watching(job) as watched:
            await watched.ended.wait()

    @contextmanager
    def follow(self, job: Job, received: Collection[int]) -> Iterator[Follower]:
        """Yield a follower that gets the progress and the images so far, and then what happens.

        Args:
            received: indices of images that it has, and does not get.
        """
        follower = Follower()
        with self._watching(job) as watched:
            if not watched.state.is_final:
                follower.put(self._progress(watched.job, watched.state, watched.steps_done))
            for index in sorted(watched.images - set(received)):
                follower.put(ImageFinished(index))
            if watched.ended.is_set():
                follower.put(watched.end)
            watched.followers[follower] = frozenset(received)
            try:
                yield follower
            finally:
                del watched.followers[follower]

    def wake(self, job_id: str) -> None:
        """Read the state of a job now, if it is watched."""
        if job_id in self._jobs:
            self._due.add(job_id)
            self._is_due.set()

    def on_event(self, event: Event) -> None:
        """Take what the broker tells; it may be about jobs that nobody here watches."""
        match event:
            case StepsDone(job_id, steps_done):
                self._remember_steps(job_id, steps_done)
                self._on_steps(job_id, steps_done)
            case Preview(job_id, index, done, data):
                watched = self._jobs.get(job_id)
                if watched is not None and index not in watched.images and not watched.ended.is_set():
                    watched.notify(JobPreview(index, done, data))
            case JobRunning(job_id):
                self._steps.pop(job_id, None)
                self._ended.pop(job_id, None)
                self.wake(job_id)
            case ImageStored(job_id):
                self.wake(job_id)
            case JobEnded(job_id):
                self._queue.remove(job_id)
                self.wake(job_id)

    async def run(self) -> None:
        """Read the states of watched jobs until cancelled."""
        loop = asyncio.get_running_loop()
        next_poll = loop.time() + POLL_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_poll):
                    await self._is_due.wait()
            self._is_due.clear()
            wanted, self._due = self._due, set()
            try:
                if loop.time() >= next_poll:
                    wanted, next_poll = set(self._jobs), loop.time() + POLL_SECONDS
                    if any(watched.followers for watched in self._jobs.values()):
                        await self._queue.refresh()
                await self._read(wanted & self._jobs.keys())
            except StoreUnavailable as error:
                log.warning("%s; clients that wait are told later", error)
                self._due |= wanted
            except Exception:  # the next read may succeed, and nobody else tells the clients
                log.exception("the states of jobs cannot be read")
                self._due |= wanted

    @contextmanager
    def _watching(self, job: Job) -> Iterator[_WatchedJob]:
        watched = self._jobs.setdefault(job.id, _WatchedJob(job, job.state, self._steps_done(job)))
        watched.watchers += 1
        self.wake(job.id)  # it may have ended before
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._jobs[job.id]

    async def _read(self, ids: Collection[str]) -> None:
        if not ids:
            return
        states = await self._calls.call(self._store.states, list(ids))
        ended = [id for id in ids if id in states and states[id].state.is_final]
        ends = await asyncio.gather(*(self._calls.call(self._store.get, id) for id in ended))
        by_id = dict(zip(ended, ends, strict=True))
        for id in ids:
            if (watched := self._jobs.get(id)) is None or watched.ended.is_set():
                continue
            if (status := states.get(id)) is not None:
                self._update(watched, status)
            if status is None or id in by_id:
                self._end(watched, by_id.get(id))

    def _update(self, watched: _WatchedJob, status: JobStatus) -> None:
        """Tell the followers of a job what is new in the database."""
        for index in status.images:
            if index not in watched.images:
                watched.images.add(index)
                watched.notify(ImageFinished(index))
        if status.state.is_final:
            return
        is_requeued = watched.state is JobState.RUNNING and status.state is JobState.QUEUED
        watched.steps_done = status.steps_done if is_requeued else max(watched.steps_done, status.steps_done)
        watched.state = status.state
        self._tell_progress(watched)

    def _end(self, watched: _WatchedJob, end: Job | None) -> None:
        watched.end = end
        watched.ended.set()
        self._steps.pop(watched.job.id, None)
        self._queue.remove(watched.job.id)
        self._ended[watched.job.id] = time.monotonic()
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        watched.notify(end)

    def _on_steps(self, job_id: str, steps_done: int) -> None:
        watched = self._jobs.get(job_id)
        if watched is not None and not watched.ended.is_set():
            watched.state, watched.steps_done = JobState.RUNNING, max(watched.steps_done, steps_done)
            self._tell_progress(watched)

    def _tell_progress(self, watched: _WatchedJob) -> None:
        if watched.followers:
            watched.notify(self._progress(watched.job, watched.state, watched.steps_done))

    def _progress(self, job: Job, state: JobState, steps_done: int) -> Progress:
        if state.is_final:
            return Progress(state, 0, 0.0, 0, 0)
        position, eta = self._queue.place(job.id)
        steps = job.image_count * job.request.steps_to_run(self._manifest)
        return Progress(state, position, eta, min(steps_done, steps), steps)

    def _steps_done(self, job: Job) -> int:
        """Return the steps of a job that are over, as the database or an event last told."""
        return max(job.steps_done, self._steps.get(job.id, 0)) if job.state is JobState.RUNNING else job.steps_done

    def _remember_steps(self, job_id: str, steps_done: int) -> None:
        self._steps[job_id] = steps_done
        self._steps.move_to_end(job_id)
        if len(self._steps) > MAX_REMEMBERED:
            self._steps.popitem(last=False)

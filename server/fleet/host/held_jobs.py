"""The jobs that a worker host holds: claimed from the fleet, generated here, or given back to the queue.

Knows the fleet's store; neither tickets nor heartbeats. What becomes of a claimed job is the embedded core's matter:
`JobTracker` and `WorkerQueue`, over a store that writes only to jobs that this host holds.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from engine.errors import InvalidRequest
from engine.plan.manifest import Manifest
from engine.size import Size
from server.fleet.host.announcements import ProgressAnnouncer, announce_stored
from server.fleet.host.host_options import HostOptions, worker_info
from server.fleet.messaging.celery_app import default_queue
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import WorkWaits
from server.jobs.devices.worker_queue import WorkerQueue
from server.jobs.job import Job, JobState
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import Claimed, WorkerInfo
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import Retention
from server.jobs.tracker import JobTracker

log = logging.getLogger(__name__)


class HeldJobs:
    """Jobs of the fleet on this machine. Used from one event loop.

    Args:
        store: of the fleet; several threads use it.
        images: where the bytes of images are kept; None for the database.
        bus: tells API replicas what becomes of the jobs, and other hosts that some wait.

    Attributes:
        writes: stores what becomes of the jobs.
        worker_queue: sends the jobs to the devices, which the caller adds.
    """

    def __init__(
        self,
        store: FleetStore,
        manifest: Manifest,
        options: HostOptions,
        images: ImageStore | None,
        metrics: Metrics,
        bus: EventBus,
    ) -> None:
        self._store, self._manifest, self._options, self._bus = store, manifest, options, bus
        self.writes = AsyncStore(store.held_by(options.id), Retention(), images)
        self._tracker = JobTracker(self.writes, manifest, metrics)
        self._tracker.on_stored = partial(announce_stored, bus)
        self.worker_queue = WorkerQueue(self._tracker, metrics)

    def __len__(self) -> int:
        """Return the number of jobs that have not ended here."""
        return len(self._tracker.unfinished)

    @property
    def is_stored(self) -> bool:
        """True if all jobs have ended here, and the database has their ends."""
        return not self._tracker.in_memory()

    @property
    def room(self) -> int:
        """Number of images to claim: none while those that are finished cannot be stored."""
        return 0 if self.writes.refusal else self.worker_queue.room

    @property
    def steps(self) -> dict[str, int]:
        """Steps done so far, by job, also of those whose end is not stored yet."""
        return {live.job.id: self._tracker.progress(live.job).done for live in self._tracker.in_memory()}

    def info(self) -> WorkerInfo:
        """Return what the fleet knows about this host."""
        return worker_info(self._options, self._manifest, self.worker_queue.queues, self._tracker.estimates.averages)

    async def claim(self, images: int) -> list[LiveJob]:
        """Claim jobs with up to a number of images, and return those that begin here. Raises StoreUnavailable."""
        loaded = [(choice and choice.name, size) for choice, size in self.worker_queue.loaded()]
        began = time.time()
        claimed = await asyncio.to_thread(self._store.claim, self.info(), loaded, images, self._size)
        for each in claimed:
            self._tracker.traces.claimed(each.job, self._options.id, began)
        begun = [live for each in claimed if (live := self._begin(each))]
        self.worker_queue.send_pending()
        return begun

    def forget(self, job_id: str, reason: str) -> None:
        """Generate a job no longer, without a write, if it is here: another host has it, or it has ended elsewhere."""
        live = self._tracker.get(job_id)
        if live is not None and not live.job.state.is_final:
            log.info("%s is no longer generated here: %s", job_id, reason)
            self._tracker.forget(live)

    def give_back_all(self) -> None:
        """Put all jobs back into the queue, without charging an attempt."""
        self._give_back(list(self._tracker.unfinished))

    def give_back_waiting(self) -> None:
        """Put the jobs that no worker has begun back into the queue."""
        self._give_back([live for live in self._tracker.unfinished if live.job.state is JobState.QUEUED])

    def give_back_if_lost(self) -> None:
        """Put all jobs back if no device has a worker that starts, before `WorkerQueue` fails them."""
        queues = self.worker_queue.queues
        if len(self) and all(queue.link is not None and queue.link.failed_starts for queue in queues):
            log.error("no device of this host gets a worker that starts; %d jobs go back", len(self))
            self.give_back_all()

    def tell_others(self) -> None:
        """Tell other hosts that jobs wait which this one does not take."""
        self._bus.publish(WorkWaits(default_queue(self._options.fleet)))

    def _give_back(self, lives: Iterable[LiveJob]) -> None:
        for live in lives:
            release = partial(self._store.release, live.job.id, self._options.id, True)
            self._tracker.forget(live)
            self.writes.write_later(release, then=self.tell_others)

    def _begin(self, claimed: Claimed) -> LiveJob | None:
        """Track a claimed job. None: it has ended here, and its end is on the way to the store."""
        if (known := self._tracker.get(claimed.job.id)) is not None and known.job.state.is_final:
            return None
        # what was written of it while it was not held is lost, so it begins again from its row
        self.forget(claimed.job.id, "its lease had ended, and it was claimed again")
        left = claimed.seconds_left
        job = replace(claimed.job, deadline=None if left is None else time.time() + left)  # by the clock of this host
        live = LiveJob(job, images=dict(claimed.images), init_image=claimed.init_image)
        live.followers.add(ProgressAnnouncer(job.id, self._bus))
        self._tracker.add(live)
        if not live.missing():
            self._tracker.finish(live)
        elif job.attempts:
            self.worker_queue.add_suspects([live])
        return live

    def _size(self, job: Job) -> Size | None:
        """Return the size of a job's images; None if the plans of this host cannot generate it."""
        try:
            job.request.check(self._manifest, self._options.loras)
        except InvalidRequest:
            return None
        return job.request.size(self._manifest)

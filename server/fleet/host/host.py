"""A worker host: it claims jobs of the fleet for the devices of one machine, and holds them by leases.

Knows the fleet's store, its events and tickets; neither HTTP nor processes. What becomes of a claimed job is the
embedded core's matter: `JobTracker` and `WorkerQueue`, over a store that writes only to jobs that this host holds.
"""

import asyncio
import logging
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal

from celery import Celery

from engine.errors import InvalidRequest
from engine.plan.manifest import Manifest
from engine.size import Size
from server.errors import StoreUnavailable
from server.fleet.host.announcements import ProgressAnnouncer, announce_stored
from server.fleet.host.claims import Claims
from server.fleet.host.host_options import HostOptions, worker_info
from server.fleet.janitor import Findings, Janitor
from server.fleet.messaging.celery_app import send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import CancelJob, DrainWorker, Event, JobEnded, WorkWaits
from server.fleet.messaging.ticket_worker import TicketWorker
from server.fleet.metrics import FleetMetrics
from server.jobs.devices.worker_queue import WorkerQueue
from server.jobs.job import Job
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.expiry import LEASE_SECONDS
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import Claimed, WorkerInfo
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import Retention
from server.jobs.tracker import JobTracker

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = LEASE_SECONDS / 5
POLL_SECONDS = 0.02  # between two checks for unfinished jobs at the end
STORE_SECONDS = 5.0  # for the last writes, after the grace period
BROKER_SECONDS = 5.0  # to say goodbye to the broker


class WorkerHost:
    """Jobs of the fleet on this machine. Used from one event loop.

    Args:
        store: of the fleet; several threads use it.
        app: Celery application with the queues of `queues_of_host`.
        images: where the bytes of images are kept; None for the database.

    Attributes:
        worker_queue: sends the jobs to the devices, which the caller adds.
    """

    def __init__(
        self, store: FleetStore, manifest: Manifest, app: Celery, options: HostOptions, images: ImageStore | None = None
    ) -> None:
        self.metrics = Metrics()
        self._store, self._manifest, self._options = store, manifest, options
        self._async_store = AsyncStore(store.held_by(options.id), Retention(), images)
        self._tracker = JobTracker(self._async_store, manifest, self.metrics)
        self.worker_queue = WorkerQueue(self._tracker, self.metrics)
        self._claims = Claims(self._claim, self._room, self._on_waiting)
        self.worker_queue.on_room = self._on_room
        self._bus = EventBus(options.broker, options.fleet, "control", self._on_event)
        self._tracker.on_stored = partial(announce_stored, self._bus)
        self._tickets = TicketWorker(app, options.id, self._hold)
        self._takes_tickets = False
        self._fleet_metrics = FleetMetrics(self.metrics, self._bus)
        findings = Findings(self._send_ticket, lambda job: self._bus.publish(JobEnded(job.id)))
        self._janitor = Janitor(store, self._fleet_metrics, findings)
        self._celery = app
        self._queue_name = app.conf.task_default_queue
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurried = asyncio.Event()
        self._last_answer = 0.0  # of the database to a heartbeat, by the event loop's clock
        self._store_error: str | None = None  # of the last heartbeat
        self.metrics.add_gauges(self._gauges)

    async def start(self) -> None:
        """Join the fleet and begin to claim.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._store.register, self.info())
        self._last_answer = self._loop.time()
        self._async_store.start()
        self._bus.start()
        self._janitor.start()
        self._tasks = [asyncio.create_task(self._claims.run()), asyncio.create_task(self._beat())]

    @property
    def is_draining(self) -> bool:
        return not self._claims.is_open

    @property
    def is_ready(self) -> bool:
        """True if jobs are claimed: a device is ready, and the database answers."""
        if self._loop is None:
            return False
        answered = self._loop.time() - self._last_answer < LEASE_SECONDS
        return self.worker_queue.is_ready and answered and not self.is_draining

    @property
    def is_failing(self) -> bool:
        """True if starting a worker failed too often in a row on every device."""
        return self.worker_queue.is_hopeless

    @property
    def status(self) -> Literal["ok", "starting", "draining", "failing"]:
        if self.is_failing:
            return "failing"
        if self.is_draining:
            return "draining"
        return "ok" if self.is_ready else "starting"

    @property
    def last_failure(self) -> str | None:
        """Reason for what is wrong; None if nothing is."""
        if self.is_ready:
            return None
        return self._store_error or self.worker_queue.last_failure

    @property
    def jobs(self) -> int:
        """Jobs that have not ended here."""
        return len(self._tracker.unfinished)

    def drain(self) -> None:
        """Claim no more jobs, and finish those that are here."""
        if not self.is_draining:
            log.info("draining: %d jobs are finished, and no more are claimed", self.jobs)
            self._claims.close()
            self._tickets.pause()

    def hurry(self) -> None:
        """Do not wait for jobs any longer, once `stop` is called."""
        self._hurried.set()

    async def stop(self) -> None:
        """Leave the fleet: finish jobs within the grace period, and give the others back without an attempt."""
        self.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.grace):
                while self._tracker.in_memory() and not self._hurried.is_set():  # until their ends are stored
                    await asyncio.sleep(POLL_SECONDS)
        self._release_all()
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(STORE_SECONDS):
                with suppress(StoreUnavailable):  # such as images that their store does not take: the jobs go back
                    await self._async_store.flush()
                for task in self._tasks:
                    task.cancel()
                await asyncio.to_thread(self._store.forget, self._options.id)
        for task in self._tasks:
            task.cancel()
        self.worker_queue.stop()
        closing = (self._janitor.close, self._tickets.stop, self._bus.close)
        await asyncio.gather(*(asyncio.to_thread(close, BROKER_SECONDS) for close in closing))
        self._async_store.close()

    def _room(self) -> int:
        """Return the number of images to claim: none while those that are finished cannot be stored."""
        return 0 if self._async_store.refusal else self.worker_queue.room

    async def _claim(self, images: int) -> list[LiveJob]:
        """Claim jobs with up to a number of images, and return those that begin here."""
        loaded = [(choice and choice.name, size) for choice, size in self.worker_queue.loaded()]
        began = time.time()
        claimed = await asyncio.to_thread(self._store.claim, self.info(), loaded, images, self._size)
        for each in claimed:
            self._tracker.traces.claimed(each.job, self._options.id, began)
        begun = [live for each in claimed if (live := self._begin(each))]
        self.worker_queue.send_pending()
        return begun

    def _begin(self, claimed: Claimed) -> LiveJob | None:
        """Track a claimed job. None: it has ended here, and its end is on the way to the store."""
        if (known := self._tracker.get(claimed.job.id)) is not None and known.job.state.is_final:
            return None
        # what was written of it while it was not held is lost, so it begins again from its row
        self._forget(claimed.job.id, "its lease had ended, and it was claimed again")
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

    async def _beat(self) -> None:
        """Extend the leases, and learn which jobs are no longer held."""
        while True:
            try:
                await self._heartbeat()
                self._store_error = None
            except StoreUnavailable as error:
                self._store_error = str(error)
                log.error("no heartbeat: %s", error)
            except Exception:  # without heartbeats this host would lose every job that it claims
                log.exception("a heartbeat failed")
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _heartbeat(self) -> None:
        self._release_if_lost()
        steps = {live.job.id: self._tracker.progress(live.job).done for live in self._tracker.in_memory()}
        answer = await asyncio.to_thread(self._store.heartbeat, self.info(), steps)
        self._last_answer = asyncio.get_running_loop().time()
        for job_id in answer.ended:
            self._forget(job_id, "it has ended elsewhere, or another host has it")
        if answer.is_draining:
            self.drain()

    def _release_if_lost(self) -> None:
        """Give all jobs back if no device has a worker that starts, before `WorkerQueue` fails them."""
        queues = self.worker_queue.queues
        if self.jobs and all(queue.link is not None and queue.link.failed_starts for queue in queues):
            log.error("no device of this host gets a worker that starts; %d jobs go back", self.jobs)
            self._release_all()

    def _release_all(self) -> None:
        for live in list(self._tracker.unfinished):
            release = partial(self._store.release, live.job.id, self._options.id, True)
            self._tracker.forget(live)
            self._async_store.write_later(release, then=self._on_waiting)

    def _forget(self, job_id: str, reason: str) -> None:
        live = self._tracker.get(job_id)
        if live is not None and not live.job.state.is_final:
            log.info("%s is no longer generated here: %s", job_id, reason)
            self._tracker.forget(live)

    def info(self) -> WorkerInfo:
        """Return what the fleet knows about this host."""
        averages = self._tracker.estimates.averages
        info = worker_info(self._options, self._manifest, self.worker_queue.queues, averages)
        return replace(info, is_draining=self.is_draining)

    def _send_ticket(self, job: Job) -> bool:
        """Send the ticket of a requeued job, in the janitor's thread."""
        is_sent = send_ticket(self._celery, job)
        self._fleet_metrics.count_ticket(is_sent=is_sent)
        return is_sent

    def _hold(self, _: str) -> bool:
        """Hold a ticket, in a thread of Celery. Its job is not looked at: the one that comes next is claimed."""
        assert self._loop is not None
        holding = self._claims.hold()
        try:
            return asyncio.run_coroutine_threadsafe(holding, self._loop).result()
        except (CancelledError, RuntimeError):  # the event loop has ended
            holding.close()
            return False

    def _on_room(self) -> None:
        """Claim jobs; from the first worker that is ready, whose slots are known by then, also by tickets."""
        if not self._takes_tickets and self.worker_queue.is_ready:
            self._takes_tickets = True
            self._tickets.start(self.info().window)
        self._claims.wake()

    def _on_waiting(self) -> None:
        """Tell other hosts that jobs wait which this one has no room for."""
        self._bus.publish(WorkWaits(self._queue_name))

    def _on_event(self, event: Event) -> None:
        """Handle an event, in a thread of the bus."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the event loop has ended
            match event:
                case CancelJob(job):
                    self._loop.call_soon_threadsafe(self._forget, job, "it was cancelled")
                case DrainWorker(worker) if worker == self._options.id:
                    self._loop.call_soon_threadsafe(self.drain)
                case WorkWaits():
                    self._loop.call_soon_threadsafe(self._claims.wake)

    def _gauges(self) -> dict[str, float]:
        return {
            "zimage_host_takes_tickets": float(self._tickets.is_connected),
            "zimage_host_claims_by_ticket_total": self._claims.by_ticket,
            "zimage_host_claims_by_poll_total": self._claims.by_poll,
        }

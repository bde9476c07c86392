"""A worker host: it takes jobs of the fleet for the devices of one machine.

Knows what there is to start, to stop and to connect: claims, held jobs, heartbeats, tickets, events and the janitor.
Neither HTTP nor processes.
"""

import asyncio
import logging
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal

from celery import Celery

from engine.plan.manifest import Manifest
from server.errors import StoreUnavailable
from server.fleet.host.claims import Claims
from server.fleet.host.heartbeats import Heartbeats
from server.fleet.host.held_jobs import HeldJobs
from server.fleet.host.host_options import HostOptions
from server.fleet.janitor import Findings, Janitor
from server.fleet.messaging.celery_app import send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import CancelJob, DrainWorker, Event, JobEnded, WorkWaits
from server.fleet.messaging.ticket_worker import TicketWorker
from server.fleet.metrics import FleetMetrics
from server.jobs.job import Job
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.jobs.storage.images.image_store import ImageStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02  # between two checks for unfinished jobs at the end
STORE_SECONDS = 5.0  # for the last writes, after the grace period
BROKER_SECONDS = 5.0  # to say goodbye to the broker


class WorkerHost:
    """A machine of the fleet: it joins, takes jobs as long as it has room, and leaves. Used from one event loop.

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
        self._store, self._options, self._celery = store, options, app
        self._bus = EventBus(options.broker, options.fleet, "control", self._on_event)
        self._jobs = HeldJobs(store, manifest, options, images, self.metrics, self._bus)
        self.worker_queue = self._jobs.worker_queue
        self.worker_queue.on_room = self._on_room
        self._claims = Claims(
            self._claim, lambda: self._jobs.room, lambda: self.worker_queue.has_idle_device, self._jobs.tell_others
        )
        self._heartbeats = Heartbeats(store, self._jobs, self.drain)
        self._tickets = TicketWorker(app, options.id, self._hold)
        self._takes_tickets = False
        self._fleet_metrics = FleetMetrics(self.metrics, self._bus)
        findings = Findings(self._send_ticket, lambda job: self._bus.publish(JobEnded(job.id)))
        self._janitor = Janitor(store, self._fleet_metrics, findings)
        self._claiming: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurried = asyncio.Event()
        self.metrics.add_gauges(self._gauges)

    async def start(self) -> None:
        """Join the fleet and begin to claim.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        self._loop = asyncio.get_running_loop()
        await self._heartbeats.start()
        self._jobs.writes.start()
        self._bus.start()
        self._janitor.start()
        self._claiming = asyncio.create_task(self._claims.run())

    @property
    def is_draining(self) -> bool:
        return not self._claims.is_open

    @property
    def is_ready(self) -> bool:
        """True if jobs are claimed: a device is ready, and the database answers."""
        return self.worker_queue.is_ready and self._heartbeats.is_answered and not self.is_draining

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
        return self._heartbeats.failure or self.worker_queue.last_failure

    @property
    def jobs(self) -> int:
        """Jobs that have not ended here."""
        return len(self._jobs)

    def info(self) -> WorkerInfo:
        """Return what the fleet knows about this host."""
        return replace(self._jobs.info(), is_draining=self.is_draining)

    def drain(self) -> None:
        """Claim no more jobs, give back those that no worker has begun, and finish the others."""
        if not self.is_draining:
            self._claims.close()
            self._tickets.pause()
            self._jobs.give_back_waiting()
            if self._claiming is not None:  # it has joined the fleet
                self._jobs.writes.write_later(partial(self._store.drain, self._options.id))
            log.info("draining: %d jobs are finished, and no more are claimed", self.jobs)

    def hurry(self) -> None:
        """Do not wait for jobs any longer, once `stop` is called."""
        self._hurried.set()

    async def stop(self) -> None:
        """Leave the fleet: finish jobs within the grace period, and give the others back without an attempt."""
        self.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.grace):
                while not self._jobs.is_stored and not self._hurried.is_set():
                    await asyncio.sleep(POLL_SECONDS)
        self._jobs.give_back_all()
        with suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(STORE_SECONDS):
                await self._heartbeats.close()
                with suppress(StoreUnavailable):  # such as images that their store does not take: the jobs go back
                    await self._jobs.writes.flush()
                await asyncio.to_thread(self._store.forget, self._options.id)
        if self._claiming is not None:
            self._claiming.cancel()
        self.worker_queue.stop()
        closing = (self._janitor.close, self._tickets.stop, self._bus.close)
        await asyncio.gather(*(asyncio.to_thread(close, BROKER_SECONDS) for close in closing))
        self._jobs.writes.close()

    async def _claim(self, images: int) -> list[LiveJob]:
        """Claim jobs, and give back what comes when the host drains already."""
        begun = await self._jobs.claim(images)
        if self.is_draining:
            self._jobs.give_back_waiting()
        return begun

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

    def _on_event(self, event: Event) -> None:
        """Handle an event, in a thread of the bus."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the event loop has ended
            match event:
                case CancelJob(job):
                    self._loop.call_soon_threadsafe(self._jobs.forget, job, "it was cancelled")
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

"""The janitor requeues the jobs of lost worker hosts and ends late jobs. Every process of a fleet runs one.

Knows the fleet's store and a clock; what follows from its findings is the caller's matter. The store lets one janitor
work at a time.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.errors import StoreUnavailable
from server.fleet.fleet_view import FleetView
from server.fleet.metrics import FleetMetrics
from server.jobs.job import Job
from server.jobs.storage.fleet.worker_info import Expired, QueueLength, WorkerInfo

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds


class ExpiringStore(Protocol):
    """The part of `FleetStore` that a janitor needs."""

    def expire(self) -> Expired: ...
    def workers(self) -> list[WorkerInfo]: ...
    def queue(self) -> list[QueueLength]: ...


@dataclass(frozen=True, slots=True)
class Findings:
    """Handlers of a janitor's findings, called in its thread.

    Attributes:
        requeued: sends a ticket for a job; returns False if the broker takes none, and is not called again in that run,
            since hosts find jobs without tickets.
        ended: tells the clients of a job that it has ended.
    """

    requeued: Callable[[Job], bool]
    ended: Callable[[Job], object]


class Janitor:
    """Requeues or ends what is overdue, every EVERY seconds, in a thread.

    Args:
        has_view: True to read hosts and queue each time, for an API replica.

    Attributes:
        view: hosts and queue at the last run.
    """

    def __init__(
        self, store: ExpiringStore, metrics: FleetMetrics, findings: Findings, *, has_view: bool = False
    ) -> None:
        self._store, self._metrics, self._findings, self._has_view = store, metrics, findings, has_view
        self.view = FleetView()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)  # may hang with a database

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop; returns after about `timeout` seconds at most."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def run_once(self) -> None:
        """Do the work of one run. Raises StoreUnavailable."""
        self._handle(self._store.expire())
        if self._has_view:
            self.view = FleetView(tuple(self._store.workers()), tuple(self._store.queue()))

    def _handle(self, expired: Expired) -> None:
        for worker in expired.workers:
            log.warning("the worker host %s is gone", worker)
        for job in expired.requeued:
            log.warning("%s is queued again: its worker host was lost", job.id, extra={"job": job.id})
        for job in expired.ended:
            log.info("%s %s", job.id, job.error.code if job.error else job.state.value, extra={"job": job.id})
            self._metrics.job_ended(job)
            self._findings.ended(job)
        self._metrics.workers_lost.inc(len(expired.workers))
        self._metrics.leases_expired.inc(len(expired.requeued))
        for job in expired.requeued:
            if self._closed.is_set() or not self._findings.requeued(job):
                return

    def _run(self) -> None:
        while not self._closed.wait(EVERY * random.uniform(0.8, 1.2)):  # hundreds of processes should not coincide
            try:
                self.run_once()
                self._metrics.is_database_up = True
            except StoreUnavailable as error:
                self._metrics.is_database_up = False
                log.error("%s", error)
            except Exception:  # the next run may succeed, and nobody else does this
                log.exception("the janitor failed")

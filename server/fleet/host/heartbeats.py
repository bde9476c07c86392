"""Heartbeats of a worker host: they extend the leases of its jobs, and tell the fleet what the host can do.

Knows the fleet's store; not what the jobs are.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from server.errors import StoreUnavailable
from server.fleet.host.held_jobs import HeldJobs
from server.jobs.storage.fleet.expiry import LEASE_SECONDS
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import WorkerInfo

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = LEASE_SECONDS / 5
CHECK_SECONDS = 0.1  # between two looks at the devices; one that becomes ready is told at once


class Heartbeats:
    """Sends a heartbeat every HEARTBEAT_SECONDS, and as soon as a device becomes ready or is lost.

    Args:
        on_drained: called if the fleet wants this host to take no more jobs.

    Attributes:
        failure: of the last heartbeat; None if the database took it.
    """

    def __init__(self, store: FleetStore, jobs: HeldJobs, on_drained: Callable[[], object]) -> None:
        self._store, self._jobs, self._on_drained = store, jobs, on_drained
        self.failure: str | None = None
        self._answered: float | None = None  # when the database last did, by the monotonic clock
        self._told: object = None  # the news of the last heartbeat
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the host known, and begin. Raises StoreUnavailable."""
        info = self._jobs.info()
        self._told = _news(info)
        await asyncio.to_thread(self._store.register, info)
        self._answered = time.monotonic()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Send no more, and wait for the one that is on its way: it would make a host known that has left."""
        self._is_closing = True
        if self._task is not None:
            await self._task

    @property
    def is_answered(self) -> bool:
        """True if the leases have not ended, as far as this host knows."""
        return self._answered is not None and time.monotonic() - self._answered < LEASE_SECONDS

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                await self._send()
                self.failure = None
            except StoreUnavailable as error:
                self.failure = str(error)
                log.error("no heartbeat: %s", error)
            except Exception:  # without heartbeats this host would lose every job that it claims
                log.exception("a heartbeat failed")
            await self._wait()

    async def _send(self) -> None:
        """Extend the leases, and learn which jobs are no longer held."""
        self._jobs.give_back_if_lost()
        info = self._jobs.info()
        self._told = _news(info)
        answer = await asyncio.to_thread(self._store.heartbeat, info, self._jobs.steps)
        self._answered = time.monotonic()
        for job_id in answer.ended:
            self._jobs.forget(job_id, "it has ended elsewhere, or another host has it")
        if answer.is_draining:
            self._on_drained()

    async def _wait(self) -> None:
        """Wait until the next heartbeat is due."""
        due = time.monotonic() + HEARTBEAT_SECONDS
        while not self._is_closing and time.monotonic() < due and _news(self._jobs.info()) == self._told:
            await asyncio.sleep(CHECK_SECONDS)


def _news(info: WorkerInfo) -> object:
    """Return what the fleet should know at once: which devices are ready, and how much they take."""
    return info.window, [device.is_ready for device in info.devices]

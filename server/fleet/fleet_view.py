"""Snapshot of a fleet: its worker hosts and its queue, as the database had them a moment ago."""

from dataclasses import dataclass

from server.jobs.storage.fleet.worker_info import QueueLength, WorkerInfo


@dataclass(frozen=True, slots=True)
class FleetView:
    """Hosts and queue of a fleet, read together."""

    workers: tuple[WorkerInfo, ...] = ()
    queue: tuple[QueueLength, ...] = ()

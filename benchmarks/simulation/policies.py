"""The scheduler of a simulated device, and changes of the policies that make predictions miss. Knows no time."""

from collections.abc import Callable, Collection
from typing import TypeVar

from benchmarks.simulation.scenario import Change
from engine.plan.manifest import Manifest
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.fair_queue import ClientShares
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Scheduler
from server.worker.idle_measurement import window

AnyScheduler = TypeVar("AnyScheduler", bound=Scheduler)


class ArrivalOrder(ClientShares):
    """No shares: the image that was submitted first comes first, if each has a client of its own."""

    def end(self, sample: Sample) -> float:
        return sample.submitted_at


def new_scheduler(
    manifest: Manifest,
    slots: int,
    table: BatchTable,
    changes: Collection[Change],
    scheduler: Callable[[Manifest, int, BatchTable, LoraScheduler], AnyScheduler],
) -> AnyScheduler:
    """Return the engine's scheduler, with the changes that concern it. `scheduler`: its class."""
    loras = LoraScheduler(shares=ArrivalOrder()) if "fifo" in changes else LoraScheduler()
    return scheduler(manifest, slots, BatchTable() if "no-batch" in changes else table, loras)


def device_window(slots: int, table: BatchTable, changes: Collection[Change]) -> int:
    """Return the window that a worker tells its server."""
    return window(BatchTable() if "no-batch" in changes else table, slots)


def client_name(client: str, key: str, changes: Collection[Change]) -> str:
    """Return the client of a job: without shares, each job is one of its own."""
    return key if "fifo" in changes else client

"""The policies of a simulated device, and the changes of policies that make predictions miss. Knows no time.

"no-batch" lets no two images share a pass.

"fifo" lets no client, size or priority share time with another. A server sends jobs to its devices in the order of
acceptance, hosts of a fleet claim them in that order, and a device begins images in the order of their arrival there.
The rest stays as it is: passes are shared by images of one size, LoRAs take turns, and each job goes to the device on
which it ends first. So with several devices a job may begin before an earlier one that waits in the window of another.
"""

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from benchmarks.simulation.scenario import Change
from engine.plan.manifest import Manifest
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.fair_queue import ClientShares
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Scheduler
from server.jobs.admission.queue_order import QueueOrder
from server.jobs.live_job import LiveJob
from server.worker.idle_measurement import window

AnyScheduler = TypeVar("AnyScheduler", bound=Scheduler)


class AcceptanceOrder(QueueOrder):
    """Unfinished jobs of a server, the first accepted first."""

    def in_order(self) -> Iterator[LiveJob]:
        return iter(self)

    def seconds_until(self, live: LiveJob) -> float:
        return max(end for _, end in self._ends_on_devices([*self, live]))


class ArrivalOrder(LoraScheduler):
    """Samples of a device, the first submitted first, if their LoRA is active."""

    def __init__(self) -> None:
        super().__init__(shares=_ArrivalShares())

    def add(self, sample: Sample) -> None:
        sample.client = sample.key  # samples of one client would be sorted by their sizes
        super().add(sample)


class _ArrivalShares(ClientShares):
    def end(self, sample: Sample) -> float:
        return sample.submitted_at


def new_scheduler(
    manifest: Manifest,
    slots: int,
    table: BatchTable,
    changes: Collection[Change],
    scheduler: Callable[[Manifest, int, BatchTable, LoraScheduler], AnyScheduler],
) -> AnyScheduler:
    """Return the engine's scheduler with the changes that concern it.

    Args:
        scheduler: its class.
    """
    loras = ArrivalOrder() if "fifo" in changes else LoraScheduler()
    return scheduler(manifest, slots, BatchTable() if "no-batch" in changes else table, loras)


def device_window(slots: int, table: BatchTable, changes: Collection[Change]) -> int:
    """Return the window that a worker tells its server."""
    return window(BatchTable() if "no-batch" in changes else table, slots)

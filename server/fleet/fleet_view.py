"""Snapshot of a fleet: its worker hosts and its queue, as the database had them a moment ago."""

from dataclasses import dataclass

from server.jobs.storage.fleet.worker_info import QueueLength, WorkerInfo


@dataclass(frozen=True, slots=True)
class FleetView:
    """Hosts and queue of a fleet, read together."""

    workers: tuple[WorkerInfo, ...] = ()
    queue: tuple[QueueLength, ...] = ()

    def hosts_for(self, jobs: QueueLength) -> int:
        """Return the number of hosts with what some jobs need, whether their devices are ready or not.

        Sizes are left out: API replicas accept those of their own plans only.
        """
        return sum(_suits(worker, jobs) for worker in self.workers)


def _suits(worker: WorkerInfo, jobs: QueueLength) -> bool:
    return (
        not worker.is_draining
        and jobs.model in (None, worker.model)
        and jobs.plan_id in (None, worker.plan_id)
        and (jobs.lora is None or jobs.lora in worker.loras)
        and (worker.image_input or not jobs.image_input)
    )

"""Operations on a fleet: list its hosts, queue and dead jobs, drain a host, cancel, retry or drop a job.

Knows the store, and the broker if there is one; no command line. Without a broker everything works, a little later:
hosts learn from the database what they have to do.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import msgspec

from engine.errors import ZImageError
from server.fleet.fleet_view import FleetView
from server.fleet.messaging.celery_app import create_celery, send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import CancelJob, DrainWorker, JobEnded
from server.fleet.metrics import worker_state
from server.jobs.job import Job, JobState
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import WorkerInfo

POLL_SECONDS = 1.0  # between two looks at a host that drains
GONE_SECONDS = 10.0  # without a heartbeat, after which a host that drains counts as gone
MAX_NAMED = 5  # hosts in a message

Record = dict[str, Any]  # for JSON


class OperationRefused(ZImageError):
    """An operation that cannot be done."""


class FleetOperations:
    """A connection to a fleet. Every method may raise StoreUnavailable.

    Args:
        database, broker: URLs; without a broker, None.

    Raises:
        StoreUnavailable, InvalidBroker: from the constructor.
    """

    def __init__(self, database: str, broker: str | None, fleet: str) -> None:
        self._app = create_celery(broker, fleet) if broker else None
        self._bus = EventBus(broker, fleet) if broker else None
        self._store = FleetStore(database)
        if self._bus is not None:
            self._bus.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bus is not None:
            self._bus.close()
        self._store.database.close()

    def workers(self) -> list[Record]:
        """Return the hosts that the fleet has seen lately."""
        return [_worker(worker) for worker in self._store.workers()]

    def queue(self) -> list[Record]:
        """Return the unfinished jobs by priority and by what they need, with the number of hosts that can take them."""
        view = FleetView(tuple(self._store.workers()), tuple(self._store.queue()))
        return [asdict(jobs) | {"hosts": view.hosts_for(jobs)} for jobs in view.queue]

    def jobs(self, *, dead: bool) -> list[Record]:
        """Return the unfinished jobs in the order of their acceptance, or those that lost too many workers."""
        return [_job(job) for job in (self._store.dead() if dead else self._store.unfinished())]

    def drain(self, name: str) -> Record:
        """Have a host take no more jobs.

        Args:
            name: id of the host, the beginning of its id, or the name of its machine.

        Raises:
            OperationRefused: there is no such host, or there are several.
        """
        worker = self._find(name)
        if not self._store.drain(worker.id):
            raise OperationRefused(f"the worker host {worker.id} has just left")
        if self._bus is not None:
            self._bus.publish(DrainWorker(worker.id))
        return {"id": worker.id, "host": worker.host, "jobs": self._held(worker)}

    def wait_until_drained(self, worker_id: str, timeout: float, tell: Callable[[int], object]) -> int:
        """Wait until a host has no jobs or has left. `tell` is called with the number of its jobs when that changes.

        Returns:
            The number of its jobs: 0, or what a host had that stopped answering.

        Raises:
            OperationRefused: it has jobs after `timeout` seconds.
        """
        give_up, last = time.monotonic() + timeout, -1
        while worker := next((worker for worker in self._store.workers() if worker.id == worker_id), None):
            jobs = self._held(worker)
            if (worker.is_draining and not jobs) or worker.seconds_since_seen > GONE_SECONDS:
                return jobs
            if jobs != last:
                tell(jobs)
            last = jobs
            if time.monotonic() >= give_up:
                raise OperationRefused(f"{worker_id} still has {jobs} jobs after {timeout:g} s; it goes on draining")
            time.sleep(POLL_SECONDS)
        return 0

    def cancel(self, job_id: str) -> Record:
        """Cancel an unfinished job. Raises OperationRefused if it has ended."""
        if not self._store.cancel(job_id):
            raise self._refused(job_id, "only unfinished jobs can be cancelled")
        if self._bus is not None:
            self._bus.publish(CancelJob(job_id))
            self._bus.publish(JobEnded(job_id))
        return {"id": job_id, "state": JobState.CANCELLED.value}

    def retry(self, job_id: str) -> Record:
        """Queue a failed job again. Raises OperationRefused if it has not failed."""
        job = self._store.retry(job_id)
        if job is None:
            raise self._refused(job_id)
        return _job(job) | {"ticket": self._app is not None and send_ticket(self._app, job)}

    def drop(self, job_id: str) -> Record:
        """Delete a failed job. Raises OperationRefused if it has not failed."""
        if not self._store.drop(job_id):
            raise self._refused(job_id)
        return {"id": job_id, "state": "deleted"}

    def _held(self, worker: WorkerInfo) -> int:
        """Return the jobs of a host: those that it holds now, or those of its last heartbeat if they are more."""
        return max(self._store.held(worker.id), _jobs(worker))

    def _refused(self, job_id: str, rule: str = "only failed jobs can be retried or dropped") -> OperationRefused:
        job = self._store.get(job_id)
        state = "there is no such job" if job is None else f"it is {job.state.value}"
        return OperationRefused(f"{job_id}: {state}; {rule}")

    def _find(self, name: str) -> WorkerInfo:
        workers = self._store.workers()
        exact = [worker for worker in workers if worker.id == name]
        found = exact or [worker for worker in workers if worker.host == name or worker.id.startswith(name)]
        if len(found) == 1:
            return found[0]
        named = ", ".join(worker.id for worker in (found or workers)[:MAX_NAMED])
        count = f"{len(found)} worker hosts are" if found else "no worker host is"
        raise OperationRefused(f"{count} called {name!r}" + (f"; give the id of one, such as {named}" if named else ""))


def _worker(worker: WorkerInfo) -> Record:
    record: Record = msgspec.to_builtins(worker)
    del record["averages"]
    return record | {"state": worker_state(worker), "jobs": _jobs(worker)}


def _jobs(worker: WorkerInfo) -> int:
    return sum(device.jobs for device in worker.devices)


def _job(job: Job) -> Record:
    return {
        "id": job.id,
        "state": job.state.value,
        "priority": job.priority,
        "model": job.model,
        "plan_id": job.plan_id,
        "lora": job.request.lora,
        "images": job.image_count,
        "attempts": job.attempts,
        "worker": job.worker,
        "created": job.created,
        "deadline": job.deadline,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
    }

"""The store of a fleet: jobs that many API replicas add and many worker hosts claim, in PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence

from engine.size import Size
from server.jobs.job import Job
from server.jobs.storage.store import JobStore
from server.jobs.storage.worker_info import Claimed, Expired, HeartbeatAnswer, JobStatus, QueueLength, WorkerInfo
from server.worker.packed_image import PackedImage

LEASE_SECONDS = 10.0


class FleetStore(JobStore):
    """Signatures only, so that others can build on them; the methods follow."""

    def add(self, job: Job, init_image: PackedImage | None = None, queue_limit: int | None = None) -> Job:
        """Queue a job. Keeps the span from `created` to `deadline`, and sets both by the database's clock.

        Raises:
            QueueFull: with `taken` and `own`, the unfinished jobs of all clients and of this one; `retry_after` is for
                the caller to estimate.
            IdempotencyKeyReused, StoreUnavailable.
        """
        raise NotImplementedError

    def held_by(self, worker: str) -> JobStore:
        """Return the store as a host uses it (in its `AsyncStore`): writes change only jobs that it holds."""
        raise NotImplementedError

    def register(self, info: WorkerInfo) -> None:
        raise NotImplementedError

    def heartbeat(self, info: WorkerInfo, steps: Mapping[str, int]) -> HeartbeatAnswer:
        """Extend the leases of a host's jobs. `steps`: steps done, by job, of all jobs that the host holds."""
        raise NotImplementedError

    def workers(self) -> list[WorkerInfo]:
        raise NotImplementedError

    def drain(self, worker: str) -> bool:
        """Have a host take no more jobs. False: it is unknown."""
        raise NotImplementedError

    def forget(self, worker: str) -> bool:
        """Remove a host that is gone, and requeue its jobs. False: it is unknown."""
        raise NotImplementedError

    def claim(
        self,
        worker: WorkerInfo,
        loaded: Sequence[tuple[str | None, Size]],
        count: int,
        size_of: Callable[[Job], Size | None],
    ) -> list[Claimed]:
        """Claim the jobs that come next for a host, until they have `count` images (one job at least).

        Args:
            loaded: LoRA and size of what the host generates now; among a client's next jobs, those of the same LoRA and
                size come first.
            size_of: size of a job's images; None if the host's plans cannot generate it.
        """
        raise NotImplementedError

    def release(self, job: str, worker: str, refund_attempt: bool) -> bool:
        """Put a job of a host back into the queue for any host. False: the host does not hold it."""
        raise NotImplementedError

    def expire(self) -> Expired:
        """Requeue or end what is overdue; does nothing while another process does it."""
        raise NotImplementedError

    def states(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        raise NotImplementedError

    def queue(self) -> list[QueueLength]:
        raise NotImplementedError

    def hit(self, client: str, amount: int, seconds: int) -> float:
        """Count a request of a client that may send `amount` in `seconds`; return the seconds to wait, or 0."""
        raise NotImplementedError

    def dead(self) -> list[Job]:
        """Return the jobs that failed since they lost too many workers, newest first."""
        raise NotImplementedError

    def retry(self, id: str) -> Job | None:
        """Queue a failed job again, with new attempts and no deadline. None: it has not failed, or is unknown."""
        raise NotImplementedError

    def drop(self, id: str) -> bool:
        """Delete a failed job. False: it has not failed, or is unknown."""
        raise NotImplementedError

"""The store of a fleet: jobs that many API replicas add and many worker hosts claim, in PostgreSQL.

Knows rows, leases and the database's clock, which all times go by; neither messages nor the hosts' processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from server.errors import StoreUnavailable
from server.jobs.admission.queue_limit import check_queue
from server.jobs.job import Job, JobState
from server.jobs.storage.databases.database import Database, Lock, Row
from server.jobs.storage.fleet.client_hash import client_hash
from server.jobs.storage.fleet.expiry import LEASE_SECONDS, Expiry
from server.jobs.storage.fleet.host_store import HostStore
from server.jobs.storage.fleet.job_choice import JobChoice, Loaded, SizeOf, prune_shares, requeue
from server.jobs.storage.fleet.rates import SharedRates
from server.jobs.storage.fleet.worker_info import Claimed, Expired, HeartbeatAnswer, JobStatus, QueueLength, WorkerInfo
from server.jobs.storage.retention import Retention
from server.jobs.storage.rows import to_json
from server.jobs.storage.store import JobStore
from server.worker.packed_image import PackedImage

MAX_DEAD = 1000  # jobs that `dead` lists


class FleetStore(JobStore):
    """A job store that many processes share. For any number of threads.

    A job is queued until a host claims it; then it is held by that host, which extends its lease with heartbeats. A
    job whose lease has ended goes back into the queue.

    Args:
        database: URL of a PostgreSQL database; see `open_database`.
        timeout: seconds to wait for a connection or a lock.
        lease: seconds for which a host holds a job after its last heartbeat.

    Attributes:
        rates: of clients, counted by all replicas together.

    Raises:
        StoreUnavailable: see `open_database`.
    """

    def __init__(self, database: Database | str, timeout: float = 5.0, lease: float = LEASE_SECONDS) -> None:
        super().__init__(database, timeout)
        self._lease, self.rates = lease, SharedRates(self.database)
        if not self.database.is_shared:
            self.close()
            raise StoreUnavailable(f"a fleet keeps its jobs in PostgreSQL; got {database}, expected postgresql://...")

    def add(self, job: Job, init_image: PackedImage | None = None, queue_limit: int | None = None) -> Job:
        """Queue a job and return it with its `sequence`, or return the job with the same idempotency key or id.

        Args:
            job: its times become those of the database's clock; the span from `created` to `deadline` stays.
            init_image: the packed image that it begins with; it is deleted with the job.
            queue_limit: unfinished jobs that the fleet accepts; one client can have three quarters of them.

        Raises:
            QueueFull: with `taken` and `own`; its `retry_after` is 0, for the caller to estimate.
            IdempotencyKeyReused: the key is known with another fingerprint.
        """
        with self.database.transaction():
            if init_image is not None:
                # before the lock: other submissions must not wait for its bytes, which may come slowly
                if (known := self._known(job, queue_limit)) is not None:
                    return known
                self._add_init_image(job.id, init_image)
            self.database.lock(Lock.ADMISSION)
            if (known := self._known(job, queue_limit)) is not None:
                if known.id != job.id:
                    self.init_images.delete(job.id)
                return known
            now = self.database.now()
            deadline = None if job.deadline is None else now + job.deadline - job.created
            return self._insert(replace(job, created=now, deadline=deadline), None)

    def _known(self, job: Job, queue_limit: int | None) -> Job | None:
        """Return the job with the same idempotency key or id; None if there is none, and the queue has room."""
        known = self.find_by_key(job) or self.get(job.id)
        if known is None and queue_limit is not None:
            count = "SELECT count(*) AS taken, count(*) FILTER (WHERE client = ?) AS own FROM jobs"
            row = self.database.rows(f"{count} WHERE finished IS NULL", job.client)[0]
            check_queue(row["taken"], row["own"], queue_limit, lambda: 0.0)
        return known

    def held_by(self, worker: str) -> HostStore:
        """Return the store as a host uses it: its writes change only jobs that this host holds."""
        return HostStore(self.database, worker)

    def register(self, info: WorkerInfo) -> None:
        """Make a host known, so that it may claim jobs."""
        self.heartbeat(info, {})

    def heartbeat(self, info: WorkerInfo, steps: Mapping[str, int]) -> HeartbeatAnswer:
        """Extend the leases of a host's jobs.

        Args:
            steps: steps done so far, by job, of all jobs that the host believes to hold. The leases of others end, such
                as those of a claim whose answer was lost.
        """
        answer = self.database.rows(
            "WITH seen AS (INSERT INTO workers (id, info, seen) VALUES (?, ?, {now}) ON CONFLICT (id) DO UPDATE"
            " SET info = excluded.info, seen = excluded.seen RETURNING is_draining),"
            " held AS (UPDATE jobs SET lease = {now} + ?, steps_done = reported.steps"
            " FROM unnest(CAST(? AS text[]), CAST(? AS bigint[])) AS reported (id, steps)"
            " WHERE jobs.id = reported.id AND worker = ? AND finished IS NULL RETURNING jobs.id)"
            " SELECT (SELECT is_draining FROM seen) AS is_draining, ARRAY(SELECT id FROM held) AS held",
            info.id,
            to_json(info),
            self._lease,
            list(steps),
            list(steps.values()),
            info.id,
        )[0]
        held = set(answer["held"])
        return HeartbeatAnswer([id for id in steps if id not in held], bool(answer["is_draining"]))

    def workers(self) -> list[WorkerInfo]:
        """Return the hosts that were seen in the last minute."""
        rows = self.database.rows("SELECT info, is_draining, {now} - seen AS seconds FROM workers ORDER BY id")
        return [_worker_of_row(row) for row in rows]

    def drain(self, worker: str) -> bool:
        """Have a host take no more jobs; its next heartbeat tells it. False: it is unknown."""
        return self.database.execute("UPDATE workers SET is_draining = 1 WHERE id = ?", worker) == 1

    def held(self, worker: str) -> int:
        """Return the number of unfinished jobs that a host holds."""
        held = "SELECT count(*) AS held FROM jobs WHERE finished IS NULL AND worker = ?"
        count: int = self.database.rows(held, worker)[0]["held"]
        return count

    def forget(self, worker: str) -> bool:
        """Remove a host that is gone and end its leases; the janitor requeues its jobs. False: it is unknown.

        A host that is alive makes itself known again with its next heartbeat.
        """
        with self.database.transaction():
            is_known = self.database.execute("DELETE FROM workers WHERE id = ?", worker) == 1
            self.database.execute("UPDATE jobs SET lease = 0 WHERE worker = ? AND finished IS NULL", worker)
            return is_known

    def claim(self, worker: WorkerInfo, loaded: Loaded, count: int, size_of: SizeOf) -> list[Claimed]:
        """Claim the jobs that come next for a host, until their missing images are `count` or more.

        A host that drains, or is not known, gets none. A host may get a job that it held before and still has in its
        memory, if its lease had ended: what it has stored of that job is in `Claimed.images`.

        Args:
            loaded: LoRA and size of what the host generates now; of a client's next jobs, one of the same LoRA and size
                comes first.
            size_of: size of a job's images; None if the host's plans cannot generate it.
        """
        if count < 1:
            return []
        with self.database.transaction():
            self.database.lock(Lock.CLAIM)
            jobs = JobChoice(self.database, worker, self._lease, loaded, size_of).take(count)
        return [self._claimed(job, worker.id) for job in jobs]

    def _claimed(self, job: Job, worker: str) -> Claimed:
        """Return what a host needs of a job that it has just claimed. Without a lock, since images may be large."""
        images = {image.index: image for image in self.images(job.id)}
        init_image = None if job.request.edit is None else self.init_images.get(job.id)
        left = None if job.deadline is None else job.deadline - self.database.now()
        return Claimed(replace(job, worker=worker), images, init_image, left)

    def release(self, job: str, worker: str, refund_attempt: bool) -> bool:
        """Put a job of a host back into the queue, for any host. False: the host does not hold it.

        Args:
            refund_attempt: True if the host gives it up in order; False if one of its workers died.
        """
        with self.database.transaction():
            held = self.database.rows(
                "SELECT id FROM jobs WHERE id = ? AND worker = ? AND finished IS NULL FOR UPDATE", job, worker
            )
            if held:
                requeue(self.database, job, refund_attempt=refund_attempt, is_loss=False)
        return bool(held)

    def expire(self) -> Expired:
        """Requeue or end the jobs of lost hosts, and end those past their deadlines. Call it every 2 s, anywhere.

        Does nothing while another process does it.
        """
        with self.database.transaction():
            if not self.database.try_lock(Lock.JANITOR):
                return Expired([], [], [])
            return Expiry(self.database, self._lease, self.get, self._end).run()

    def states(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the states of those of some jobs that exist, for their watchers."""
        rows = self.database.rows(
            "SELECT id, state, steps_done,"
            " ARRAY(SELECT number FROM images WHERE job = jobs.id ORDER BY number) AS images"
            " FROM jobs WHERE id = ANY(?)",
            list(ids),
        )
        return {row["id"]: JobStatus(JobState(row["state"]), row["steps_done"], tuple(row["images"])) for row in rows}

    def queue(self) -> list[QueueLength]:
        """Return the numbers of unfinished jobs by priority and by what they need of a host."""
        rows = self.database.rows(
            "SELECT model, priority, lora, plan_id,"
            " EXISTS (SELECT 1 FROM init_images WHERE job = jobs.id) AS image_input,"
            " count(*) FILTER (WHERE worker IS NULL) AS waiting,"
            " count(*) FILTER (WHERE worker IS NOT NULL) AS held,"
            " {greatest}(0, {now} - coalesce(min(created) FILTER (WHERE worker IS NULL), {now})) AS oldest,"
            " coalesce(sum(cost) FILTER (WHERE worker IS NULL), 0) AS cost"
            " FROM jobs WHERE finished IS NULL GROUP BY model, priority, lora, plan_id, image_input"
            " ORDER BY model, priority, lora, plan_id, image_input"
        )
        return [QueueLength(**row) for row in rows]

    def prune(self, retention: Retention) -> int:
        """Delete a few of the expired jobs. If there are none, forget clients that are gone. See `JobStore.prune`."""
        deleted = super().prune(retention)
        if not deleted:
            self.rates.prune()
            prune_shares(self.database)
        return deleted

    def dead(self) -> list[Job]:
        """Return the jobs that failed since they lost too many workers, newest first; MAX_DEAD at most."""
        code = "CAST(error AS json) ->> 'code' = 'worker_lost'"
        return self._jobs(
            f"WHERE finished IS NOT NULL AND state = 'failed' AND {code} ORDER BY finished DESC LIMIT {MAX_DEAD}"
        )

    def retry(self, id: str) -> Job | None:
        """Queue a failed job again, with all attempts and no deadline. None: it has not failed, or is unknown."""
        job = self.get(id)
        client = "" if job is None or job.owner is None else client_hash(job.owner)
        changed = self.database.execute(
            "UPDATE jobs SET state = 'queued', finished = NULL, error = 'null', attempts = 0, losses = 0,"
            " worker = NULL, lease = NULL, deadline = NULL, charged = 0, steps_done = 0, bytes = 0, client = ?"
            " WHERE id = ? AND state = 'failed'",
            client,
            id,
        )
        return self.get(id) if changed else None

    def drop(self, id: str) -> bool:
        """Delete a failed job. False: it has not failed, or is unknown."""
        job = self.get(id)
        return job is not None and job.state is JobState.FAILED and self.delete(id)


def _worker_of_row(row: Row) -> WorkerInfo:
    info = msgspec.json.decode(row["info"], type=WorkerInfo)
    return replace(info, is_draining=bool(row["is_draining"]), seconds_since_seen=max(0.0, row["seconds"]))

"""The choice of the jobs that a worker host claims: equal shares of time for clients, over the whole fleet.

Knows waiting jobs and what clients have spent; neither leases' ends nor images.

Start-time fair queueing (Goyal, Vin and Cheng, IEEE/ACM Transactions on Networking, 1997): each client spends the cost
of its claimed jobs, and the one that has spent least comes next. The virtual time is what that one had spent before; a
client that arrives, or comes back, counts as having spent as much. So it gets no credit for its absence, and does not
wait for all that others have queued. Each model has its own virtual time, since it has its own hosts.
"""

from collections.abc import Callable, Sequence

from engine.size import Size
from server.jobs.job import BATCH, Job
from server.jobs.storage.databases.database import Database, Lock, Value, placeholders
from server.jobs.storage.fleet.claim_order import LOOK_AHEAD, ClaimShare, best_batching, charge, distance
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.jobs.storage.rows import JOB_COLUMNS, STORED, job_of_row

MAX_PAGES = 64  # of LOOK_AHEAD jobs that a host cannot generate, before it tries another client
DEBT_SECONDS = 3600.0  # for which it is remembered that a client without jobs has spent more than the virtual time
SHARE = f"CASE WHEN jobs.priority = 'interactive' THEN jobs.client ELSE '{BATCH}' END"
WAITING = "state = 'queued' AND finished IS NULL AND worker IS NULL"

Loaded = Sequence[tuple[str | None, Size]]
SizeOf = Callable[[Job], Size | None]


class JobChoice:
    """The jobs that one host claims at one moment. In a transaction with Lock.CLAIM.

    Args:
        lease: seconds for which the host holds what it claims.
        loaded: LoRA and size of what the host generates now.
        size_of: size of a job's images; None if the host's plans cannot generate it.
    """

    def __init__(self, database: Database, worker: WorkerInfo, lease: float, loaded: Loaded, size_of: SizeOf) -> None:
        self._database, self._worker, self._lease, self._size_of = database, worker, lease, size_of
        self._loaded = set(loaded)
        suitable = "(model IS NULL OR model = ?) AND (plan_id IS NULL OR plan_id = ?)"
        suitable += f" AND (lora IS NULL OR lora IN ({placeholders(len(worker.loras)) or 'NULL'}))"
        self._which = f"{WAITING} AND {suitable}"
        self._values: tuple[Value, ...] = (worker.model, worker.plan_id, *worker.loras)
        self._now = 0.0

    def take(self, count: int) -> list[Job]:
        """Claim the jobs that come next, until they have `count` images."""
        if not self._may_claim():
            return []
        waiting, taken, missing = self._shares(), [], 0
        while waiting and missing < count:
            share = min(waiting, key=lambda each: each.order(self._now))
            found = self._next_job(share)
            if found is None:
                waiting.remove(share)
                continue
            job, images = found
            if not self._hold(job, images, share):
                continue  # it has just ended, and is not found again
            taken.append(job)
            missing += max(1, job.image_count - images)
            if job.attempts:
                break  # it may have killed a worker, so it runs alone; other hosts take the next ones
        return taken

    def _may_claim(self) -> bool:
        rows = self._database.rows("SELECT is_draining FROM workers WHERE id = ?", self._worker.id)
        return bool(rows) and not rows[0]["is_draining"]

    def _shares(self) -> list[ClaimShare]:
        """Return the clients with jobs for this host, and read the virtual time."""
        rows = self._database.rows(
            "SELECT waiting.client, first, coalesce(spent, 0) AS spent, coalesce(now, 0) AS now"
            f" FROM (SELECT {SHARE} AS client, min(sequence) AS first FROM jobs WHERE {self._which} GROUP BY 1)"
            " AS waiting"
            " LEFT JOIN shares ON shares.model = ? AND shares.client = waiting.client"
            " LEFT JOIN virtual_times ON virtual_times.model = ?",
            *self._values,
            self._worker.model,
            self._worker.model,
        )
        if rows:
            self._now = rows[0]["now"]
        return [ClaimShare(row["client"], row["first"], row["spent"]) for row in rows]

    def _next_job(self, share: ClaimShare) -> tuple[Job, int] | None:
        """Return the job of a client that comes next, with the number of its finished images."""
        after = share.first - 1
        for _ in range(MAX_PAGES):
            rows = self._database.rows(
                f"SELECT {JOB_COLUMNS}, {STORED} FROM jobs WHERE {self._which} AND {SHARE} = ? AND sequence > ?"
                f" ORDER BY sequence LIMIT {LOOK_AHEAD}",
                *self._values,
                share.client,
                after,
            )
            page = [(job_of_row(row), row["stored"]) for row in rows]
            suitable = [(job, stored, size) for job, stored in page if (size := self._size_of(job)) is not None]
            if suitable:
                job, stored, _ = best_batching(
                    suitable,
                    lambda each: each[0].created,
                    lambda each: distance((each[0].request.lora, each[2]), self._loaded),
                )
                return job, stored
            if len(page) < LOOK_AHEAD:
                break
            after = page[-1][0].sequence
        return None

    def _hold(self, job: Job, images: int, share: ClaimShare) -> bool:
        """Give a job to the host, and charge its client. False: the job does not wait any more."""
        cost = charge(job.cost, job.cost_factor, job.image_count, job.image_count - images)
        is_held = self._database.execute(
            f"UPDATE jobs SET worker = ?, lease = {{now}} + ?, charged = ? WHERE sequence = ? AND {WAITING}",
            self._worker.id,
            self._lease,
            cost,
            job.sequence,
        )
        if not is_held:  # a replica cancelled it, or the janitor ended it, since it was read
            return False
        self._now = share.charge(cost, self._now)
        self._database.execute(
            "WITH virtual_time AS (INSERT INTO virtual_times (model, now) VALUES (?, ?)"
            " ON CONFLICT (model) DO UPDATE SET now = excluded.now)"
            " INSERT INTO shares (model, client, spent, charged_at) VALUES (?, ?, ?, {now}) ON CONFLICT (model, client)"
            " DO UPDATE SET spent = excluded.spent, charged_at = excluded.charged_at",
            self._worker.model,
            self._now,
            self._worker.model,
            share.client,
            share.spent,
        )
        return True


def requeue(database: Database, id: str, *, refund_attempt: bool, is_loss: bool) -> None:
    """Put a held job back into the queue and give its client back what it was charged. In a transaction.

    Args:
        is_loss: True if its host vanished.
    """
    database.lock(Lock.CLAIM)
    database.execute(
        "UPDATE shares SET spent = spent - charged FROM jobs"
        f" WHERE id = ? AND shares.model = jobs.model AND shares.client = {SHARE}",
        id,
    )
    database.execute(
        "UPDATE jobs SET attempts = attempts - CASE WHEN state = 'running' THEN CAST(? AS bigint) ELSE 0 END,"
        " state = 'queued', worker = NULL, lease = NULL, charged = 0, steps_done = 0, losses = losses + ? WHERE id = ?",
        int(refund_attempt),
        int(is_loss),
        id,
    )


def prune_shares(database: Database) -> None:
    """Forget clients without jobs that have spent less than the virtual time, or nothing in the last DEBT_SECONDS.

    The second rule is for clients that send one job each: they do not advance the virtual time.
    """
    with database.transaction():
        database.lock(Lock.CLAIM)  # claims change several shares, in any order
        database.execute(
            "DELETE FROM shares USING virtual_times WHERE shares.model = virtual_times.model"
            f" AND (spent < now OR charged_at < {{now}} - ?) AND shares.client NOT IN"
            f" (SELECT {SHARE} FROM jobs WHERE finished IS NULL)",
            DEBT_SECONDS,
        )

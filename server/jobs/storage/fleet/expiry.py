"""The end of leases and deadlines in a fleet, by the database's clock. Knows rows; not why a host was lost."""

from collections.abc import Callable

from server.jobs.job import MAX_TOTAL_ATTEMPTS, Job, JobError, JobState
from server.jobs.storage.databases.database import Database, Row
from server.jobs.storage.fleet.job_choice import requeue
from server.jobs.storage.fleet.worker_info import Expired

LEASE_SECONDS = 10.0  # for which a host holds a job after its last heartbeat
FORGET_SECONDS = 60.0  # after which a host that was not seen leaves the table
MAX_LOSSES = 12  # hosts that may vanish with a job; nothing says that it was the job's fault
LATE = JobError("deadline_exceeded", "The deadline passed before the images were generated.")

End = Callable[[str, JobState, JobError | None], bool]


class Expiry:
    """One run of the janitor. In a transaction with Lock.JANITOR.

    Args:
        lease: seconds of a lease.
        get: returns a job.
        end: ends a job; see `JobStore`.
    """

    def __init__(self, database: Database, lease: float, get: Callable[[str], Job | None], end: End) -> None:
        self._database, self._lease, self._get, self._end = database, lease, get, end

    def run(self) -> Expired:
        if self._was_paused():
            self._extend_all()
        requeued: list[str] = []
        ended: list[str] = []
        for row in self._lost():
            if row["stored"] >= row["image_count"]:
                self._end(row["id"], JobState.DONE, None)
                ended.append(row["id"])
            elif (error := _fault(row)) is not None:
                self._end(row["id"], JobState.FAILED, error)
                ended.append(row["id"])
            else:
                requeue(self._database, row["id"], refund_attempt=False, is_loss=True)
                requeued.append(row["id"])
        # last: `requeue` waits for claims, and a claim for the rows of waiting jobs that are late
        ended += self._end_late()
        return Expired(self._jobs(requeued), self._jobs(ended), self._forget_hosts())

    def _was_paused(self) -> bool:
        """Return True if no janitor ran for half a lease.

        Then the database may have been away, so that no heartbeat could come either.
        """
        last = self._database.rows("SELECT {now} - last_run AS seconds FROM janitor")[0]
        self._database.execute("UPDATE janitor SET last_run = {now}")
        return bool(last["seconds"] > self._lease / 2)

    def _extend_all(self) -> None:
        """Give all hosts the time for a heartbeat."""
        self._database.execute("UPDATE workers SET seen = {now}")  # first, as in a heartbeat; else a deadlock
        self._database.execute(
            "UPDATE jobs SET lease = {now} + ? WHERE finished IS NULL AND worker IS NOT NULL AND lease > 0",
            self._lease,
        )

    def _end_late(self) -> list[str]:
        """Fail the jobs past their deadlines and return their ids."""
        # rows that a host writes at this moment are left for the next run; waiting for them could be a deadlock
        late = self._database.rows(
            "SELECT id FROM jobs WHERE finished IS NULL AND deadline < {now} ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        for row in late:
            self._end(row["id"], JobState.FAILED, LATE)
        return [row["id"] for row in late]

    def _lost(self) -> list[Row]:
        """Return the jobs whose leases have ended, but not their deadlines."""
        rows = self._database.rows(
            "SELECT id, attempts, losses, image_count, (SELECT count(*) FROM images WHERE job = jobs.id) AS stored"
            " FROM jobs WHERE finished IS NULL AND worker IS NOT NULL AND lease < {now}"
            " AND coalesce(deadline >= {now}, true) FOR UPDATE SKIP LOCKED"
        )
        return list(rows)

    def _forget_hosts(self) -> list[str]:
        rows = self._database.rows("DELETE FROM workers WHERE seen < {now} - ? RETURNING id", FORGET_SECONDS)
        return [row["id"] for row in rows]

    def _jobs(self, ids: list[str]) -> list[Job]:
        return [job for id in ids if (job := self._get(id)) is not None]


def _fault(row: Row) -> JobError | None:
    """Return why a job is not tried again; None if it is."""
    if row["attempts"] >= MAX_TOTAL_ATTEMPTS:
        return JobError("worker_lost", f"The job was started {row['attempts']} times and never finished.")
    if row["losses"] + 1 >= MAX_LOSSES:
        return JobError("worker_lost", f"{MAX_LOSSES} machines were lost while they had this job.")
    return None

"""Deletion of old jobs from the database. Knows ages, bytes and owners; not what was generated."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from server.jobs.job import JobState
from server.jobs.storage.databases.database import Database, Lock, Row, Value
from server.jobs.storage.deleted_jobs import DeletedJobs
from server.jobs.storage.retention import ClockGuard, Retention
from server.jobs.storage.rows import owned_by

PRUNE_BATCH = 20  # jobs that one `prune` deletes at most
VACUUM_PAGES = 4096  # of 4 KiB, that one `prune` gives back at most
BYTES = "CAST(coalesce(sum(bytes), 0) AS {integer}) AS bytes"
DONE = "jobs {using_jobs_done} WHERE state = 'done'"
WITHOUT_RESULT = "jobs {using_jobs_without_result} WHERE finished IS NOT NULL AND state <> 'done'"


class Pruner:
    """Deletes ended jobs that are too old, and while there are more bytes than allowed.

    For the bytes, jobs that failed or were cancelled go first, then the oldest done job of the owner who uses most. So
    no owner within an equal share loses a done job to another.

    Args:
        deleted_jobs: deletes them.
        monotonic: returns seconds that no one sets.
    """

    def __init__(self, database: Database, deleted_jobs: DeletedJobs, monotonic: Callable[[], float]) -> None:
        self._database, self._deleted_jobs = database, deleted_jobs
        file = None if database.path is None else Path(f"{database.path}.clock")
        self._clock_guard = ClockGuard("the job history", file, monotonic)
        self._used: Counter[str | None] | None = None  # bytes of done jobs by owner; None: count them again
        self._wasted = 0  # bytes of jobs that failed or were cancelled

    def on_deleted(self) -> None:
        """Count the bytes again, since another has deleted a job."""
        self._used = None

    def prune(self, retention: Retention) -> int:
        """Delete up to PRUNE_BATCH expired jobs and give some disk space back. Call it until it returns 0.

        Args:
            retention: age since the job's end; bytes of all jobs that have ended, with their images.

        Returns:
            The number of deleted jobs; 0 while another process prunes.
        """
        with self._database.transaction():
            deleted = self._prune(retention) if self._database.try_lock(Lock.PRUNER) else 0
        self._database.shrink(VACUUM_PAGES)
        return deleted

    def _prune(self, retention: Retention) -> int:
        now = self._database.now()
        retention = self._clock_guard.apply(retention, now, self._newest())
        oldest = now - retention.max_age
        if self._used is None or self._database.is_shared:
            self._used, self._wasted = self._count()
        used = self._used
        excess = self._wasted + sum(used.values()) - retention.max_bytes
        deleted = 0
        while deleted < PRUNE_BATCH:
            expired = self._first("jobs WHERE finished < ?", oldest)
            if expired is None and excess > 0:
                expired = self._first(WITHOUT_RESULT)
                if expired is None and used:
                    owned, values = owned_by(max(used, key=used.__getitem__))
                    expired = self._first(f"{DONE} AND {owned}", *values)
            if expired is None:
                self._used = None
                break
            deleted += self._deleted_jobs.delete_jobs("sequence = ?", expired["sequence"])
            excess -= expired["bytes"]
            if expired["state"] == JobState.DONE:
                used[expired["owner"]] -= expired["bytes"]
            else:
                self._wasted -= expired["bytes"]
        return deleted

    def _count(self) -> tuple[Counter[str | None], int]:
        """Return the bytes of done jobs by owner, and of the other ended jobs. Takes 0.1 s for a million jobs."""
        rows = self._database.rows(f"SELECT owner, {BYTES} FROM {DONE} GROUP BY owner")
        used = Counter({row["owner"]: row["bytes"] for row in rows if str(row["owner"]).isascii()})  # else damaged
        return used, self._database.rows(f"SELECT {BYTES} FROM {WITHOUT_RESULT}")[0]["bytes"]

    def _first(self, which: str, *values: Value) -> Row | None:
        """Return the job that ended first: its sequence, owner, state and bytes."""
        columns = "sequence, owner, state, coalesce(CAST(bytes AS {integer}), 0) AS bytes"
        rows = self._database.rows(f"SELECT {columns} FROM {which} ORDER BY finished, sequence LIMIT 1", *values)
        return next(iter(rows), None)

    def _newest(self) -> float | None:
        """Return the time at which the last job was accepted."""
        rows = self._database.rows("SELECT created FROM jobs ORDER BY sequence DESC LIMIT 9")
        return next((row["created"] for row in rows if isinstance(row["created"], float)), None)  # others are damaged

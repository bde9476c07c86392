"""Jobs and their images in an SQLite file, so that neither a crash nor a restart loses what was accepted.

Knows rows and transactions; not who generates, not HTTP.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.images.metadata import ImageMetadata
from server.errors import IdempotencyKeyReused
from server.jobs.database import connect, explained
from server.jobs.job import Job, JobError, JobState, StoredImage
from server.jobs.rows import COLUMNS, SQLiteValue, image_of_row, job_of_row, row_of_job, to_json

SERVER_RESTARTED = JobError(
    "server_restarted", "The server was restarted before the images were generated; send the request again."
)
MAX_SEQUENCE = 2**63 - 1
PRUNED = 20  # jobs that one `prune` deletes at most
ROW_BYTES = 1 << 10  # of a job that ended, besides its requests and images
VACUUM_PAGES = 4096  # that one `prune` gives back; of 4 KiB
SIZE = f"(length(CAST(requests AS BLOB)) + {ROW_BYTES})"  # as `size_of`


class JobStore:
    """Jobs in the order of their acceptance, each with the images that it has so far.

    One connection, which any thread may use, but only one at a time: callers hold a lock. Every method may wait up to
    `busy_timeout` for another process and may raise StoreUnavailable, and then has changed nothing (`prune` has deleted
    whole jobs or none).

    What a method has written survives the end of the process in any form, kill -9 too. The log is not forced to the
    disk at every commit (WAL, synchronous=NORMAL): a power cut may lose the last moments, but damages nothing.
    """

    def __init__(self, path: Path | None, busy_timeout: float = 5.0, *, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            path: the file, made if it is not there; None keeps the jobs in memory.
            busy_timeout: seconds.
            clock: gives unix seconds.

        Raises:
            StoreUnavailable: there is no such directory, or the file is damaged, of a newer version or no store at all.
        """
        self.is_in_memory = path is None
        self._name = f"the job store {path or 'in memory'}"
        self._clock = clock
        with explained(self._name):
            self._connection = connect(path, busy_timeout, self._name)

    def add(self, job: Job) -> Job:
        """Takes a job into the queue and gives it its `sequence`; a known idempotency key gives the job that has it.

        Raises:
            IdempotencyKeyReused: the key is known with another fingerprint.
        """
        assert job.state is JobState.QUEUED and job.requests and job.owner != ""
        with self._writing() as connection:
            known = self.known(job)
            if known is None:
                names = ", ".join(COLUMNS)
                values = ", ".join(f":{name}" for name in COLUMNS)
                cursor = connection.execute(f"INSERT INTO jobs ({names}) VALUES ({values})", row_of_job(job))
                assert cursor.lastrowid is not None
                return replace(job, sequence=cursor.lastrowid)
        return known

    def known(self, job: Job) -> Job | None:
        """The job that an earlier request with this one's idempotency key has made. Raises IdempotencyKeyReused."""
        where = "WHERE idempotency_key = ? AND ifnull(owner, '') = ifnull(?, '')"  # a key of None equals none
        known = next(iter(self._jobs(where, job.idempotency_key, job.owner)), None)
        if known is not None and known.fingerprint != job.fingerprint:
            raise IdempotencyKeyReused(
                f"the idempotency key {job.idempotency_key!r} was used for another request; use a new key for each"
            )
        return known

    def get(self, id: str) -> Job | None:
        return next(iter(self._jobs("WHERE id = ?", id)), None)

    def unfinished(self) -> list[Job]:
        """Queued and running jobs in the order of their acceptance."""
        return self._jobs("WHERE finished IS NULL ORDER BY sequence")

    def history(self, limit: int, before: int | None = None, owner: str | None = None) -> list[Job]:
        """An owner's jobs in any state, newest first.

        Args:
            limit: how many at most.
            before: the `sequence` of the last job of the page before; None for the first page.
            owner: None for the jobs that have no owner.
        """
        end = MAX_SEQUENCE if before is None else before
        return self._jobs("WHERE owner IS ? AND sequence < ? ORDER BY sequence DESC LIMIT ?", owner, end, limit)

    def begin(self, id: str) -> bool:
        """queued -> running, one more attempt. False: the job is not queued, so do not generate it."""
        return self._change(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = ifnull(started, ?)"
            " WHERE id = ? AND state = 'queued'",
            self._clock(),
            id,
        )

    def requeue(self, id: str, *, forgive: bool = False) -> bool:
        """running -> queued, since its worker died, or with `forgive` was stopped, which is no attempt of the job's.

        False: the job is not running.
        """
        sql = "UPDATE jobs SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running'"
        return self._change(sql, int(forgive), id)

    def finish(self, id: str) -> bool:
        """Ends a job that has all its images. False, as for `fail` and `cancel`: it had ended, or is unknown."""
        wanted = self._wanted(id)
        if wanted is None:
            return False
        ((generated,),) = self._rows("SELECT count(*) FROM images WHERE job = ?", id)
        assert generated == wanted, f"{id} has {generated} of {wanted} images"
        return self._end(id, JobState.DONE)

    def fail(self, id: str, error: JobError) -> bool:
        return self._end(id, JobState.FAILED, error)

    def cancel(self, id: str) -> bool:
        return self._end(id, JobState.CANCELLED)

    def add_image(self, id: str, image: StoredImage) -> bool:
        """Keeps an image; of two with the same index the first. False: the job has ended or is unknown."""
        with self._writing() as connection:
            wanted = self._wanted(id)
            if wanted is None:
                return False
            assert 0 <= image.index < wanted
            connection.execute(
                "INSERT INTO images (job, number, media_type, metadata, data) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (job, number) DO NOTHING",
                (id, image.index, image.media_type, to_json(image.metadata), image.data),
            )
            return True

    def images(self, id: str) -> list[StoredImage]:
        """What there is so far, by index."""
        return self._images("WHERE job = ? ORDER BY number", id)

    def image(self, id: str, index: int) -> StoredImage | None:
        return next(iter(self._images("WHERE job = ? AND number = ?", id, index)), None)

    def metadata(self, id: str) -> list[ImageMetadata]:
        """Those of its images, by index, without reading the images."""
        rows = self._rows("SELECT metadata FROM images WHERE job = ? ORDER BY number", id)
        return [msgspec.json.decode(metadata, type=ImageMetadata) for (metadata,) in rows]

    def delete(self, id: str) -> bool:
        """Deletes a job that has ended, with its images. False: it has not, or is unknown."""
        return self._change("DELETE FROM jobs WHERE id = ? AND finished IS NOT NULL", id)

    def prune(self, older_than: float, max_bytes: int) -> int:
        """Deletes a few jobs that have ended, and gives some of the free disk space back: call it again and again.

        Args:
            older_than: unix seconds; all that ended before go.
            max_bytes: of all images, and of all jobs that ended. While there are more, the first ended goes.

        Returns:
            How many jobs were deleted.
        """
        deleted = 0
        ((images,),) = self._rows("SELECT ifnull(sum(length(data)), 0) FROM images")
        ((jobs,),) = self._rows(f"SELECT ifnull(sum({SIZE}), 0) FROM jobs WHERE finished IS NOT NULL")
        held = images + jobs
        for id, finished, size in self._rows(
            f"SELECT id, finished, {SIZE} + (SELECT ifnull(sum(length(data)), 0) FROM images WHERE job = id) FROM"
            f" (SELECT * FROM jobs WHERE finished IS NOT NULL ORDER BY finished, sequence LIMIT {PRUNED})"
        ):
            if finished >= older_than and held <= max_bytes:
                break
            deleted += self.delete(id)  # each in a transaction of its own, which keeps them short
            held -= size
        self._shrink()
        return deleted

    def recover(self) -> list[Job]:
        """To be called once at the start, when no worker generates: puts right what the end of the last server left.

        Jobs that are not durable fail, since their clients are gone; running ones are queued again.

        Returns:
            The unfinished jobs, in the order of their acceptance.
        """
        with self._writing() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE finished IS NULL AND NOT durable",
                (self._clock(), to_json(SERVER_RESTARTED)),
            )
            connection.execute("UPDATE jobs SET state = 'queued' WHERE finished IS NULL")
            return self.unfinished()

    def close(self) -> None:
        self._connection.close()

    def _wanted(self, id: str) -> int | None:
        """How many images a job is to have; None if it has ended, or is unknown."""
        rows = self._rows("SELECT json_array_length(requests) FROM jobs WHERE id = ? AND finished IS NULL", id)
        return rows[0][0] if rows else None

    def _end(self, id: str, state: JobState, error: JobError | None = None) -> bool:
        key = "NULL" if error is not None and error.is_transient else "idempotency_key"
        sql = (
            f"UPDATE jobs SET state = ?, finished = ?, error = ?, idempotency_key = {key}"
            " WHERE id = ? AND finished IS NULL"
        )
        return self._change(sql, state, self._clock(), to_json(error), id)

    def _shrink(self) -> None:
        with explained(self._name):
            # it stops after every page, from where `execute` does not go on
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def _jobs(self, which: str, *values: SQLiteValue) -> list[Job]:
        return [job_of_row(row) for row in self._rows(f"SELECT * FROM jobs {which}", *values)]

    def _images(self, which: str, *values: SQLiteValue) -> list[StoredImage]:
        return [image_of_row(row) for row in self._rows(f"SELECT * FROM images {which}", *values)]

    def _rows(self, sql: str, *values: SQLiteValue) -> list[sqlite3.Row]:
        with explained(self._name):
            return self._connection.execute(sql, values).fetchall()

    def _change(self, sql: str, *values: SQLiteValue) -> bool:
        """Changes at most one row, in a transaction; says whether there was one to change."""
        with self._writing() as connection:
            return connection.execute(sql, values).rowcount == 1

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer from its first read on; undone when the block raises."""
        with explained(self._name), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection


def size_of(job: Job) -> int:
    """About how many bytes a job takes without its images."""
    return len(to_json(job.requests).encode()) + ROW_BYTES

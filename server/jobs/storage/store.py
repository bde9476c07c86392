"""Jobs and their images in a database, so that neither a crash nor a restart loses an accepted job.

Knows rows and transactions; neither workers nor HTTP.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.images.metadata import ImageMetadata
from server.errors import IdempotencyKeyReused
from server.jobs.job import MAX_SEQUENCE, Job, JobError, JobState, StoredImage
from server.jobs.storage.databases.database import Database, Value, placeholders
from server.jobs.storage.databases.open_database import open_database
from server.jobs.storage.databases.sqlite import SqliteDatabase
from server.jobs.storage.deleted_jobs import DeletedJobs
from server.jobs.storage.history import HistoryPage, read_jobs, read_metadata, read_page
from server.jobs.storage.init_images import StoredInitImages
from server.jobs.storage.pruning import Pruner
from server.jobs.storage.repair import repair
from server.jobs.storage.retention import Retention
from server.jobs.storage.rows import (
    COLUMNS,
    IMAGE_COLUMNS,
    SIZE,
    SIZE_WITH_IMAGES,
    image_of_row,
    insert_image,
    owned_by,
    row_of_job,
    to_json,
)
from server.worker.packed_image import PackedImage

SERVER_RESTARTED = JobError(
    "server_restarted", "The server was restarted before the images were generated; send the request again."
)
INSERT = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({placeholders(len(COLUMNS))})"
    " ON CONFLICT DO NOTHING RETURNING sequence"
)
# not before the start, even if the clock was set back
END = "{greatest}({now}, coalesce(created, 0), coalesce(started, 0))"


class JobStore:
    """Jobs in the order of their acceptance, each with its images so far.

    A store in PostgreSQL may be used by any number of threads, one in SQLite by any, but only one at a time. Every
    method may raise StoreUnavailable. Then nothing has changed, unless a server was lost at the moment of the commit;
    each call may be repeated and has its effect once.

    What a method has written survives any end of the process, kill -9 too. SQLite's log is not forced to the disk at
    every commit (WAL, synchronous=NORMAL): a power cut may lose the last moments, but damages nothing.

    Attributes:
        database: where the jobs are.
        deletes_jobs: False if other processes delete old jobs, and the files of deleted ones.
        deleted: jobs whose image files must be deleted too.
        init_images: that jobs begin with.
        bytes_since_prune: bytes that the last `prune` has not considered.
    """

    deletes_jobs = True
    _changeable = "id = ?"  # condition for the job that a method may change

    def __init__(
        self,
        database: Database | Path | str | None,
        busy_timeout: float = 5.0,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            database: see `open_database`, which opens all but a `Database`.
            busy_timeout: seconds.
            clock: returns unix seconds; PostgreSQL has its own.
            monotonic: returns seconds that no one sets.

        Raises:
            StoreUnavailable: see `open_database`.
        """
        if not isinstance(database, Database):
            database = open_database(database, busy_timeout, clock)
        self.database = database
        self.bytes_since_prune = 0
        self.deleted = DeletedJobs(database)
        self.init_images = StoredInitImages(database)
        self._pruner = Pruner(database, self.deleted, monotonic)

    def add(self, job: Job, init_image: PackedImage | None = None) -> Job:
        """Queue a job and return it with its `sequence`, or return the job with the same idempotency key or id.

        Args:
            init_image: the packed image that it begins with; it is deleted with the job.

        Raises:
            IdempotencyKeyReused: the key is known with another fingerprint.
        """
        with self.database.transaction():
            return self._insert(job, init_image)

    def _insert(self, job: Job, init_image: PackedImage | None) -> Job:
        """Insert a job, or return the one with its key or id. In a transaction."""
        assert job.state is JobState.QUEUED and job.image_count > 0 and job.owner != ""
        added = self.database.rows(INSERT, *row_of_job(job))
        if not added:
            known = self.find_by_key(job) or self.get(job.id)
            assert known is not None
            return known
        if init_image is not None:
            self._add_init_image(job.id, init_image)
        return replace(job, sequence=added[0]["sequence"])

    def _add_init_image(self, id: str, image: PackedImage) -> None:
        self.init_images.add(id, image)
        self.bytes_since_prune += len(image.data)

    def find_by_key(self, job: Job) -> Job | None:
        """Return the stored job with this job's idempotency key. Raises IdempotencyKeyReused."""
        if job.idempotency_key is None:
            return None
        where = "WHERE idempotency_key = ? AND coalesce(owner, '') = ?"
        known = next(iter(self._jobs(where, job.idempotency_key, job.owner or "")), None)
        if known is not None and known.fingerprint != job.fingerprint:
            raise IdempotencyKeyReused(
                f"the idempotency key {job.idempotency_key!r} was used for another request; use a new key for each"
            )
        return known

    def get(self, id: str) -> Job | None:
        return next(iter(self._jobs("WHERE id = ?", id)), None)

    def unfinished(self) -> list[Job]:
        """Return queued and running jobs in the order of their acceptance."""
        return self._jobs("WHERE finished IS NULL ORDER BY sequence")

    def history(self, limit: int, before: int | None = None, owner: str | None = None) -> HistoryPage:
        """Return an owner's jobs in any state, newest first, with the metadata of their images.

        Args:
            limit: number of jobs at most; fewer, but one at least, if their requests have more than PAGE_BYTES.
            before: `sequence` of the last job of the previous page; None for the first page.
            owner: None for the jobs without an owner.
        """
        end = MAX_SEQUENCE if before is None else before
        return read_page(self.database, *owned_by(owner), end, limit)

    def find(self, ids: Sequence[str]) -> HistoryPage:
        """Return those of some jobs that exist, newest first; fewer if their requests have more than PAGE_BYTES."""
        if not ids:
            return HistoryPage([], {}, has_more=False)
        return read_page(self.database, f"id IN ({placeholders(len(ids))})", tuple(ids), MAX_SEQUENCE, len(ids))

    def start(self, id: str) -> bool:
        """Set a queued job to running and count an attempt. False: it is not queued, so do not generate it."""
        changed = self.database.execute(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1,"
            " started = coalesce(started, {greatest}({now}, created))"
            f" WHERE {self._changeable} AND state = 'queued'",
            *self._keys(id),
        )
        return changed == 1

    def requeue(self, id: str, *, refund_attempt: bool = False) -> bool:
        """Set a running job to queued. False: it is not running.

        Args:
            refund_attempt: True if the worker was stopped in order; False if it died.
        """
        sql = "UPDATE jobs SET state = 'queued', attempts = attempts - ?"
        sql += f" WHERE {self._changeable} AND state = 'running'"
        return self.database.execute(sql, int(refund_attempt), *self._keys(id)) == 1

    def finish(self, id: str) -> bool:
        """End a job that has all its images. False, as for `fail` and `cancel`: it had ended, or is unknown."""
        expected = self._image_count(id)
        if expected is None:
            return False
        stored = self.database.rows("SELECT count(*) AS stored FROM images WHERE job = ?", id)[0]["stored"]
        assert stored == expected, f"{id} has {stored} of {expected} images"
        return self._end(id, JobState.DONE)

    def fail(self, id: str, error: JobError) -> bool:
        return self._end(id, JobState.FAILED, error)

    def cancel(self, id: str) -> bool:
        return self._end(id, JobState.CANCELLED)

    def add_image(self, id: str, image: StoredImage) -> bool:
        """Store an image, unless there is one with its index. False: the job has ended or is unknown."""
        with self.database.transaction():
            expected = self._image_count(id, "{for_update}")  # so that the job does not end before its image is there
            if expected is None:
                if image.file is not None and self.get(id) is None:  # deleted while the file was written
                    self.deleted.add(id)
                return False
            assert 0 <= image.index < expected
            added = insert_image(self.database, id, image)
        self.bytes_since_prune += added
        return True

    def images(self, id: str) -> list[StoredImage]:
        """Return the images so far, by index; without data if they are in files."""
        return self._images("WHERE job = ? ORDER BY number", id)

    def image(self, id: str, index: int) -> StoredImage | None:
        return next(iter(self._images("WHERE job = ? AND number = ?", id, index)), None)

    def metadata(self, id: str) -> list[ImageMetadata]:
        """Return the metadata of the images so far, by index, without reading the images."""
        return read_metadata(self.database, id)

    def delete(self, id: str) -> bool:
        """Delete a job that has ended, with its images. False: it has not ended, or is unknown."""
        self._pruner.on_deleted()
        with self.database.transaction():
            return self.deleted.delete_jobs("id = ? AND finished IS NOT NULL", id) == 1

    def prune(self, retention: Retention) -> int:
        """Delete a few of the expired jobs, and return their number. Call it until it returns 0; see `Pruner`."""
        self.bytes_since_prune = 0
        return self._pruner.prune(retention)

    def recover(self) -> list[Job]:
        """Repair the states that an ended server left. Call it once at the start, before a worker generates.

        Jobs that are not durable fail, since their clients are gone, and so do those whose rows are damaged; running
        ones are queued again.

        Returns:
            The unfinished jobs, in the order of their acceptance.
        """
        with self.database.transaction():
            if isinstance(self.database, SqliteDatabase):  # a server sees damage, and refuses it, by itself
                for job in self._jobs("WHERE finished IS NULL"):
                    repair(self.database, job)
            self.database.execute(
                f"UPDATE jobs SET state = 'failed', finished = {END}, error = ?, client = '',"
                f" bytes = {SIZE_WITH_IMAGES} WHERE finished IS NULL AND durable = 0",
                to_json(SERVER_RESTARTED),
            )
            self.database.execute("UPDATE jobs SET state = 'queued' WHERE finished IS NULL")
            return self.unfinished()

    def close(self) -> None:
        self.database.close()

    def _keys(self, id: str) -> tuple[Value, ...]:
        """Return the values of `_changeable`."""
        return (id,)

    def _image_count(self, id: str, lock: str = "") -> int | None:
        """Return the number of images that an unfinished job asks for; None for other jobs."""
        sql = f"SELECT image_count FROM jobs WHERE {self._changeable} AND finished IS NULL {lock}"
        rows = self.database.rows(sql, *self._keys(id))
        return rows[0]["image_count"] if rows else None

    def _end(self, id: str, state: JobState, error: JobError | None = None) -> bool:
        key = "NULL" if error is not None and error.is_transient else "idempotency_key"
        ended = self.database.rows(
            f"UPDATE jobs SET state = ?, finished = {END}, error = ?, idempotency_key = {key}, client = '',"
            f" lease = NULL, bytes = {SIZE_WITH_IMAGES} WHERE {self._changeable} AND finished IS NULL"
            f" RETURNING {SIZE} AS size",
            state.value,
            to_json(error),
            *self._keys(id),
        )
        for row in ended:
            self.bytes_since_prune += row["size"]
        return bool(ended)

    def _jobs(self, which: str, *values: Value) -> list[Job]:
        return read_jobs(self.database, which, *values)

    def _images(self, which: str, *values: Value) -> list[StoredImage]:
        rows = self.database.rows(f"SELECT {IMAGE_COLUMNS} FROM images {which}", *values)
        return [image for row in rows if (image := image_of_row(row))]

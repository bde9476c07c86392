"""Jobs and their images in an SQLite file, so that neither a crash nor a restart loses what was accepted.

Knows rows and transactions; not who generates, not HTTP.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path

import msgspec

from engine.images.metadata import ImageMetadata
from server.jobs.job import Job, JobError, JobState, StoredImage

VERSION = 2  # of the schema
SCHEMA = (
    """CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        requests TEXT NOT NULL,
        format TEXT NOT NULL,
        api TEXT NOT NULL,
        owner TEXT,
        durable INTEGER NOT NULL,
        idempotency_key TEXT,
        fingerprint TEXT NOT NULL,
        created REAL NOT NULL,
        deadline REAL,
        state TEXT NOT NULL,
        started REAL,
        finished REAL,
        attempts INTEGER NOT NULL,
        error TEXT NOT NULL,
        CHECK ((finished IS NULL) = (state IN ('queued', 'running')))
    )""",
    # to UNIQUE every NULL is another one, but those without an owner share their keys
    """CREATE UNIQUE INDEX jobs_by_key ON jobs (idempotency_key, ifnull(owner, ''))
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX jobs_by_owner ON jobs (owner, sequence)",
    "CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished IS NULL",
    """CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (job, number)
    )""",
    f"PRAGMA user_version = {VERSION}",
)
SQLiteValue = str | bytes | int | float | None
COLUMNS = tuple(field.name for field in fields(Job) if field.name != "sequence")
JSON_COLUMNS = ("requests", "format", "error")

SERVER_RESTARTED = JobError(
    "server_restarted", "The server was restarted before the images were generated; send the request again."
)
MAX_SEQUENCE = 2**63 - 1
WAL_BYTES = 16 << 20  # what the log may keep on disk after a burst
PRUNED = 20  # jobs that one `prune` deletes at most
ROW_BYTES = 1 << 10  # of a job that ended, besides its requests and images
VACUUM_PAGES = 4096  # that one `prune` gives back; of 4 KiB
SIZE = f"(length(CAST(requests AS BLOB)) + {ROW_BYTES})"  # as `size_of`

ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing to it; a store belongs to one server",
    sqlite3.SQLITE_FULL: "free disk space, or keep fewer images",
    sqlite3.SQLITE_READONLY: "the file and its directory must be writable",
    sqlite3.SQLITE_IOERR: "the disk fails or is full; the kernel's log says more",
    sqlite3.SQLITE_CANTOPEN: "its directory must exist and be writable",
    sqlite3.SQLITE_CORRUPT: "put a copy in its place, or move it away to begin with an empty store",
    sqlite3.SQLITE_NOTADB: "name another file, or move it away to begin with an empty store",
}


class StoreUnavailable(Exception):
    """The jobs cannot be read or written now; when the cause is gone, the same call works."""


class IdempotencyMismatch(Exception):
    """An idempotency key came again with another request."""


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
        with _explained(self._name):
            self._connection = _connect(path, busy_timeout, self._name)

    def add(self, job: Job) -> Job:
        """Takes a job into the queue and gives it its `sequence`; a known idempotency key gives the job that has it.

        Raises:
            IdempotencyMismatch: the key is known with another fingerprint.
        """
        assert job.state is JobState.QUEUED and job.requests and job.owner != ""
        with self._writing() as connection:
            known = self.known(job)
            if known is None:
                names = ", ".join(COLUMNS)
                values = ", ".join(f":{name}" for name in COLUMNS)
                cursor = connection.execute(f"INSERT INTO jobs ({names}) VALUES ({values})", _row(job))
                assert cursor.lastrowid is not None
                return replace(job, sequence=cursor.lastrowid)
        return known

    def known(self, job: Job) -> Job | None:
        """The job that an earlier request with this one's idempotency key has made. Raises IdempotencyMismatch."""
        where = "WHERE idempotency_key = ? AND ifnull(owner, '') = ifnull(?, '')"  # a key of None equals none
        known = next(iter(self._jobs(where, job.idempotency_key, job.owner)), None)
        if known is not None and known.fingerprint != job.fingerprint:
            raise IdempotencyMismatch(
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
                (id, image.index, image.media_type, _json(image.metadata), image.data),
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
                (self._clock(), _json(SERVER_RESTARTED)),
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
        return self._change(sql, state, self._clock(), _json(error), id)

    def _shrink(self) -> None:
        with _explained(self._name):
            # it stops after every page, from where `execute` does not go on
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def _jobs(self, which: str, *values: SQLiteValue) -> list[Job]:
        return [_job(row) for row in self._rows(f"SELECT * FROM jobs {which}", *values)]

    def _images(self, which: str, *values: SQLiteValue) -> list[StoredImage]:
        return [_image(row) for row in self._rows(f"SELECT * FROM images {which}", *values)]

    def _rows(self, sql: str, *values: SQLiteValue) -> list[sqlite3.Row]:
        with _explained(self._name):
            return self._connection.execute(sql, values).fetchall()

    def _change(self, sql: str, *values: SQLiteValue) -> bool:
        """Changes at most one row, in a transaction; says whether there was one to change."""
        with self._writing() as connection:
            return connection.execute(sql, values).rowcount == 1

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer from its first read on; undone when the block raises."""
        with _explained(self._name), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection


def size_of(job: Job) -> int:
    """About how many bytes a job takes without its images."""
    return len(_json(job.requests).encode()) + ROW_BYTES


def _connect(path: Path | None, busy_timeout: float, name: str) -> sqlite3.Connection:
    with ExitStack() as undo:
        connection = sqlite3.connect(
            path or ":memory:", timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # first: it cannot be changed once there is a page
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        _create_schema(connection, name)
        undo.pop_all()
        return connection


def _create_schema(connection: sqlite3.Connection, name: str) -> None:
    """Makes the tables of a new file; refuses a file with others."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # of two that open a new file one makes the tables
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > VERSION:
            raise StoreUnavailable(
                f"{name} has schema {version}, but this zimage-trt knows only up to {VERSION};"
                " start the newer zimage-trt, or name another file"
            )
        if version == 0 and tables:
            raise StoreUnavailable(f"{name} is a database of something else; name another file")
        if version == 0:
            for statement in SCHEMA:
                connection.execute(statement)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What file, disk or another process refuses becomes StoreUnavailable; our own mistakes stay as they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the higher bits are details
        if primary not in ADVICE:
            raise
        raise StoreUnavailable(f"{name}: {error}; {ADVICE[primary]}") from error


def _row(job: Job) -> dict[str, SQLiteValue]:
    values: dict[str, SQLiteValue] = msgspec.to_builtins(job)
    return values | {name: _json(getattr(job, name)) for name in JSON_COLUMNS}


def _job(row: sqlite3.Row) -> Job:
    values = {**row, "durable": bool(row["durable"])} | {name: msgspec.json.decode(row[name]) for name in JSON_COLUMNS}
    return msgspec.convert(values, Job)


def _image(row: sqlite3.Row) -> StoredImage:
    metadata = msgspec.json.decode(row["metadata"], type=ImageMetadata)
    return StoredImage(row["number"], row["media_type"], row["data"], metadata)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

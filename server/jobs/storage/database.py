"""The SQLite file of a job store: its schema, how it is opened, and its errors with advice.

Knows no jobs.
"""

import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from server.errors import StoreUnavailable

log = logging.getLogger(__name__)

VERSION = 5  # of the schema
INIT_IMAGES = """CREATE TABLE init_images (
    job TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    unpacked_bytes INTEGER NOT NULL,
    data BLOB NOT NULL
)"""
SCHEMA = (
    """CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        request TEXT NOT NULL,
        image_count INTEGER NOT NULL,
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
        client TEXT NOT NULL DEFAULT '',
        previews INTEGER NOT NULL DEFAULT 0,
        priority TEXT NOT NULL DEFAULT 'interactive',
        model TEXT,
        plan_id TEXT,
        cost REAL NOT NULL DEFAULT 0,
        trace TEXT,
        worker TEXT,
        lease REAL,
        steps_done INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0, -- of an ended job, with its images
        CHECK ((finished IS NULL) = (state IN ('queued', 'running')))
    )""",
    # UNIQUE treats NULLs as distinct; jobs without an owner must share their keys
    """CREATE UNIQUE INDEX jobs_by_key ON jobs (idempotency_key, ifnull(owner, ''))
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX jobs_by_owner ON jobs (owner, sequence)",
    "CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished IS NULL",
    # `Pruner` reads nothing but these, so that it stays cheap with many jobs
    "CREATE INDEX jobs_ended ON jobs (finished) WHERE finished IS NOT NULL",
    """CREATE INDEX jobs_without_result ON jobs (finished, sequence, bytes, state)
        WHERE finished IS NOT NULL AND state <> 'done'""",
    "CREATE INDEX jobs_done ON jobs (owner, finished, sequence, bytes, state) WHERE state = 'done'",
    """CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (job, number)
    )""",
    INIT_IMAGES,
    f"PRAGMA user_version = {VERSION}",
)
TABLES = {"jobs", "images"}  # of every version
NEW_COLUMNS = (
    "client TEXT NOT NULL DEFAULT ''",
    "previews INTEGER NOT NULL DEFAULT 0",
    "priority TEXT NOT NULL DEFAULT 'interactive'",
    "model TEXT",
    "plan_id TEXT",
    "cost REAL NOT NULL DEFAULT 0",
    "trace TEXT",
    "worker TEXT",
    "lease REAL",
    "steps_done INTEGER NOT NULL DEFAULT 0",
)
UPGRADES = {  # statements that make the next version of one
    3: (INIT_IMAGES,),
    4: tuple(f"ALTER TABLE jobs ADD COLUMN {column}" for column in NEW_COLUMNS),
}
SQLiteValue = str | bytes | int | float | None
MAX_PROBLEMS = 5  # that a check lists
PRIVATE = 0o600  # mode of a new file, since it holds prompts and images; SQLite copies it to the files beside it
WAL_BYTES = 16 << 20  # size of the log on disk after a burst

ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing to it; a store belongs to one server",
    sqlite3.SQLITE_FULL: "free disk space, or keep fewer images",
    sqlite3.SQLITE_READONLY: "the file and its directory must be writable",
    sqlite3.SQLITE_IOERR: "the disk fails or is full; the kernel's log says more",
    sqlite3.SQLITE_CANTOPEN: "its directory must exist and be writable",
    sqlite3.SQLITE_CORRUPT: "put a copy in its place, or move it away to begin with an empty store",
    sqlite3.SQLITE_NOTADB: "name another file, or move it away to begin with an empty store",
}


class Database:
    """One connection, which any thread may use, but only one at a time.

    Args:
        path: the file, created if it does not exist; None for memory.
        busy_timeout: seconds to wait for another process.

    Raises:
        StoreUnavailable: there is no such directory, or the file is damaged, of another version or no store at all.
    """

    def __init__(self, path: Path | None, busy_timeout: float) -> None:
        self.is_in_memory = path is None
        self.path = path
        self._checking: sqlite3.Connection | None = None
        self._name = f"the job store {path or 'in memory'}"
        if path is not None:
            _make_private(path)
        with _explained(self._name):
            self.connection = _connect(path, busy_timeout, self._name)

    def rows(self, sql: str, *values: SQLiteValue) -> list[sqlite3.Row]:
        with _explained(self._name):
            return self.connection.execute(sql, values).fetchall()

    def change(self, sql: str, *values: SQLiteValue) -> bool:
        """Change at most one row, in a transaction. False: there was none to change."""
        with self.transaction() as connection:
            return connection.execute(sql, values).rowcount == 1

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Exclude other writers from the first read on; undo everything if the block raises."""
        with _explained(self._name), self.connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def shrink(self, pages: int) -> None:
        """Give free pages back to the file system."""
        with _explained(self._name):
            # not `execute`, which stops after one page
            self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    def check(self) -> list[str]:
        """Return what is wrong with the file, such as lost pages. May run beside other calls; `close` ends it.

        It reads the whole file: 1 GiB takes 0.3 s from memory, and as long as the disk takes otherwise.
        """
        if self.path is None:
            return []
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        with _explained(self._name), closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
            self._checking = connection
            try:
                found = [text for (text,) in connection.execute(f"PRAGMA quick_check({MAX_PROBLEMS})")]
            finally:
                self._checking = None
        return [] if found == ["ok"] else [f"{self._name} is damaged: {text}" for text in found]

    def close(self) -> None:
        if (checking := self._checking) is not None:
            with suppress(sqlite3.ProgrammingError):  # closed in the meantime
                checking.interrupt()
        self.connection.close()


def open_private(path: str, flags: int) -> int:
    """Open a file that only its owner may read if it is new. An opener for `open`."""
    return os.open(path, flags, PRIVATE)


def _make_private(path: Path) -> None:
    """Create a file that only its owner may read; warn if there is one that others may read."""
    with suppress(OSError):  # SQLite opens the file again, and its errors have advice
        os.close(open_private(str(path.resolve()), os.O_CREAT | os.O_EXCL))
    with suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("%s has mode %o: other users can read the prompts and images in it; chmod 600 it", path, mode)


def _connect(path: Path | None, busy_timeout: float, name: str) -> sqlite3.Connection:
    with ExitStack() as undo:
        connection = sqlite3.connect(
            path or ":memory:", timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        connection.row_factory = sqlite3.Row
        # keeps bytes that are no UTF-8, since an error would be of the whole query, not of its damaged row
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # first: it cannot be changed once there is a page
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        _create_schema(connection, name)
        undo.pop_all()
        return connection


def _create_schema(connection: sqlite3.Connection, name: str) -> None:
    """Create the tables of a new file, or add what is new to those of an earlier version; refuse other files."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # of two processes that open a new file, one creates the tables
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        while version in UPGRADES and tables >= TABLES:
            log.info("%s has schema %d; it is carried over to schema %d", name, version, version + 1)
            for statement in (*UPGRADES[version], f"PRAGMA user_version = {version + 1}"):
                connection.execute(statement)
            version += 1
        if version not in (0, VERSION):
            raise StoreUnavailable(
                f"{name} has schema {version}, but this zimage-trt reads schema {VERSION};"
                " start the zimage-trt that wrote it, or name another file"
            )
        if version == 0 and tables:
            raise StoreUnavailable(f"{name} is a database of another program; name another file")
        if version == 0:
            for statement in SCHEMA:
                connection.execute(statement)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise StoreUnavailable, with advice, for errors of the file, the disk or another process; leave other errors."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the higher bits are details
        if primary not in ADVICE:
            raise
        raise StoreUnavailable(f"{name}: {error}; {ADVICE[primary]}") from error

"""The SQLite file of a job store: how it is opened, and its errors with advice.

Knows no jobs.
"""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from server.errors import StoreUnavailable
from server.jobs.storage.databases.database import Database, Fragments, Lock, Row, Value
from server.jobs.storage.databases.schema import TABLES, UPGRADES, VERSION

log = logging.getLogger(__name__)

OLDEST_TABLES = {"jobs", "images"}  # of every version
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


FRAGMENTS = Fragments(
    now="unix_time()",
    for_update="",  # a transaction excludes all other writers
    greatest="max",
    request_bytes="length(CAST(request AS BLOB))",
    # neither expression reads an image
    whole_image="typeof(data) = 'blob' AND json_valid(metadata)",
    using_jobs_done="INDEXED BY jobs_done",
    using_jobs_without_result="INDEXED BY jobs_without_result",
    counter="INTEGER PRIMARY KEY AUTOINCREMENT",
    integer="INTEGER",
    real="REAL",
    blob="BLOB",
)


class SqliteDatabase(Database):
    """One connection, which any thread may use, but only one at a time.

    Args:
        path: the file, created if it does not exist; None for memory.
        busy_timeout: seconds to wait for another process.
        clock: returns unix seconds.

    Raises:
        StoreUnavailable: there is no such directory, or the file is damaged, of another version or no store at all.
    """

    def __init__(self, path: Path | None, busy_timeout: float, clock: Callable[[], float]) -> None:
        super().__init__(FRAGMENTS)
        self.is_in_memory = path is None
        self.path = path
        self._clock = clock
        self._checking: sqlite3.Connection | None = None
        self._name = f"the job store {path or 'in memory'}"
        if path is not None:
            _make_private(path)
        with _explained(self._name):
            self.connection = _connect(path, busy_timeout)
            try:
                self.connection.create_function("unix_time", 0, clock)
                self._create_schema()
            except BaseException:
                self.connection.close()
                raise

    def rows(self, sql: str, *values: Value) -> list[Row]:
        with _explained(self._name):
            cursor = self.connection.execute(self.translated(sql), values)
            names = [name for name, *_ in cursor.description or ()]
            # not sqlite3.Row, which searches its columns for each name
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def execute(self, sql: str, *values: Value) -> int:
        with _explained(self._name):
            return self.connection.execute(self.translated(sql), values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with _explained(self._name), self.connection as connection:
            connection.execute("BEGIN IMMEDIATE")  # excludes other writers from the first read on
            yield

    def lock(self, lock: Lock) -> None:
        """Do nothing, since the transaction excludes all other writers."""

    def try_lock(self, lock: Lock) -> bool:  # noqa: ARG002
        return True

    def now(self) -> float:
        return self._clock()

    def shrink(self, pages: int) -> None:
        """Give free pages back to the file system."""
        with _explained(self._name):
            # not `execute`, which stops after one page
            self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    def check(self) -> list[str]:
        """Return what is wrong with the file, such as lost pages.

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
        """Close the file, and end a check that runs."""
        if (checking := self._checking) is not None:
            with suppress(sqlite3.ProgrammingError):  # closed in the meantime
                checking.interrupt()
        self.connection.close()

    def _create_schema(self) -> None:
        """Create the tables of a new file, or add what is new to those of an earlier version; refuse other files."""
        with self.transaction():  # of two processes that open a new file, one creates the tables
            found = version = self.rows("PRAGMA user_version")[0]["user_version"]
            tables = {row["name"] for row in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
            while version in UPGRADES and tables >= OLDEST_TABLES:
                log.info("%s has schema %d; it is carried over to schema %d", self._name, version, version + 1)
                for statement in UPGRADES[version]:
                    self.execute(statement)
                version += 1
            if version not in (0, VERSION):
                raise StoreUnavailable(
                    f"{self._name} has schema {version}, but this zimage-trt reads schema {VERSION};"
                    " start the zimage-trt that wrote it, or name another file"
                )
            if version == 0 and tables:
                raise StoreUnavailable(f"{self._name} is a database of another program; name another file")
            if version == 0:
                for statement in TABLES:
                    self.execute(statement)
            if found != VERSION:
                self.execute(f"PRAGMA user_version = {VERSION}")


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


def _connect(path: Path | None, busy_timeout: float) -> sqlite3.Connection:
    with ExitStack() as undo:
        connection = sqlite3.connect(
            path or ":memory:", timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        # keeps bytes that are no UTF-8, since an error would be of the whole query, not of its damaged row
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # first: it cannot be changed once there is a page
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        undo.pop_all()
        return connection


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

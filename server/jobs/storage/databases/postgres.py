"""A job store in PostgreSQL: transactions, its schema, and its errors with advice. Knows no jobs.

Connections are opened when they are needed and lost ones are replaced, so that a store works again as soon as its
server does.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from server.errors import StoreUnavailable
from server.jobs.storage.databases.database import Database, Fragments, Lock, Row, Value
from server.jobs.storage.databases.postgres_connections import Connection, Connections
from server.jobs.storage.databases.schema import (
    POSTGRES_TABLES,
    POSTGRES_UPGRADES,
    READABLE_FROM,
    TABLES,
    UPGRADES,
    VERSION,
)

log = logging.getLogger(__name__)

LOCK_SPACE = 0x7A69  # of the advisory locks, so that they are not those of another program in the same database
SCHEMA_VERSION = "CREATE TABLE schema_version (version {integer} NOT NULL, readable_from {integer} NOT NULL)"
LOST = "the connection was lost; the next call connects again"
ADVICE = {  # by the code of an error, or its class
    "08": LOST,
    "57": "it stops, starts or is being restarted; the next call tries again",
    "53100": "free disk space on its machine, or keep fewer images",
    "53200": "its machine is short of memory",
    "53300": "raise its max_connections, or run fewer processes",
    "58": "its disk fails; its log says more",
    "XX": "its data are damaged; its log says more",
    "40": "another process changed the same rows; the next call tries again",
    "55P03": "another process holds a lock for long; the next call tries again",
    "25P03": "this process paused in the middle of a transaction, which was undone",
    "25006": "it is a read-only standby; name the primary",
    "42501": "its user must own the tables, or be allowed to create them in the schema `public`",
}
FRAGMENTS = Fragments(
    now="CAST(extract(epoch FROM statement_timestamp()) AS double precision)",
    for_update="FOR UPDATE",
    greatest="greatest",
    request_bytes="octet_length(request)",
    whole_image="true",
    using_jobs_done="",
    using_jobs_without_result="",
    counter="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    integer="BIGINT",
    real="DOUBLE PRECISION",
    blob="BYTEA",
)


class PostgresDatabase(Database):
    """A database that many processes share. For any number of threads.

    Args:
        url: such as postgresql://user:password@host:5432/name, with any of libpq's parameters.
        timeout: seconds to wait for a connection or a lock.

    Raises:
        StoreUnavailable: the server does not answer, or the database is of another version or another program.
    """

    is_shared = True

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(FRAGMENTS)
        self._thread = threading.local()  # its transaction's connection
        self._connections = Connections(url, timeout)
        self._name = f"the job store {self._connections}"
        try:
            self._create_schema()
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, *values: Value) -> list[Row]:
        with self._connection() as connection:
            return self._run(connection, sql, values).fetchall()

    def execute(self, sql: str, *values: Value) -> int:
        with self._connection() as connection:
            return self._run(connection, sql, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._connection() as connection, connection.transaction():
            self._thread.connection = connection
            try:
                yield
            finally:
                self._thread.connection = None

    def lock(self, lock: Lock) -> None:
        self.rows("SELECT pg_advisory_xact_lock(?, ?)", LOCK_SPACE, lock.value)

    def try_lock(self, lock: Lock) -> bool:
        taken: bool = self.rows("SELECT pg_try_advisory_xact_lock(?, ?) AS taken", LOCK_SPACE, lock.value)[0]["taken"]
        return taken

    def now(self) -> float:
        now: float = self.rows("SELECT {now} AS now")[0]["now"]
        return now

    def close(self) -> None:
        self._connections.close()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Yield the connection of the thread's transaction, or any."""
        in_transaction: Connection | None = getattr(self._thread, "connection", None)
        with _explained(self._name):
            if in_transaction is not None:
                yield in_transaction
            else:
                with self._connections.take() as connection:
                    yield connection

    def _run(self, connection: Connection, sql: str, values: tuple[Value, ...]) -> psycopg.Cursor[dict[str, Any]]:
        # a text with NUL, as of a request for an unknown id, would be an error; nothing that is stored has one
        given = tuple(
            value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value for value in values
        )
        # A prepared statement begins with its values: while those of an image come slowly, the server would count the
        # transaction as idle, and end it after STOPPED_SECONDS
        prepare = False if any(isinstance(value, bytes) for value in given) else None
        # binary: an image would be sent as text of twice its size
        return connection.execute(self.translated(sql), given, prepare=prepare, binary=True)

    def _translated(self, sql: str) -> str:
        return super()._translated(sql).replace("%", "%%").replace("?", "%s")

    def _create_schema(self) -> None:
        """Create the tables of an empty database, or add what is new to those of an earlier version.

        A database of a newer version is used if its `readable_from` allows it. So the processes of a fleet can be
        upgraded one after the other.
        """
        with self.transaction():
            self.lock(Lock.SCHEMA)
            if self._has_table("schema_version"):
                found = self.rows("SELECT version, readable_from FROM schema_version")[0]
                self._upgrade(found["version"], found["readable_from"])
                return
            if self._has_table("jobs"):
                raise StoreUnavailable(f"{self._name} is a database of another program; name another one")
            for statement in (*TABLES, *POSTGRES_TABLES, SCHEMA_VERSION):
                self.execute(statement)
            self.execute("INSERT INTO schema_version (version, readable_from) VALUES (?, ?)", VERSION, READABLE_FROM)

    def _upgrade(self, version: int, readable_from: int) -> None:
        if version > VERSION and readable_from <= VERSION:
            log.info("%s has schema %d, which this zimage-trt can use", self._name, version)
            return
        if version > VERSION:
            raise StoreUnavailable(
                f"{self._name} has schema {version}, but this zimage-trt reads schema {VERSION};"
                " start the zimage-trt that wrote it, or name another database"
            )
        while version < VERSION:
            log.info("%s has schema %d; it is carried over to schema %d", self._name, version, version + 1)
            for statement in (*UPGRADES[version], *POSTGRES_UPGRADES.get(version, ())):
                self.execute(statement)
            version += 1
            self.execute("UPDATE schema_version SET version = ?, readable_from = ?", version, READABLE_FROM)

    def _has_table(self, name: str) -> bool:
        return self.rows("SELECT to_regclass(?) IS NOT NULL AS found", name)[0]["found"] is True


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise StoreUnavailable, with advice, for errors of the server, the network or another process; leave others."""
    try:
        yield
    except psycopg.Error as error:
        code = error.sqlstate or ""
        advice = ADVICE.get(code) or ADVICE.get(code[:2])
        if advice is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            advice = LOST
        if advice is None:
            raise
        raise StoreUnavailable(f"{name}: {' '.join(str(error).split())}; {advice}") from error

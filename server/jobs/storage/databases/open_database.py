"""The database that a setting names."""

import time
from collections.abc import Callable
from pathlib import Path

from server.jobs.storage.databases.database import Database
from server.jobs.storage.databases.sqlite import SqliteDatabase

SERVER = ("postgresql://", "postgres://")


def open_database(
    database: Path | str | None, busy_timeout: float = 5.0, clock: Callable[[], float] = time.time
) -> Database:
    """Open a database, and create its tables if it has none.

    Args:
        database: an SQLite file, created if it does not exist; a URL such as postgresql://user:password@host/name; None
            for memory.
        busy_timeout: seconds to wait for another process, or for the server.
        clock: of SQLite; returns unix seconds. PostgreSQL has its own.

    Raises:
        StoreUnavailable: there is no such directory or server, or the database is damaged, of another version or no
            store at all.
    """
    if isinstance(database, str) and database.startswith(SERVER):
        from server.jobs.storage.databases.postgres import PostgresDatabase  # not installed where there is no fleet

        return PostgresDatabase(database, busy_timeout)
    return SqliteDatabase(None if database is None else Path(database), busy_timeout, clock)

"""Databases for tests of stores: both kinds, with a clock that a test sets."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from server.jobs.storage.databases.database import Database
from server.jobs.storage.databases.postgres import PostgresDatabase
from server.jobs.storage.store import JobStore

EMPTY = b"""
    DELETE FROM jobs; DELETE FROM deleted_images; DELETE FROM workers; DELETE FROM shares; DELETE FROM virtual_times;
    DELETE FROM rates; UPDATE janitor SET last_run = 0; ALTER TABLE jobs ALTER sequence RESTART
"""


class ClockedPostgres(PostgresDatabase):
    """A PostgreSQL database that goes by a clock of the test."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        super().__init__(url, 5.0)
        self._clock = clock
        self.translated = self._at_this_time  # not remembered, since the time is in the statement

    def _at_this_time(self, sql: str) -> str:
        self._fragments["now"] = f"CAST({self._clock()!r} AS double precision)"
        return self._translated(sql)


@dataclass(frozen=True)
class Place:
    """The database of a test's jobs. Each call of `open` makes another store, with connections of its own."""

    database: Path | str

    @property
    def is_shared(self) -> bool:
        return isinstance(self.database, str)

    def open(self, clock: Callable[[], float] | None = None, monotonic: Callable[[], float] | None = None) -> JobStore:
        clocks = {} if monotonic is None else {"monotonic": monotonic}
        if clock is None:
            return JobStore(self.database, **clocks)
        if isinstance(self.database, str):
            return JobStore(ClockedPostgres(self.database, clock), **clocks)
        return JobStore(self.database, clock=clock, **clocks)


def wait_until_blocked(database: Database, calls: int = 1) -> None:
    """Wait until so many calls of other threads wait for locks in a PostgreSQL database."""
    until = time.monotonic() + 10
    while (found := len(database.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))) < calls:
        assert time.monotonic() < until, f"{found} calls wait for locks"
        time.sleep(0.01)


def empty(url: str) -> None:
    """Delete all rows of a store, which is much faster than a new database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(EMPTY)

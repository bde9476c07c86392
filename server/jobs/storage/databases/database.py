"""The seam between a job store and its database: statements in SQL that SQLite and PostgreSQL share.

Knows no jobs. What differs between the two has a name in braces, such as {now}; see `Fragments`.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # values by the names of the columns
Value = str | bytes | int | float | list[str] | list[int] | None  # lists: PostgreSQL only
TRANSLATIONS = 512  # statements that are remembered; few have more than one form


class Lock(IntEnum):
    """Locks for work that one process does at a time. A lock ends with its transaction."""

    SCHEMA = 1
    ADMISSION = 2
    CLAIM = 3
    JANITOR = 4
    PRUNER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragments:
    """SQL of one dialect.

    Attributes:
        now: unix seconds by the clock that the store goes by.
        for_update: locks the rows of a SELECT until the end of the transaction.
        greatest: name of the function that returns the greatest of its arguments.
        request_bytes: bytes of the column `request`.
        whole_image: condition for a row of `images` that can be read.
        using_jobs_done, using_jobs_without_result: hints to use these indices.
        counter, integer, real, blob: types of columns.
    """

    now: str
    for_update: str
    greatest: str
    request_bytes: str
    whole_image: str
    using_jobs_done: str
    using_jobs_without_result: str
    counter: str
    integer: str
    real: str
    blob: str


class Database(ABC):
    """Statements and transactions. Every method may raise StoreUnavailable, with advice.

    Attributes:
        path: the file; None for memory or a server.
        is_in_memory: True if its content ends with the process.
        is_shared: True if other processes use it at the same time.
    """

    path: Path | None = None
    is_in_memory = False
    is_shared = False

    def __init__(self, fragments: Fragments) -> None:
        self._fragments = asdict(fragments)
        self.translated = lru_cache(TRANSLATIONS)(self._translated)

    @abstractmethod
    def rows(self, sql: str, *values: Value) -> list[Row]:
        """Run a statement, in the thread's transaction if there is one, and return its rows."""

    @abstractmethod
    def execute(self, sql: str, *values: Value) -> int:
        """Run a statement, in the thread's transaction if there is one, and return the number of changed rows."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Run the statements of the block as one; undo everything if it raises. SQLite excludes all other writers."""

    @abstractmethod
    def lock(self, lock: Lock) -> None:
        """Wait until no other transaction has this lock, and keep it until the end of this one."""

    @abstractmethod
    def try_lock(self, lock: Lock) -> bool:
        """Take a lock until the end of the transaction. False: another has it."""

    @abstractmethod
    def now(self) -> float:
        """Return the time in unix seconds."""

    @abstractmethod
    def close(self) -> None: ...

    def shrink(self, pages: int) -> None:  # noqa: B027  # a server does this by itself
        """Give free pages back to the file system."""

    def check(self) -> list[str]:
        """Return what is wrong with the file. May run beside other calls; `close` ends it."""
        return []

    def _translated(self, sql: str) -> str:
        return sql.format_map(self._fragments)


def placeholders(count: int) -> str:
    """Return the list of so many values for `IN`."""
    return ", ".join("?" * count)

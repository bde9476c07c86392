"""Connections to a PostgreSQL server, kept for the next call. Knows no statements.

psycopg_pool is not used: while the server is down it makes each caller wait for the whole timeout, does not say why,
and tries again ever more seldom. Here a call that needs a connection makes one, and raises what is wrong at once.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from server.errors import StoreUnavailable

MAX_CONNECTIONS = 10  # of this process; PostgreSQL allows 100 of all processes together
TRUSTED_SECONDS = 1.0  # a connection that was idle for longer is tried first, since the server may have been restarted
STOPPED_SECONDS = 10.0  # after which the server ends the transaction of a process that stopped in the middle of it
DEFAULTS: dict[str, str | int] = {
    "application_name": "zimage-trt",
    "client_encoding": "UTF8",
    # a connection whose network is cut fails after about 11 s
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,
}

Connection = psycopg.Connection[dict[str, Any]]


class Connections:
    """Up to MAX_CONNECTIONS connections of one process. `str` names the database, without the password.

    Args:
        url: for libpq.
        timeout: seconds to wait for a connection, and for a lock.

    Raises:
        StoreUnavailable: it is no URL that libpq understands.
    """

    def __init__(self, url: str, timeout: float) -> None:
        given = _parse(url)
        host, port = given.get("host", "localhost"), given.get("port", 5432)
        self._name = f"postgresql://{host}:{port}/{given.get('dbname', '')}"
        defaults = DEFAULTS | {"connect_timeout": max(2, math.ceil(timeout))}
        self._conninfo = make_conninfo(url, **{name: value for name, value in defaults.items() if name not in given})
        self._timeout = timeout
        self._idle: deque[tuple[Connection, float]] = deque()  # with the times of their last use; the newest is last
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._is_closed = False

    def __str__(self) -> str:
        return self._name

    @contextmanager
    def take(self) -> Iterator[Connection]:
        """Yield a connection that no other thread has. Statements outside of a transaction are committed at once.

        Raises:
            StoreUnavailable: there is none within the timeout, or the server refuses it.
        """
        if not self._free.acquire(timeout=self._timeout):
            raise StoreUnavailable(f"all {MAX_CONNECTIONS} connections to {self} are in use; try again later")
        try:
            connection = self._known() or self._connect()
            try:
                yield connection
            finally:
                self._keep(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop()[0].close()

    def _known(self) -> Connection | None:
        """Return an idle connection that works."""
        while self._idle:
            try:
                connection, used = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            if time.monotonic() - used < TRUSTED_SECONDS or _works(connection):
                return connection
            connection.close()
        return None

    def _connect(self) -> Connection:
        try:
            connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=dict_row)
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"cannot connect to {self}: {' '.join(str(error).split())}; start the server, or correct the"
                " host, port, user, password and name in the URL of the database"
            ) from error
        limits = f"SET lock_timeout = {round(self._timeout * 1000)}; "
        limits += f"SET idle_in_transaction_session_timeout = {round(STOPPED_SECONDS * 1000)}"
        with ExitStack() as undo:
            undo.callback(connection.close)
            connection.execute(limits.encode())
            undo.pop_all()
        return connection

    def _keep(self, connection: Connection) -> None:
        if self._is_closed or connection.info.transaction_status != TransactionStatus.IDLE:
            connection.close()
        else:
            self._idle.append((connection, time.monotonic()))


def _parse(url: str) -> dict[str, Any]:
    """Return the parameters of a URL. Its errors quote nothing of it, since a part may be of the password."""
    given = {}
    with suppress(psycopg.Error, UnicodeError):
        given = conninfo_to_dict(url)
    ports = str(given.get("port", 0)).split(",")
    if not given or not all(port.isdecimal() for port in ports) or "@" in f"{given.get('host')}{given.get('dbname')}":
        raise StoreUnavailable(
            "the URL of the database is not valid; write postgresql://user:password@host:port/name, "
            "with special characters of the password as %40, %2F, %23"
        )
    return given


def _works(connection: Connection) -> bool:
    try:
        connection.execute("")
    except psycopg.Error:
        return False
    return True

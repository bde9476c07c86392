"""Limits of open connections, in all and per client. Knows connections and addresses; no requests."""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Container
from typing import Any, Protocol

import uvicorn

from server.api.client import network_of

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0  # seconds


class Connection(Protocol):
    """Connection of a client."""

    transport: asyncio.Transport

    @property
    def address(self) -> str: ...

    @property
    def is_idle(self) -> bool:
        """True if no request is being answered."""
        ...


class Connections:
    """Counts open connections and decides which new ones are served.

    When there are too many in all, the connection that has been idle for longest is closed for the new one.

    Args:
        most: maximum number of connections.
        per_address: maximum number for an IPv4 address or an IPv6 /64 network.
        proxies: addresses that may have more.
    """

    def __init__(self, most: int, per_address: int = 128, proxies: Container[str] = ()) -> None:
        self._most, self._per_address, self._proxies = most, per_address, proxies
        self._open: Counter[str] = Counter()  # by network
        self._total = 0
        self._idle: OrderedDict[Connection, None] = OrderedDict()  # those idle for longest first; some are busy again
        self._log_due = -math.inf
        self._refused = 0  # since the last line in the log

    def add(self, connection: Connection) -> bool:
        """Count a new connection; return False if it must be closed."""
        network = network_of(connection.address)
        if self._open[network] >= self._per_address and connection.address not in self._proxies:
            self._log_refusal(f"{network} has {self._per_address} already")
            return False
        if self._total >= self._most and not self._close_idle():
            self._log_refusal(f"all {self._most} are in use")
            return False
        self._total += 1
        self._open[network] += 1
        self.set_idle(connection)
        return True

    def set_idle(self, connection: Connection) -> None:
        """Note that a connection waits for a request from now on."""
        self._idle[connection] = None
        self._idle.move_to_end(connection)

    def remove(self, address: str) -> None:
        """Note that a connection, which `add` has counted, is closed."""
        network = network_of(address)
        self._total -= 1
        self._open[network] -= 1
        if not self._open[network]:
            del self._open[network]

    def forget(self, connection: Connection) -> None:
        """Note that a connection is closed or has become a WebSocket."""
        self._idle.pop(connection, None)

    def _close_idle(self) -> bool:
        while self._idle:
            connection, _ = self._idle.popitem(last=False)
            if connection.is_idle:
                connection.transport.close()
                return True
        return False

    def _log_refusal(self, reason: str) -> None:
        self._refused += 1
        if (now := time.monotonic()) >= self._log_due:
            log.warning("Refused %d connections; the last: %s", self._refused, reason)
            self._log_due, self._refused = now + LOG_INTERVAL, 0


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration with the server's connections."""

    def __init__(self, app: Any, connections: Connections, **options: Any) -> None:
        super().__init__(app, **options)
        self.connections = connections

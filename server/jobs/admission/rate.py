"""Rate limits of clients. Knows names of clients and a monotonic clock; no requests."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}  # seconds
MAX_CLIENTS = 65_536  # whose requests are remembered; about 12 MB


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of requests in a time in seconds. `str` is the text that `parse` reads."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        unit = next(name for name, seconds in UNITS.items() if seconds == self.seconds)
        return f"{self.amount}/{unit}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rate such as "30/minute".

        Raises:
            ValueError: it is something else.
        """
        if not (match := re.fullmatch(rf"([1-9][0-9]{{0,8}})/({'|'.join(UNITS)})", text)):
            raise ValueError(f"must be a number per second, minute, hour or day, such as 30/minute; got {text!r}")
        return cls(int(match[1]), UNITS[match[2]])


class RateLimiter:
    """Limits the rate of each client by the generic cell rate algorithm.

    A client that has been quiet may send `amount` requests at once, and then one in every `seconds / amount`. The state
    of a client is one number.

    Args:
        clock: returns nanoseconds; changes of the system's time do not move it.
    """

    def __init__(self, rate: Rate, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._window = rate.seconds * 10**9
        self._interval = self._window // rate.amount
        self._due: OrderedDict[str, int] = (
            OrderedDict()
        )  # time at which a client has all its requests again; by its last request

    def hit(self, client: str) -> float:
        """Count a request and return 0; or return the seconds until the next one is allowed."""
        now = self._clock()
        self._forget(now)
        due = max(self._due.get(client, now), now) + self._interval
        if due > now + self._window:
            return (due - now - self._window) / 1e9
        self._due[client] = due
        self._due.move_to_end(client)
        return 0.0

    def _forget(self, now: int) -> None:
        """Forget clients that have all their requests again, and the first of too many."""
        while self._due:
            first = next(iter(self._due))
            if self._due[first] > now and len(self._due) < MAX_CLIENTS:
                return
            del self._due[first]

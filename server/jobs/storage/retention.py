"""The policy by which old jobs and images are deleted: by age and by size. Knows no places where they are kept."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

HOUR, DAY = 3600.0, 86400.0  # seconds
PRUNE_EVERY = 600.0  # seconds between two prunings, unless much is new


class Kept(Protocol):
    """Something that is kept for a time.

    Attributes:
        time: unix seconds from which its age counts.
        size: bytes.
    """

    @property
    def time(self) -> float: ...

    @property
    def size(self) -> int: ...


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of what is kept.

    Attributes:
        max_age: seconds; infinite for no limit.
        max_bytes: of everything together; infinite for no limit.
    """

    max_age: float = 7 * DAY
    max_bytes: float = math.inf

    def expired(self, items: Iterable[K], now: float, total: int) -> list[K]:
        """Return what to delete: all that is too old, then the oldest until the rest fits.

        Args:
            items: oldest first; the oldest ones are enough.
            now: unix seconds.
            total: bytes that count against `max_bytes`, with those of `items`.
        """
        found: list[K] = []
        for item in items:
            if now - item.time <= self.max_age and total <= self.max_bytes:
                break
            found.append(item)
            total -= item.size
        return found

    def is_due(self, new_bytes: int) -> bool:
        """Return True if so much is new that pruning should not wait for PRUNE_EVERY."""
        return new_bytes > self.max_bytes / 8


class ClockGuard:
    """Stops deletion by age for a day after the clock has jumped ahead, since a wrong clock makes everything old.

    A server that was off for long looks the same. What is too old is then kept for another day.

    Args:
        name: of what is kept, for the log.
        monotonic: returns seconds that no one sets.
    """

    def __init__(self, name: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._name, self._monotonic = name, monotonic
        self._last: tuple[float, float] | None = None  # readings of both clocks
        self._held_until = -math.inf  # by the monotonic clock

    def apply(self, retention: Retention, now: float, newest: float | None) -> Retention:
        """Return the limits that hold now: without an age while the clock is not trusted.

        Args:
            now: unix seconds.
            newest: time of the newest thing that is kept, for the first call; None if nothing is kept.
        """
        monotonic = self._monotonic()
        if self._last is not None:
            jump = now - self._last[0] - (monotonic - self._last[1])
        else:
            jump = 0.0 if newest is None else now - newest
        self._last = now, monotonic
        held = min(DAY, retention.max_age)
        if held and jump > max(retention.max_age / 2, HOUR):
            self._held_until = monotonic + held
            log.warning(
                "%s: the clock is %.1f days ahead of what is kept. It is wrong, or the server was off for so long. "
                "Nothing is deleted by age for %.1f hours; if the clock is wrong, set it and restart the server.",
                self._name,
                jump / DAY,
                held / HOUR,
            )
        return replace(retention, max_age=math.inf) if monotonic < self._held_until else retention

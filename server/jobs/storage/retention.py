"""The policy by which old jobs and images are deleted: by age and by size. Knows no places where they are kept."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

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


class ClockReading(msgspec.Struct):
    """Readings of a `ClockGuard` that outlive restarts, in unix seconds.

    Attributes:
        seen: time of the last reading.
        held_until: time until which nothing is deleted by age; None if the clock is trusted.
    """

    seen: float
    held_until: float | None = None


class ClockGuard:
    """Stops deletion by age for a day after the clock has jumped ahead, since a wrong clock makes everything old.

    A server that was off for long looks the same. What is too old is then kept for another day.

    Args:
        name: of what is kept, for the log.
        file: keeps the last reading over restarts; None to keep it in memory only.
        monotonic: returns seconds that no one sets.
    """

    def __init__(self, name: str, file: Path | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._name, self._file, self._monotonic = name, file, monotonic
        self._last: ClockReading | None = None
        self._elapsed_from = 0.0  # monotonic time of the last reading

    def apply(self, retention: Retention, now: float, newest: float | None) -> Retention:
        """Return the limits that hold now: without an age while the clock is not trusted.

        Args:
            now: unix seconds.
            newest: time of the newest thing that is kept, if there is no earlier reading; None if nothing is kept.
        """
        monotonic = self._monotonic()
        if self._last is None:
            last = self._read() or ClockReading(now if newest is None else newest)
            jump = now - last.seen
        else:
            last = self._last
            jump = now - last.seen - (monotonic - self._elapsed_from)
        held = min(DAY, retention.max_age)
        held_until = last.held_until
        if held_until is not None and not held_until - held <= now < held_until:  # over, or the clock was set back
            held_until = None
        if held and jump > max(retention.max_age / 2, HOUR):
            held_until = now + held
            log.warning(
                "%s: the clock is %.1f days ahead of what is kept. It is wrong, or the server was off for so long. "
                "Nothing is deleted by age for %.1f hours; if the clock is wrong, set it and restart the server.",
                self._name,
                jump / DAY,
                held / HOUR,
            )
        self._last, self._elapsed_from = ClockReading(now, held_until), monotonic
        self._write(self._last)
        return retention if held_until is None else replace(retention, max_age=math.inf)

    def _read(self) -> ClockReading | None:
        if self._file is None:
            return None
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=ClockReading)
        except (OSError, msgspec.DecodeError):  # none yet, or damaged
            return None

    def _write(self, reading: ClockReading) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk; the next reading is written again
                self._file.write_bytes(msgspec.json.encode(reading))

"""The policy by which old jobs and images are deleted: by age and by size. Knows no places where they are kept."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

DAY = 86400.0  # seconds
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

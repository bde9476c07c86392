"""Times of many runs as a median and percentiles."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds of `runs` runs. A percentile that would equal the slowest run is None.

    That is the case below 20 runs for p95 and below 100 for p99 (nearest rank).
    """

    runs: int
    p50: float
    p95: float | None
    p99: float | None
    slowest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Summarise the seconds of at least one run."""
        ordered = sorted(seconds)
        return cls(
            len(ordered), statistics.median(ordered), _percentile(ordered, 95), _percentile(ordered, 99), ordered[-1]
        )


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    rank = math.ceil(percent * len(ordered) / 100)
    return ordered[rank - 1] if rank < len(ordered) else None

"""Times at which requests arrive when nobody waits for an answer: Poisson processes, also with changing rates."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

HOUR = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate of arrivals that changes with time.

    Attributes:
        at: arrivals per second at a time in seconds.
        peak: the largest value of `at`.
    """

    at: Callable[[float], float]
    peak: float


def poisson(rate: float | RateCurve, rng: random.Random) -> Iterator[float]:
    """Yield the arrival times of a Poisson process without end, in seconds from its start.

    A changing rate thins a process of the peak rate (Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979).

    Raises:
        ValueError: the (peak) rate is not above 0.
    """
    peak = rate.peak if isinstance(rate, RateCurve) else rate
    if not peak > 0:
        raise ValueError(f"the rate of arrivals must be above 0 per second, got {peak:g}")
    return _thinned(rate, peak, rng)


def _thinned(rate: float | RateCurve, peak: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(peak)
        if not isinstance(rate, RateCurve) or rng.random() * peak < rate.at(at):
            yield at


def daily(rates: Sequence[float], start: float = 0.0) -> RateCurve:
    """Return a rate that repeats every day and changes linearly between the hours.

    Args:
        rates: 24 rates in arrivals per second, one at the beginning of each hour.
        start: hour of the day at which the process begins.
    """
    if len(rates) != 24:
        raise ValueError(f"a day has 24 hourly rates, got {len(rates)}")

    def at(seconds: float) -> float:
        hour = (start + seconds / HOUR) % 24
        first, share = int(hour), hour % 1
        return rates[first] * (1 - share) + rates[(first + 1) % 24] * share

    return RateCurve(at, max(rates))


def burst(base: float, factor: float, start: float, length: float) -> RateCurve:
    """Return a rate of `base` per second that is `factor` times as high for `length` seconds from `start` on."""

    def at(seconds: float) -> float:
        return base * factor if start <= seconds < start + length else base

    return RateCurve(at, base * max(factor, 1.0))


def steps(rates: Sequence[tuple[float, float]]) -> RateCurve:
    """Return a rate that is constant in pieces, given as (seconds, arrivals per second); the last goes on."""
    ends = list(accumulate(seconds for seconds, _ in rates))

    def at(seconds: float) -> float:
        return rates[min(bisect_right(ends, seconds), len(rates) - 1)][1]

    return RateCurve(at, max(rate for _, rate in rates))

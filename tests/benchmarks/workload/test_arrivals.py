"""Arrivals of an open loop, against the properties of Poisson processes."""

import random
import statistics
from collections.abc import Iterator
from itertools import pairwise, takewhile

import pytest

from benchmarks.workload.arrivals import RateCurve, burst, daily, poisson, steps


def until(end: float, arrivals: Iterator[float]) -> list[float]:
    return list(takewhile(lambda at: at < end, arrivals))


def test_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    gaps = [later - at for at, later in pairwise(until(1000, poisson(4.0, random.Random(1))))]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.07)


def test_same_seed_gives_the_same_arrivals() -> None:
    first, second = (until(10, poisson(3.0, random.Random(7))) for _ in range(2))
    assert first == second


def test_burst_arrives_at_its_factor() -> None:
    arrivals = until(300, poisson(burst(base=2.0, factor=10.0, start=100.0, length=100.0), random.Random(2)))
    counts = [sum(start <= at < start + 100 for at in arrivals) for start in (0, 100, 200)]
    assert counts[0] == pytest.approx(200, rel=0.2)
    assert counts[1] == pytest.approx(2000, rel=0.1)
    assert counts[2] == pytest.approx(200, rel=0.2)


def test_daily_rate_changes_linearly_and_repeats() -> None:
    curve = daily([float(hour) for hour in range(24)], start=6.0)
    assert curve.at(0) == 6.0
    assert curve.at(1800) == 6.5
    assert curve.at(17.5 * 3600) == 11.5  # between 23 and 0
    assert curve.at(24 * 3600) == 6.0
    assert curve.peak == 23.0


def test_steps_hold_their_rates_and_the_last_goes_on() -> None:
    curve = steps([(10, 1.0), (5, 3.0), (10, 0.5)])
    assert [curve.at(at) for at in (0, 9.9, 10, 14.9, 15, 1000)] == [1.0, 1.0, 3.0, 3.0, 0.5, 0.5]
    assert curve.peak == 3.0


@pytest.mark.parametrize("rate", [0.0, -1.0, RateCurve(lambda _: 0.0, 0.0)])
def test_rate_that_is_not_above_0_is_refused(rate: float | RateCurve) -> None:
    with pytest.raises(ValueError, match="must be above 0 per second, got"):
        poisson(rate, random.Random(1))


def test_day_of_other_than_24_hours_is_refused() -> None:
    with pytest.raises(ValueError, match="24 hourly rates, got 3"):
        daily([1.0, 2.0, 3.0])

"""The policy of what is deleted, by age and by size, and when the clock is not trusted."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.jobs import Clock

from server.jobs.storage.retention import DAY, HOUR, ClockGuard, Retention


@dataclass(frozen=True)
class Item:
    time: float
    size: int = 10


ITEMS = [Item(time) for time in (0.0, 10.0, 20.0, 30.0)]  # 40 bytes


@pytest.mark.parametrize(
    ("retention", "expired"),
    [
        (Retention(), 0),
        (Retention(max_age=15), 2),
        (Retention(max_age=20), 1),  # of exactly the maximum age: kept
        (Retention(max_age=0), 3),
        (Retention(max_bytes=40), 0),
        (Retention(max_bytes=39), 1),
        (Retention(max_bytes=20), 2),
        (Retention(max_bytes=0), 4),
        (Retention(max_age=15, max_bytes=30), 2),  # those that are too old free enough
        (Retention(max_age=20, max_bytes=10), 3),
    ],
)
def test_too_old_items_expire_first_then_the_oldest_until_the_rest_fits(retention: Retention, expired: int) -> None:
    assert retention.expired(ITEMS, now=30.0, total=40) == ITEMS[:expired]


def test_bytes_of_other_items_count_against_the_limit() -> None:
    assert Retention(max_bytes=50).expired(ITEMS[:1], now=30.0, total=1000) == ITEMS[:1]


def test_pruning_is_due_early_after_an_eighth_of_the_limit() -> None:
    assert [Retention(max_bytes=800).is_due(new) for new in (0, 100, 101)] == [False, False, True]
    assert not Retention().is_due(1 << 60)
    assert Retention(max_bytes=0).is_due(1)


WEEK = Retention(7 * DAY)


def ages_allowed(guard: ClockGuard, uptime: Clock, *readings: tuple[float, float]) -> list[bool]:
    """Return if the age counts at each pair of the clock's and the uptime's readings, with a newest thing of 0."""
    found = []
    for now, uptime.now in readings:
        found.append(guard.apply(WEEK, now * DAY, 0.0) == WEEK)
    return found


def test_age_is_held_for_a_day_if_the_clock_is_far_ahead_of_the_newest_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    uptime = Clock()
    guard = ClockGuard("the archive", monotonic=uptime)
    hours = [(10 + hour / 24, hour * HOUR) for hour in range(26)]
    assert ages_allowed(guard, uptime, *hours) == [False] * 24 + [True] * 2
    (logged,) = [record.getMessage() for record in caplog.records]
    assert "the archive: the clock is 10.0 days ahead" in logged and "set it and restart the server" in logged


def test_age_is_held_if_the_clock_runs_away_from_the_uptime() -> None:
    uptime = Clock()
    guard = ClockGuard("the archive", monotonic=uptime)
    readings = [(1.0, 0.0), (2.0, DAY), (12.0, DAY + 600), (12.9, 1.9 * DAY), (13.1, 2.1 * DAY)]
    assert ages_allowed(guard, uptime, *readings) == [True, True, False, False, True]


@pytest.mark.parametrize(
    "readings",
    [
        [(3.4, 0.0)],  # off for less than half of the maximum age
        [(1.0, 0.0), (9.0, 8 * DAY), (30.0, 29 * DAY)],  # nothing new for long, while the server ran
        [(-5.0, 0.0), (-6.0, 60.0)],  # set back
        [(0.5 * night, 100.0 * night) for night in range(20)],  # suspended every night
    ],
)
def test_age_counts_without_a_large_jump(readings: list[tuple[float, float]], caplog: pytest.LogCaptureFixture) -> None:
    uptime = Clock()
    assert all(ages_allowed(ClockGuard("the archive", monotonic=uptime), uptime, *readings))
    assert not caplog.records


@pytest.mark.parametrize(
    ("max_age", "held"), [(0.0, 0.0), (3 * HOUR, 3 * HOUR), (2 * DAY, DAY), (30 * DAY, DAY), (math.inf, 0.0)]
)
def test_age_is_held_no_longer_than_the_maximum_age(max_age: float, held: float) -> None:
    uptime = Clock()
    guard, retention = ClockGuard("the archive", monotonic=uptime), Retention(max_age, 5.0)
    trusted = []
    for uptime.now in (0.0, held - 1, held):
        applied = guard.apply(retention, 1000 * DAY + uptime.now, 0.0)
        assert applied.max_bytes == 5.0, "deletion by size goes on"
        trusted.append(applied == retention)
    assert trusted == [held == 0.0, held == 0.0, True]


def test_nothing_kept_is_no_jump() -> None:
    assert ClockGuard("the archive").apply(WEEK, 1e9, None) == WEEK


def test_restarts_do_not_end_a_hold_and_do_not_hide_a_jump(tmp_path: Path) -> None:
    """Each server has a new monotonic clock; what is kept may be from before or after an earlier jump."""

    def allowed(day: float, newest: float) -> bool:
        guard = ClockGuard("the archive", tmp_path / "clock")
        return guard.apply(WEEK, day * DAY, newest * DAY) == WEEK

    assert allowed(1.0, 1.0)
    assert not allowed(11.0, 1.0)
    assert not allowed(11.1, 11.0), "images of the wrong day make the others no older"
    assert allowed(1.1, 11.0)
    assert not allowed(11.2, 11.1), "the clock was right in between"
    assert not allowed(12.1, 11.1)
    assert allowed(12.3, 11.1)
    (tmp_path / "clock").write_bytes(b"{}")
    assert allowed(12.4, 12.3)

"""The policy of what is deleted, by age and by size."""

from dataclasses import dataclass

import pytest

from server.jobs.storage.retention import Retention


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

"""Sizes share the device's time equally."""

from collections import Counter

import pytest
from fakes.loop_builder import sample

from engine.scheduler.fair_queue import FairQueue


def test_sizes_share_time_equally() -> None:
    queue = FairQueue()
    for number in range(50):
        queue.add(sample(f"large {number}", 512))
    queue.charge((512, 512), 1000.0)  # long before the small sample is queued
    queue.add(sample("small", 64, steps=100))
    order = []
    for _ in range(44):
        first = next(iter(queue))
        order.append(first.samples[0].size[0])
        queue.charge(first.samples[0].size, 10.0 if order[-1] == 512 else 1.0)
    assert order.count(512) == 4 and order.count(64) == 40
    assert 512 in order[:2] and 64 in order[:2]


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_single_user_cannot_exceed_fair_share_by_resubmitting(steps: int) -> None:
    """The last pass of an image leaves its size empty; it is charged all the same."""
    queue, spent = FairQueue(), Counter[int]()
    for number in range(200):
        queue.add(sample(f"small {number}", 64, steps=100))
    queue.add(sample("large", 512, steps))
    while spent.total() < 1000:
        oldest = next(iter(queue)).samples[0]
        side, seconds = oldest.size[0], 10 if oldest.size[0] == 512 else 1
        oldest.branches[0].completed += 1
        if oldest.done == oldest.steps:
            queue.remove(oldest)
        queue.charge(oldest.size, seconds)
        spent[side] += seconds
        if oldest.done == oldest.steps:
            queue.add(sample("again", side, oldest.steps))
    assert abs(spent[512] - spent[64]) <= 10


def test_size_that_returns_keeps_the_charge_of_its_last_pass() -> None:
    queue = FairQueue()
    large = sample("large", 512)
    queue.add(large)
    queue.charge(large.size, 1000.0)
    queue.remove(large)
    queue.charge(large.size, 10.0)  # its last pass
    queue.add(sample("small", 64))
    queue.charge((64, 64), 9.0)
    queue.add(large)
    assert next(iter(queue)).samples != [large]
    queue.charge((64, 64), 2.0)
    assert next(iter(queue)).samples == [large]

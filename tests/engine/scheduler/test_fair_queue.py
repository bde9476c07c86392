"""Clients share the device's time equally, and so do the sizes of one client."""

from collections import Counter

import pytest
from fakes.loop_builder import sample

from engine.fair_order import FairOrder
from engine.scheduler.fair_queue import FairQueue
from engine.scheduler.sample import Sample


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


def run_next(queue: FairQueue) -> Sample | None:
    """Run one pass of the sample that is next, for one second; return the sample if it is finished."""
    first = next(iter(queue)).samples[0]
    queue.start(first)
    branch = first.branches[0]
    branch.enqueued = branch.completed = branch.completed + 1
    queue.charge(first.size, 1.0)
    if first.done < first.steps:
        return None
    queue.remove(first)
    return first


def run(queue: FairQueue, images: int) -> list[Sample]:
    """Return the next finished samples."""
    finished: list[Sample] = []
    while len(finished) < images:
        if found := run_next(queue):
            finished.append(found)
    return finished


@pytest.mark.parametrize("sides", [(64,), (64, 128, 256, 512)], ids=["one size", "four sizes"])
def test_nine_clients_with_one_image_do_not_wait_for_a_client_with_two_hundred(sides: tuple[int, ...]) -> None:
    queue = FairQueue()
    for number in range(200):
        queue.add(sample(f"flood {number}", sides[number % len(sides)], client="flood"))
    run(queue, 3)
    for number in range(9):
        queue.add(sample(f"single {number}", 64, client=f"client {number}"))
    finished = [image.client for image in run(queue, 9 + 2 + len(sides))]
    assert finished.count("flood") <= 2 + len(sides)


def test_clients_with_equal_queues_alternate_between_whole_images() -> None:
    queue = FairQueue()
    for client in "aab":
        queue.add(sample(client, 64, client=client))
    queue.add(sample("b", 64, client="b"))
    assert [image.client for image in run(queue, 4)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("sizes", [1, 5])
def test_client_gets_half_the_time_beside_a_client_with_more_images_and_sizes(sizes: int) -> None:
    queue, spent = FairQueue(), Counter[str]()
    for number in range(100):
        queue.add(sample(f"many {number}", 64 * (1 + number % sizes), client="many"))
    queue.add(sample("single", 64, client="single"))
    for _ in range(400):
        spent[next(iter(queue)).samples[0].client] += 1
        if (finished := run_next(queue)) and finished.client == "single":
            queue.add(sample("single", 64, client="single"))
    assert abs(spent["single"] - 200) <= 20, spent


def test_cancelled_images_do_not_delay_the_next_one_of_their_client() -> None:
    queue = FairQueue()
    waiting = [sample(f"cancelled {number}", 64, client="a") for number in range(50)]
    for image in waiting:
        queue.add(image)
    for number in range(20):
        queue.add(sample(f"b {number}", 64, client="b"))
    for image in waiting:
        queue.remove(image)
    queue.add(sample("wanted", 64, client="a"))
    assert "wanted" in [image.key for image in run(queue, 2)]


def test_short_image_of_another_client_does_not_wait_for_a_long_one_under_way() -> None:
    queue = FairQueue()
    queue.add(sample("long", 64, steps=100, client="a"))
    for _ in range(10):
        run_next(queue)
    queue.add(sample("short", 64, client="b"))
    assert run(queue, 1)[0].key == "short"


def test_stream_of_new_clients_cannot_stop_an_image_under_way() -> None:
    queue = FairQueue()
    queue.add(sample("long", 64, steps=100, client="a"))
    for number in range(1000):
        queue.add(sample(f"short {number}", 64, client=f"client {number}"))
        if "long" in [image.key for image in run(queue, 1)]:
            return
    raise AssertionError("the long image never ended")


def test_images_under_way_are_found_behind_a_long_queue() -> None:
    """Only the images under way have slots, and many clients wait before them."""
    queue = FairQueue()
    queue.add(sample("long", 64, steps=100, client="a"))
    (size,) = queue
    size.take_slots(size.samples[0])
    for number in range(200):
        queue.add(sample(f"short {number}", 64, steps=1, client=f"client {number}"))
    assert [forward.sample.key for forward in size.passes(4, with_slot_only=True)] == ["long"]


def test_fair_order_forgets_clients_whose_work_is_over() -> None:
    order = FairOrder()
    order.add("stays", 1e9)
    for number in range(1000):
        order.add(f"client {number}", 8.0)
        order.advance(16.0)
        order.remove(f"client {number}")
    assert len(order._ends) < 100
    order.remove("stays")
    assert not order._ends

"""Clients share the device's time equally, and so do the sizes of one client."""

from collections import Counter

import pytest
from fakes.loop_builder import sample

from engine.fair_share import MAX_ABSENT, FairShare
from engine.scheduler.fair_queue import ClientShares, FairQueue
from engine.scheduler.sample import Sample

SMALL, LARGE = 64 * 64 / 256 + 32, 512 * 512 / 256 + 32  # tokens


class Device:
    """A queue, and a device that runs one pass at a time, in seconds proportional to its tokens."""

    def __init__(self) -> None:
        self.shares = ClientShares()
        self.queue = FairQueue(self.shares)
        self.spent: Counter[object] = Counter()  # seconds by client and by width

    def add(
        self, key: str, side: int = 64, steps: int = 8, client: str = "", branches: int = 1, factor: float = 1.0
    ) -> Sample:
        added = sample(key, side, steps, client=client, branches=branches)
        added.cost_factor = factor
        self.queue.add(added)
        return added

    def step(self) -> Sample | None:
        """Run a pass of the first sample; return the sample if it is finished."""
        first = self.queue.first
        forward = next(first.ready())
        tokens = first.tokens(forward.branch)
        seconds = tokens / SMALL
        forward.branch.enqueued += 1
        self.queue.charge(first, seconds)
        self.shares.seconds.charge(first.client, first.cost_factor * seconds)
        self.shares.learn(tokens, seconds)
        forward.branch.completed += 1
        self.spent[first.client] += seconds
        self.spent[first.size.width] += seconds
        if first.done < first.steps:
            return None
        self.queue.remove(first)
        return first

    def finish(self, images: int) -> list[Sample]:
        """Return the next finished samples."""
        finished: list[Sample] = []
        while len(finished) < images:
            if found := self.step():
                finished.append(found)
        return finished


def test_sizes_of_one_client_share_time_equally() -> None:
    device = Device()
    for number in range(50):
        device.add(f"large {number}", 512)
    device.finish(2)  # long before the small sample is queued
    device.spent.clear()
    device.add("small", 64, steps=100)
    for _ in range(60):
        device.step()
    assert abs(device.spent[64] - device.spent[512]) <= 25


@pytest.mark.parametrize("client", ["", "other"])
def test_single_user_cannot_exceed_fair_share_by_resubmitting(client: str) -> None:
    device = Device()
    for number in range(100):
        device.add(f"small {number}", 64, steps=100)
    device.add("large", 512, 2, client)
    while device.spent[64] + device.spent[512] < 3000:
        if (finished := device.step()) and finished.size.width == 512:
            device.add("again", 512, 2, client)
    assert abs(device.spent[64] - device.spent[512]) <= 100


@pytest.mark.parametrize("sizes", [1, 4, 15])
def test_nine_clients_with_one_image_do_not_wait_for_a_client_with_two_hundred(sizes: int) -> None:
    device = Device()
    for number in range(200):
        device.add(f"flood {number}", 64 + number % sizes, client="flood")
    device.finish(3)
    for number in range(9):
        device.add(f"single {number}", 512, client=f"client {number}")
    device.add("short", 64, steps=1, client="short")
    finished = [image.client for image in device.finish(60)]
    assert finished[0] == "short"
    last = max(finished.index(f"client {number}") for number in range(9))
    assert finished[:last].count("flood") <= LARGE / SMALL + 6


def test_clients_with_equal_queues_alternate_between_whole_images() -> None:
    device = Device()
    for client in "aabb":
        device.add(client, client=client)
    assert [image.client for image in device.finish(4)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("sizes", [1, 5, 100])
@pytest.mark.parametrize("branches", [1, 2])
def test_client_gets_half_the_time_beside_a_client_with_more_images_and_sizes(sizes: int, branches: int) -> None:
    device = Device()
    for number in range(300):
        device.add(f"many {number}", 64 + number % sizes, client="many", branches=branches)
    device.add("single", client="single")
    while device.spent["many"] + device.spent["single"] < 1500:
        if (finished := device.step()) and finished.client == "single":
            device.add("single", client="single")
    assert device.spent["single"] == pytest.approx(750, rel=0.15)


def test_client_whose_images_cost_eight_times_gets_an_eighth_of_the_time_of_another() -> None:
    device = Device()
    for number in range(90):
        device.add(f"batch {number}", client="batch", factor=8.0)
        device.add(f"other {number}", client="other")
    device.finish(90)
    assert device.spent["batch"] == pytest.approx(device.spent["other"] / 8, rel=0.15)


def test_share_does_not_depend_on_sizes_that_come_later_or_end_earlier() -> None:
    device = Device()
    for number in range(100):
        device.add(f"many {number}", client="many")
    for size in range(20):
        device.add(f"other size {size}", 80 + 16 * size, steps=1, client="many")
    for number in range(100):
        device.add(f"few {number}", client="few")
    for _ in range(600):
        device.step()
    assert device.spent["few"] == pytest.approx(device.spent["many"], rel=0.1)


def test_cancelled_images_do_not_delay_the_next_one_of_their_client() -> None:
    device = Device()
    waiting = [device.add(f"cancelled {number}", client="a") for number in range(50)]
    for number in range(20):
        device.add(f"b {number}", client="b")
    for image in waiting:
        device.queue.remove(image)
    device.add("wanted", client="a")
    assert "wanted" in [image.key for image in device.finish(2)]


def test_short_image_of_another_client_does_not_wait_for_a_long_one_under_way() -> None:
    device = Device()
    device.add("long", steps=100, client="a")
    for _ in range(10):
        device.step()
    device.add("short", client="b")
    assert device.finish(1)[0].key == "short"


def test_stream_of_new_clients_cannot_stop_an_image_under_way() -> None:
    device = Device()
    device.add("long", steps=100, client="a")
    for number in range(1000):
        device.add(f"short {number}", client=f"client {number}")
        if "long" in [image.key for image in device.finish(1)]:
            return
    raise AssertionError("the long image never ended")


def test_images_with_slots_are_found_behind_a_long_queue() -> None:
    device = Device()
    long = device.add("long", steps=100, client="a")
    device.queue.take_slots(long)
    for number in range(200):
        device.add(f"short {number}", steps=1, client=f"client {number}")
    device.step()
    assert device.queue.with_slots() == [long]


def test_user_that_comes_back_gets_no_credit_for_its_absence() -> None:
    shares: FairShare[str] = FairShare()
    shares.add("stays")
    shares.charge("stays", 100.0)
    shares.add("comes")
    assert shares.spent("comes") == shares.spent("stays") == 100.0
    shares.remove("comes")
    shares.charge("comes", 10.0)  # the last pass of an image
    shares.add("comes")
    assert shares.spent("comes") == 110.0


def test_absent_users_are_forgotten() -> None:
    shares: FairShare[int] = FairShare()
    shares.add(-1)
    for user in range(1000):
        shares.add(user)
        shares.charge(user, 1.0)
        shares.charge(-1, 2.0)
        shares.remove(user)
    assert len(shares._spent) <= MAX_ABSENT + 2

"""The order of samples under one LoRA: clients share the device's time equally, and so do the sizes of one client.

Knows samples, and the seconds that it is charged; not clocks, batches or engines.
"""

from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice

from engine.fair_order import FairOrder
from engine.scheduler.sample import Pass, Sample
from engine.size import Size

SCAN = 64  # samples that are considered for one batch, so that a long queue does not make steps longer
TOKEN_PIXELS = 256  # of one image token; weighs pixels against prompt tokens


class SizeQueue:
    """Samples of one size in a `FairOrder` of their clients. Whole images follow each other, not their steps.

    Attributes:
        charged: seconds, divided by the size's weight, that count against this size when sizes are compared.
        samples: first the one that runs next.
        last_weight: the size's weight before it ran empty.
    """

    def __init__(self, size: Size, charged: float) -> None:
        self.size, self.charged = size, charged
        self.samples: list[Sample] = []
        self.last_weight = 1.0
        self._with_slots: list[Sample] = []  # in the same order
        self._weights: dict[Sample, float] = {}  # in the order of arrival
        self._order = FairOrder()

    @property
    def clients(self) -> Collection[str]:
        return self._order.clients

    @property
    def oldest(self) -> Sample:
        """The sample that was submitted first."""
        return next(iter(self._weights))

    def add(self, sample: Sample, weight: float) -> None:
        """Queue a sample. `weight`: share of its client in this size, compared with other clients."""
        self._weights[sample] = weight
        sample.tag = self._order.add(sample.client, self._cost(sample, sample.forwards))
        insort(self.samples, sample, key=_tag)

    def remove(self, sample: Sample) -> None:
        left = sample.forwards - sum(branch.enqueued for branch in sample.branches)
        self._order.remove(sample.client, self._cost(sample, left))
        self.samples.remove(sample)
        if sample in self._with_slots:
            self._with_slots.remove(sample)
        del self._weights[sample]

    def take_slots(self, sample: Sample) -> None:
        """Record that a sample has its slots."""
        insort(self._with_slots, sample, key=_tag)

    def start(self, sample: Sample) -> None:
        """Record that a pass of a sample is enqueued."""
        self._order.advance(self._cost(sample, 1))

    def passes(self, limit: int, *, with_slot_only: bool = False) -> list[Pass]:
        """Return up to `limit` passes of one prompt length, starting with the first sample that has a pass ready."""
        found: list[Pass] = []
        for sample in self._with_slots if with_slot_only else islice(self.samples, SCAN):
            for forward in sample.ready():
                if not found or forward.branch.length == found[0].branch.length:
                    found.append(forward)
                if len(found) == limit:
                    return found
        return found

    def _cost(self, sample: Sample, forwards: int) -> float:
        """Return the cost of some of a sample's passes, in tokens."""
        tokens = self.size.area / TOKEN_PIXELS + sum(branch.length for branch in sample.branches) / len(sample.branches)
        return forwards * tokens / self._weights[sample]


def _tag(sample: Sample) -> float:
    return sample.tag


class FairQueue:
    """One `SizeQueue` per size.

    A size gets time in proportion to its clients. Each client counts as one, divided by the number of its sizes. So a
    small image waits for large ones no longer than its client's share requires. Images of one size that gain nothing
    from a batch finish one after the other instead of all of them late.
    """

    def __init__(self) -> None:
        self._queues: dict[Size, SizeQueue] = {}
        self._sizes: Counter[str] = Counter()  # number of sizes by client
        self._idle: dict[Size, SizeQueue] = {}  # without samples now
        self._floor = 0.0  # smallest charge of any size when a size last became idle

    def __iter__(self) -> Iterator[SizeQueue]:
        """Yield the sizes, the least charged first."""
        return iter(sorted(self._queues.values(), key=lambda queue: queue.charged))

    @property
    def oldest(self) -> Sample | None:
        """The sample that was submitted first."""
        candidates = (queue.oldest for queue in self._queues.values())
        return min(candidates, key=lambda sample: sample.submitted_at, default=None)

    def add(self, sample: Sample) -> None:
        """Queue a sample.

        A size that returns keeps its past charges and gets no credit for idle time. Otherwise a single user who
        resubmits at once would never pay for the last pass of an image.
        """
        if sample.size not in self._queues:
            least = self._least_charged()
            self._idle = {size: queue for size, queue in self._idle.items() if queue.charged > least}
            idle = self._idle.pop(sample.size, None)
            self._queues[sample.size] = idle or SizeQueue(sample.size, least)
        queue = self._queues[sample.size]
        self._sizes[sample.client] += sample.client not in queue.clients
        queue.add(sample, 1 / self._sizes[sample.client])

    def remove(self, sample: Sample) -> None:
        """Remove a sample."""
        queue = self._queues[sample.size]
        weight = self._weight(queue)
        queue.remove(sample)
        if sample.client not in queue.clients:
            self._sizes[sample.client] -= 1
            self._sizes += Counter()  # drops those at 0
        if not queue.samples:
            self._floor = self._least_charged()
            queue.last_weight = weight
            self._idle[sample.size] = self._queues.pop(sample.size)

    def start(self, sample: Sample) -> None:
        """Record that a pass of a sample is enqueued."""
        self._queues[sample.size].start(sample)

    def charge(self, size: Size, seconds: float) -> None:
        """Charge a size for device time, also for samples that have been removed since."""
        if size in self._queues:
            self._queues[size].charged += seconds / self._weight(self._queues[size])
        elif size in self._idle:
            self._idle[size].charged += seconds / self._idle[size].last_weight

    def _weight(self, queue: SizeQueue) -> float:
        """Return the share of a size: one for each client, divided by the number of its sizes."""
        return sum(1 / self._sizes[client] for client in queue.clients)

    def _least_charged(self) -> float:
        return min((queue.charged for queue in self._queues.values()), default=self._floor)

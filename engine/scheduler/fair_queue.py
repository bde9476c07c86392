"""The order of samples under one LoRA: sizes share the device's time equally.

Knows samples, and the seconds that it is charged; not clocks, batches or engines.
"""

from collections.abc import Iterator

from engine.scheduler.sample import Pass, Sample
from engine.size import Size


class SizeQueue:
    """Samples of one size, the oldest first.

    Attributes:
        charged: seconds that count against this size when sizes are compared.
    """

    def __init__(self, size: Size, charged: float) -> None:
        self.size, self.charged = size, charged
        self.samples: list[Sample] = []

    def passes(self, limit: int, *, with_slot_only: bool = False) -> list[Pass]:
        """Return up to `limit` passes of one prompt length, starting with the oldest sample that has a pass ready."""
        ready = [forward for sample in self.samples for forward in sample.ready()]
        if with_slot_only:
            ready = [forward for forward in ready if forward.branch.slot is not None]
        return [forward for forward in ready if forward.branch.length == ready[0].branch.length][:limit]


class FairQueue:
    """One `SizeQueue` per size. Sizes share the device's time equally; within a size, first come is first served.

    A small image then waits for large ones no longer than its share requires, and images that gain nothing from a
    batch finish one after the other instead of all of them late.
    """

    def __init__(self) -> None:
        self._queues: dict[Size, SizeQueue] = {}
        self._idle: dict[Size, float] = {}  # charges of sizes that have no samples now
        self._floor = 0.0  # smallest charge of any size when a size last became idle

    def __iter__(self) -> Iterator[SizeQueue]:
        """Yield the sizes, the least charged first."""
        return iter(sorted(self._queues.values(), key=lambda queue: queue.charged))

    @property
    def oldest(self) -> Sample | None:
        """The sample that was submitted first."""
        candidates = (queue.samples[0] for queue in self._queues.values())
        return min(candidates, key=lambda sample: sample.submitted_at, default=None)

    def add(self, sample: Sample) -> None:
        """Queue a sample.

        A size that returns keeps its past charges and gets no credit for idle time. Otherwise a single user who
        resubmits at once would never pay for the last pass of an image.
        """
        if sample.size not in self._queues:
            least = self._least_charged()
            self._idle = {size: charged for size, charged in self._idle.items() if charged > least}
            self._queues[sample.size] = SizeQueue(sample.size, self._idle.pop(sample.size, least))
        self._queues[sample.size].samples.append(sample)

    def remove(self, sample: Sample) -> None:
        """Remove a sample."""
        queue = self._queues[sample.size]
        queue.samples.remove(sample)
        if not queue.samples:
            self._floor = self._least_charged()
            self._idle[sample.size] = queue.charged
            del self._queues[sample.size]

    def charge(self, size: Size, seconds: float) -> None:
        """Charge a size for device time, also for samples that have been removed since."""
        if size in self._queues:
            self._queues[size].charged += seconds
        elif size in self._idle:
            self._idle[size] += seconds

    def _least_charged(self) -> float:
        return min((queue.charged for queue in self._queues.values()), default=self._floor)

"""The order of LoRAs: time slices, and when the next one begins.

All images under way share the weights, so images of one LoRA are generated together and LoRAs alternate. Knows
samples, and times that it is given; not files, clocks or engines.
"""

import math

from engine.scheduler.fair_queue import FairQueue
from engine.scheduler.sample import Sample

UNKNOWN = ""  # active LoRA after a change that was interrupted; no request can name it
MIN_SLICE = 3.0  # seconds that a time slice lasts while samples of other LoRAs wait
SLICE_PER_CHANGE = 4.0  # a slice lasts at least this many times as long as the change of LoRAs before it


class LoraScheduler:
    """Samples by their LoRA; None counts as one.

    A time slice is over when the active LoRA has no samples left, or when a sample of another LoRA has waited for
    the slice's length. No further sample is admitted then. Once the admitted samples are finished, the LoRA of the
    sample that has waited longest becomes active. So no LoRA starves.

    Args:
        min_slice: seconds.
    """

    def __init__(self, min_slice: float = MIN_SLICE) -> None:
        self.active: str | None = None
        self._min_slice = self._slice = min_slice
        self._began = math.inf  # start of the slice: its first batch; inf before
        self._queues: dict[str | None, FairQueue] = {}

    @property
    def queue(self) -> FairQueue:
        """Samples of the active LoRA."""
        return self._queues.get(self.active) or FairQueue()

    def add(self, sample: Sample) -> None:
        self._queues.setdefault(sample.request.lora, FairQueue()).add(sample)

    def remove(self, sample: Sample) -> None:
        queue = self._queues[sample.request.lora]
        queue.remove(sample)
        if queue.oldest is None:
            del self._queues[sample.request.lora]

    def longest_waiting(self) -> Sample | None:
        """Return the oldest sample of any LoRA that is not active."""
        candidates = [queue.oldest for lora, queue in self._queues.items() if lora != self.active]
        waiting = (sample for sample in candidates if sample is not None)
        return min(waiting, key=lambda sample: sample.submitted_at, default=None)

    def is_slice_over(self, now: float) -> bool:
        """Return True if no further sample of the active LoRA is admitted, since another LoRA is due."""
        waiting = self.longest_waiting()
        if waiting is None:
            return False
        return self.active not in self._queues or now - max(waiting.submitted_at, self._began) > self._slice

    def start_slice(self, now: float) -> None:
        """Start the time slice with its first batch; later calls change nothing."""
        self._began = min(self._began, now)

    def activate(self, lora: str | None, change_seconds: float) -> None:
        """Make a LoRA active whose change took `change_seconds`."""
        self.active, self._began = lora, math.inf
        self._slice = max(self._min_slice, SLICE_PER_CHANGE * change_seconds)

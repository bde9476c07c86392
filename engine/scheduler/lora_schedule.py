"""The order of LoRAs: time slices, and when the next one begins.

All images under way share the weights, so images of one LoRA are generated together and LoRAs alternate; a LoRA at
another strength counts as another one. Knows samples, and times that it is given; not files, clocks or engines.
"""

import math

from engine.request import LoraChoice
from engine.scheduler.fair_queue import ClientShares, FairQueue
from engine.scheduler.sample import Sample

MIN_SLICE = 3.0  # seconds that a time slice lasts while samples of other LoRAs wait
SLICE_PER_CHANGE = 4.0  # a slice lasts at least this many times as long as the change of LoRAs before it
UNKNOWN = LoraChoice("", 0.0)  # in place of the active LoRA, after a change that failed; no LoRA has this name


class LoraScheduler:
    """Samples by their LoRA; None counts as one.

    A time slice is over when the active LoRA has no samples left, or when a sample of another LoRA has waited for
    the slice's length. No further sample is admitted then. Once the admitted samples are finished, another LoRA becomes
    active: that of the client that has spent least, or of its oldest sample. So no client and no LoRA starves.

    Args:
        min_slice: seconds.
        shares: of the clients; None if nobody has spent anything.
    """

    def __init__(self, min_slice: float = MIN_SLICE, shares: ClientShares | None = None) -> None:
        self.active: LoraChoice | None = None
        self._min_slice = self._slice = min_slice
        self._began = math.inf  # start of the slice: its first batch; inf before
        self._shares = shares or ClientShares()
        self._queues: dict[LoraChoice | None, FairQueue] = {}

    @property
    def queue(self) -> FairQueue:
        """Samples of the active LoRA."""
        return self._queues.get(self.active) or FairQueue(self._shares)

    def add(self, sample: Sample) -> None:
        self._queues.setdefault(sample.request.lora_choice, FairQueue(self._shares)).add(sample)

    def remove(self, sample: Sample) -> None:
        queue = self._queues[sample.request.lora_choice]
        queue.remove(sample)
        if queue.oldest is None:
            del self._queues[sample.request.lora_choice]

    def longest_waiting(self) -> Sample | None:
        """Return the oldest sample of any LoRA that is not active."""
        candidates = [queue.oldest for lora, queue in self._queues.items() if lora != self.active]
        waiting = (sample for sample in candidates if sample is not None)
        return min(waiting, key=lambda sample: sample.submitted_at, default=None)

    def next_waiting(self) -> Sample | None:
        """Return the sample whose LoRA is active next."""
        waiting = [first for lora, queue in self._queues.items() if lora != self.active and (first := queue.first)]
        spent = self._shares.seconds.spent
        return min(waiting, key=lambda sample: (spent(sample.client), sample.submitted_at), default=None)

    def charge(self, sample: Sample, seconds: float) -> None:
        """Charge a sample for device time, also after it was removed."""
        self._shares.seconds.charge(sample.client, sample.cost_factor * seconds)
        if sample.request.lora_choice in self._queues:
            self._queues[sample.request.lora_choice].charge(sample, seconds)

    def learn(self, tokens: int, seconds: float) -> None:
        """Learn how long a batch of so many tokens takes."""
        self._shares.learn(tokens, seconds)

    def is_slice_over(self, now: float) -> bool:
        """Return True if no further sample of the active LoRA is admitted, since another LoRA is due."""
        waiting = self.longest_waiting()
        if waiting is None:
            return False
        return self.active not in self._queues or now - max(waiting.submitted_at, self._began) > self._slice

    def start_slice(self, now: float) -> None:
        """Start the time slice with its first batch; later calls change nothing."""
        self._began = min(self._began, now)

    def activate(self, lora: LoraChoice | None, change_seconds: float) -> None:
        """Make a LoRA active whose change took `change_seconds`."""
        self.active, self._began = lora, math.inf
        self._slice = max(self._min_slice, SLICE_PER_CHANGE * change_seconds)

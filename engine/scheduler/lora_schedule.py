"""Whose LoRA is in the plans, and when the next one's turn comes.

Weights are the same for all images under way, so images of one LoRA are generated together, and LoRAs take turns. Knows
images, and times that it is told; not files, and not who executes what.
"""

import math

from engine.scheduler.sample import FairQueue, Sample

LEAST = 3.0  # seconds that a turn lasts while others wait
SHARE = 4.0  # of a turn that others wait for, to the change before it; one of whom nobody is left ends at once


class LoraScheduler:
    """Images by their LoRA; None counts as one.

    A turn is over when no image of the present LoRA is left, or when somebody has waited through `least` seconds of
    it. Then nobody else joins, and when those who have joined are generated, it is the turn of who has waited longest.
    So nobody starves, whatever comes.
    """

    def __init__(self, least: float = LEAST) -> None:
        self.present: str | None = None
        self._least = self._lasts = least
        self._began = math.inf  # with its first image, so every turn has one
        self._lanes: dict[str | None, FairQueue] = {}

    @property
    def lanes(self) -> FairQueue:
        """Images of the present LoRA."""
        return self._lanes.get(self.present) or FairQueue()

    def add(self, sample: Sample) -> None:
        self._lanes.setdefault(sample.request.lora, FairQueue()).add(sample)

    def remove(self, sample: Sample) -> None:
        lanes = self._lanes[sample.request.lora]
        lanes.remove(sample)
        if lanes.first is None:
            del self._lanes[sample.request.lora]

    def first(self) -> Sample | None:
        """Of the images of other LoRAs the one that came first."""
        waiting = [lanes.first for lora, lanes in self._lanes.items() if lora != self.present]
        return min((sample for sample in waiting if sample is not None), key=lambda sample: sample.came, default=None)

    def is_over(self, now: float) -> bool:
        """Whether nobody else of the present LoRA joins."""
        first = self.first()
        if first is None:
            return False
        return self.present not in self._lanes or now - max(first.came, self._began) > self._lasts

    def joins(self, now: float) -> None:
        """An image of the present LoRA is about to have its first step."""
        self._began = min(self._began, now)

    def change(self, lora: str | None, seconds: float) -> None:
        """It is this one's turn; `seconds`: that it took to put it in."""
        self.present, self._began = lora, math.inf
        self._lasts = max(self._least, SHARE * seconds)

"""The table of batch sizes that gain throughput: measured times of a forward pass by size and batch.

If one image alone fills the processor, a batch of two takes twice as long, and batching would only delay the first
image. `batch_measurement` measures a table, `table_files` keeps it.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from engine.size import Size

MIN_SPEEDUP = 1.05  # a larger batch must give this many times the images per second to be worth its delay

PassSeconds = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Side = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Times of a forward pass at one size: `seconds[b - 1]` with a batch of b."""

    width: Side  # pixels
    height: Side
    seconds: Annotated[tuple[PassSeconds, ...], msgspec.Meta(min_length=1)]

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    @property
    def best(self) -> int:
        """The batch size with the most images per second; the smallest if several are about equal."""
        best = 1
        for batch in range(2, len(self.seconds) + 1):
            if batch / self.seconds[batch - 1] > MIN_SPEEDUP * best / self.seconds[best - 1]:
                best = batch
        return best

    @property
    def speedup(self) -> float:
        """Images per second with the best batch, as a multiple of those one at a time."""
        return self.best * self.seconds[0] / self.seconds[self.best - 1]


@dataclass(frozen=True, slots=True)
class BatchTable:
    """Measured times by size, and the machine that measured them.

    With an empty table, nothing shares a pass but both prompts of an image.

    Attributes:
        measured: Unix time of the measurement; 0 if nothing was measured.
    """

    machine: str = ""
    rows: tuple[PassTimes, ...] = ()
    measured: float = 0.0

    def limit(self, size: Size) -> int:
        """Return the batch size for a size of images: the best one of the next larger measured size."""
        larger = [row for row in self.rows if row.area >= size.area]
        return min(larger, key=lambda row: row.area).best if larger else 1

    @property
    def largest_batch(self) -> int:
        """The largest of the best batches."""
        return max((row.best for row in self.rows), default=1)

"""Which images gain from being generated together: a table of what a pass takes with one, two, ... of them.

Measured on the machine that serves (`zimage-bench batching`), stored beside the plans. Where one image alone fills
the processor, a batch of two takes twice as long, and all that batching does is delay the first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from engine.errors import PlanCorrupt
from engine.size import Size

TABLE_FILE = "batching.json"
GAIN = 1.05  # images per second that a larger batch must bring, over the best smaller one, to be worth its delay


@dataclass(frozen=True, slots=True)
class PassTimes:
    """What a forward pass takes at one size: `seconds[b - 1]` with b images."""

    width: int  # pixels
    height: int
    seconds: tuple[float, ...]

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def best(self) -> int:
        """The batch that generates the most images per second, and of those about alike the smallest."""
        best = 1
        for batch in range(2, len(self.seconds) + 1):
            if batch / self.seconds[batch - 1] > GAIN * best / self.seconds[best - 1]:
                best = batch
        return best


@dataclass(frozen=True, slots=True)
class BatchTable:
    """Measured times by size, and where they were measured. An empty one batches nothing."""

    machine: str = ""
    rows: tuple[PassTimes, ...] = ()

    def limit(self, size: Size) -> int:
        """Images of a size to generate together: what the next larger measured size gains from."""
        larger = [row for row in self.rows if row.area >= size.area]
        return min(larger, key=lambda row: row.area).best if larger else 1

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The table of a plan directory; an empty one if none was measured. Raises PlanCorrupt."""
        path = directory / TABLE_FILE
        if not path.is_file():
            return cls()
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PlanCorrupt(f"{path} is damaged: {error}; delete it, or run zimage-bench batching again") from error

    def encode(self) -> bytes:
        """What `read` reads."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

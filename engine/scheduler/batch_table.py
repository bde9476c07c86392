"""The table of batch sizes that gain throughput: measured times of a forward pass by size and batch.

`zimage-bench batching` measures it on the serving machine and stores it beside the plans. If one image alone fills the
processor, a batch of two takes twice as long, and batching would only delay the first image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from engine.errors import PlanCorrupt
from engine.size import Size

TABLE_FILE = "batching.json"
MIN_SPEEDUP = 1.05  # a larger batch must give this many times the images per second to be worth its delay


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Times of a forward pass at one size: `seconds[b - 1]` with a batch of b."""

    width: int  # pixels
    height: int
    seconds: tuple[float, ...]

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


@dataclass(frozen=True, slots=True)
class BatchTable:
    """Measured times by size, and the machine that measured them.

    With an empty table, nothing shares a pass but both prompts of an image.
    """

    machine: str = ""
    rows: tuple[PassTimes, ...] = ()

    def limit(self, size: Size) -> int:
        """Return the batch size for a size of images: the best one of the next larger measured size."""
        larger = [row for row in self.rows if row.area >= size.area]
        return min(larger, key=lambda row: row.area).best if larger else 1

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the table of a plan directory; return an empty table if there is none.

        Raises:
            PlanCorrupt: the file is damaged.
        """
        path = directory / TABLE_FILE
        if not path.is_file():
            return cls()
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PlanCorrupt(f"{path} is damaged: {error}; delete it, or run zimage-bench batching again") from error

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

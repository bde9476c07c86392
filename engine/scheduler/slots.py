"""The slots of a memory, and which samples have them.

Knows indices only; the tensors of a slot are in `slot_tensors`.
"""

from engine.scheduler.sample import Sample


class Slots:
    """Free slots. A sample takes one for each of its branches."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = list(range(count))

    @property
    def taken(self) -> int:
        """Slots that samples have."""
        return self._count - len(self._free)

    def take(self, sample: Sample) -> bool:
        """Give a sample its slots; return False if too few are free."""
        if len(self._free) < len(sample.branches):
            return False
        for branch in sample.branches:
            branch.slot = self._free.pop()
        return True

    def release(self, sample: Sample) -> None:
        """Free a sample's slots.

        Passes of the sample may still run: whatever the next owner writes is enqueued behind them.
        """
        self._free += [branch.slot for branch in sample.branches if branch.slot is not None]

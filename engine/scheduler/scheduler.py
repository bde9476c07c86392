"""Decisions about what runs next: a batch of forward passes, a change of LoRAs, or nothing.

Pure policy: knows samples, sizes, slots and times that it is given; no engines, no tensors and no clock. With pass
times from a table in place of an executor, it simulates a server.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from engine.errors import UnsupportedShape
from engine.plan.manifest import Manifest
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.lora_schedule import UNKNOWN, LoraScheduler
from engine.scheduler.sample import Pass, Sample
from engine.scheduler.slots import Slots
from engine.size import Size


@dataclass(frozen=True, slots=True)
class Batch:
    """Passes of one size and one prompt length, run as one forward pass."""

    passes: tuple[Pass, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of the passes; a guided one may have two passes."""
        return tuple(dict.fromkeys(forward.sample for forward in self.passes))

    @property
    def size(self) -> Size:
        return self.passes[0].sample.size

    @property
    def prompt_length(self) -> int:
        """Padded prompt tokens."""
        return self.passes[0].branch.length

    def __len__(self) -> int:
        return len(self.passes)


@dataclass(frozen=True, slots=True)
class LoraChange:
    """A change to the LoRA of the sample that has waited longest."""

    sample: Sample

    @property
    def samples(self) -> tuple[Sample, ...]:
        return (self.sample,)

    @property
    def lora(self) -> str | None:
        return self.sample.request.lora


class Scheduler:
    """Decides which samples run next.

    `next` may be called as often as wanted. Its answer becomes a fact with `start` and `complete`, or with
    `complete_change`. The caller counts the batches that run.

    Args:
        manifest: profiles of the plans, which limit the batch at each size.
        slots: slots for samples that have begun; a guided sample takes two.
        table: batch sizes that gain throughput.
    """

    def __init__(
        self,
        manifest: Manifest,
        slots: int,
        table: BatchTable | None = None,
        lora_scheduler: LoraScheduler | None = None,
    ) -> None:
        assert slots >= 2, "a guided image takes two"
        self._manifest = manifest
        self._slots = Slots(slots)
        self._table = table or BatchTable()
        self._loras = lora_scheduler or LoraScheduler()
        self._samples: dict[str, Sample] = {}

    @property
    def is_empty(self) -> bool:
        """True if no sample waits or runs."""
        return not self._samples

    @property
    def slots_taken(self) -> int:
        """Slots of samples that have begun."""
        return self._slots.taken

    def get(self, key: str) -> Sample | None:
        """Return the sample of a key."""
        return self._samples.get(key)

    def with_lora(self, lora: str | None) -> list[Sample]:
        """Return all samples of a LoRA."""
        return [sample for sample in self._samples.values() if sample.request.lora == lora]

    def add(self, sample: Sample) -> None:
        """Queue a sample."""
        assert sample.key not in self._samples, sample.key
        self._samples[sample.key] = sample
        self._loras.add(sample)

    def remove(self, sample: Sample) -> None:
        """Remove a sample that is finished, cancelled or failed, and free its slots."""
        sample.is_removed = True
        del self._samples[sample.key]
        self._loras.remove(sample)
        self._slots.release(sample)

    def next(self, now: float, *, is_running: bool = False) -> Batch | LoraChange | None:
        """Return what runs next, or None if nothing can be started now.

        Args:
            now: seconds, by the clock of `Sample.submitted_at`.
            is_running: True while a batch runs; LoRAs are not changed then.
        """
        is_slice_over = self._loras.is_slice_over(now)
        if is_slice_over and not is_running and not self.slots_taken:
            waiting = self._loras.longest_waiting()
            assert waiting is not None
            return LoraChange(waiting)
        return self._next_batch(may_admit=not is_slice_over)

    def start(self, batch: Batch, now: float) -> None:
        """Record that a batch is enqueued."""
        self._loras.start_slice(now)
        for forward in batch.passes:
            self._loras.queue.start(forward.sample)
            forward.branch.enqueued += 1

    def complete(self, batch: Batch, charges: Iterable[tuple[Size, float]]) -> None:
        """Record that a batch is over.

        Args:
            charges: seconds of device time by size, spent on the batch and on images decoded before it.
        """
        for size, seconds in charges:
            self._loras.queue.charge(size, seconds)
        for forward in batch.passes:
            forward.branch.completed += 1

    def complete_change(self, change: LoraChange, seconds: float) -> None:
        """Record that another LoRA is in the plans, after `seconds`."""
        self._loras.activate(change.lora, seconds)

    def abandon_change(self) -> None:
        """Record that it is not known which LoRA is in the plans; the next batch waits for another change."""
        self._loras.activate(UNKNOWN, 0.0)

    def _next_batch(self, *, may_admit: bool) -> Batch | None:
        """Return the passes that run next.

        Args:
            may_admit: True if samples without a slot may take one.
        """
        for with_slot_only in (False, True):  # second try: samples with slots go on while the oldest waits for one
            for queue in self._loras.queue:
                passes = []
                for forward in queue.passes(self._max_batch(queue.size), with_slot_only=with_slot_only):
                    if forward.branch.slot is not None:
                        passes.append(forward)
                    elif may_admit and self._slots.take(forward.sample):
                        queue.take_slots(forward.sample)
                        passes.append(forward)
                    else:  # younger samples wait too; else a guided sample might never find two free slots
                        may_admit = False
                if passes:
                    return Batch(tuple(passes))
        return None

    def _max_batch(self, size: Size) -> int:
        """Return the largest batch that gains throughput and that a profile covers."""
        for batch in range(self._table.limit(size), 1, -1):
            with suppress(UnsupportedShape):
                self._manifest.profile_for(size, batch)
                return batch
        return 1

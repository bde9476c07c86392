"""Decisions about what runs next: a batch of forward passes, a change of LoRAs, or nothing.

Pure policy: knows samples, sizes, slots and times that it is given; no engines, no tensors and no clock. With pass
times from a table in place of an executor, it simulates a server.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engine.errors import UnsupportedShape
from engine.plan.manifest import Manifest
from engine.request import LoraChoice
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.lora_schedule import UNKNOWN, LoraScheduler
from engine.scheduler.sample import Pass, Sample
from engine.scheduler.slots import Slots
from engine.size import Size

MAX_SIZES = 1024  # whose limits are remembered


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

    @property
    def tokens(self) -> int:
        """Tokens that the transformer reads in all passes."""
        return sum(forward.sample.tokens(forward.branch) for forward in self.passes)

    def __len__(self) -> int:
        return len(self.passes)


@dataclass(frozen=True, slots=True)
class LoraChange:
    """A change to the LoRA of this sample."""

    sample: Sample

    @property
    def samples(self) -> tuple[Sample, ...]:
        return (self.sample,)

    @property
    def lora(self) -> LoraChoice | None:
        return self.sample.request.lora_choice


class Scheduler:
    """Decides which samples run next.

    `next` may be called as often as wanted. Its answer becomes a fact with `start` and `complete`, or with
    `complete_change` or `abandon_change`. The caller counts the batches that run.

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
        self._batch_limits: dict[Size, tuple[int, int]] = {}  # what `_limits` has found

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

    def with_lora(self, lora: LoraChoice | None) -> list[Sample]:
        """Return all samples of a LoRA at a strength."""
        return [sample for sample in self._samples.values() if sample.request.lora_choice == lora]

    def use_table(self, table: BatchTable) -> None:
        """Decide by another table from the next batch on."""
        self._table = table
        self._batch_limits.clear()

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
            waiting = self._loras.next_waiting()
            assert waiting is not None
            return LoraChange(waiting)
        return self._next_batch(may_admit=not is_slice_over)

    def start(self, batch: Batch, now: float) -> None:
        """Record that a batch is enqueued."""
        self._loras.start_slice(now)
        for forward in batch.passes:
            forward.branch.enqueued += 1

    def complete(self, batch: Batch, charges: Sequence[tuple[Sample, float]]) -> None:
        """Record that a batch is over.

        Args:
            charges: seconds of device time by sample, spent on the batch and on images decoded before it.
        """
        for sample, seconds in charges:
            self._loras.charge(sample, seconds)
        self._loras.learn(batch.tokens, sum(seconds for _, seconds in charges))
        for forward in batch.passes:
            forward.branch.completed += 1

    def complete_change(self, change: LoraChange, seconds: float) -> None:
        """Record that another LoRA is in the plans, after `seconds`."""
        self._loras.activate(change.lora, seconds)

    def abandon_change(self) -> None:
        """Record that a change has failed, so that every sample waits for another one."""
        self._loras.activate(UNKNOWN, 0.0)

    def _next_batch(self, *, may_admit: bool) -> Batch | None:
        """Return the passes that run next.

        Args:
            may_admit: True if samples without a slot may take one.
        """
        queue = self._loras.queue
        if may_admit and (first := _first_pass(queue.in_order())):
            passes = []
            for forward in self._matching(first, queue.in_order(first.sample.size)):
                if forward.branch.slot is None:
                    if not self._slots.take(forward.sample):
                        break  # younger samples wait too; else a guided sample might never find two free slots
                    queue.take_slots(forward.sample)
                passes.append(forward)
            if passes:
                return Batch(tuple(passes))
        first = _first_pass(queue.with_slots())  # these go on while others wait for a slot
        return first and Batch(tuple(self._matching(first, queue.with_slots())))

    def _matching(self, first: Pass, samples: Iterable[Sample]) -> list[Pass]:
        """Return the passes that can share a batch with the first one, and that one.

        A guided sample whose prompts are equally long has both passes in the batch or none, even if no batch gains
        throughput: two rows of one pass need one enqueue. Only profiles without a batch of two separate them.
        """
        size, length = first.sample.size, first.branch.length
        pair, limit = self._limits(size)
        found: list[Pass] = []
        for sample in samples:
            if sample.size == size:
                passes = [forward for forward in sample.ready() if forward.branch.length == length][:pair]
                if not found:
                    limit = max(limit, len(passes))
                if len(found) + len(passes) <= limit:
                    found += passes
            if len(found) == limit:
                break
        return found

    def _limits(self, size: Size) -> tuple[int, int]:
        """Return the most passes of one sample in a batch, and the most passes of all."""
        found = self._batch_limits.get(size)
        if found is None:
            if len(self._batch_limits) >= MAX_SIZES:
                self._batch_limits.clear()
            found = self._max_batch(size, 2), self._max_batch(size, self._table.limit(size))
            self._batch_limits[size] = found
        return found

    def _max_batch(self, size: Size, most: int) -> int:
        """Return the largest batch up to `most` that a profile covers."""
        for batch in range(most, 1, -1):
            with suppress(UnsupportedShape):
                self._manifest.profile_for(size, batch)
                return batch
        return 1


def _first_pass(samples: Iterable[Sample]) -> Pass | None:
    """Return the first pass that is ready."""
    return next((forward for sample in samples for forward in sample.ready()), None)

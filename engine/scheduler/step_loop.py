"""The loop of in-flight batching without a pipeline: it decides, lets an executor run, and tells what is over.

Knows the order of decisions, runs and events; not what executes them, nor whether its clock is a real one.
`EngineLoop` gives it a pipeline, `benchmarks.fleet.timed_loop` lets it sleep, `benchmarks.simulation` moves a clock.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.array import Array
from engine.errors import LoraMismatch, NonFiniteOutput
from engine.request import LoraChoice
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, DenoisedImage, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step of one sample that is over.

    Attributes:
        estimate: [16, h, w] estimate of the final latents, if a preview is wanted after this step.
        error: the reason why the sample cannot go on.
    """

    sample: Sample
    estimate: Array | None = None
    error: NonFiniteOutput | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A forward pass that is over.

    Attributes:
        seconds: device time of the forward pass, and of the guidance and the blend after it.
        charges: device time by sample: of the batch and the prompts encoded for it, and of images decoded before it.
        steps: a guided step is over when both branches are.
    """

    batch: Batch
    seconds: float
    charges: Sequence[tuple[Sample, float]]
    steps: Sequence[StepResult]


class StepExecutor(Protocol):
    """Runs batches: `engine.scheduler.executor.Executor`, or one that only takes time."""

    @property
    def running(self) -> int:
        """Batches that are enqueued and not waited for."""
        ...

    @property
    def max_ahead(self) -> int:
        """Batches that may run while the next one is prepared."""
        ...

    def change_lora(self, lora: LoraChoice | None) -> Iterator[None]:
        """Apply a LoRA, in portions, as the iterator is advanced. Raises LoraMismatch: nothing was changed."""
        ...

    def enqueue(self, batch: Batch) -> None:
        """Enqueue a batch."""
        ...

    def wait(self) -> BatchResult:
        """Wait for the oldest running batch."""
        ...

    def decode(self, sample: Sample) -> DenoisedImage:
        """Enqueue the decoding of a sample whose last step is over."""
        ...


@dataclass(frozen=True, slots=True)
class _RunningChange:
    """A change of LoRAs whose portions are not all done."""

    change: LoraChange
    portions: Iterator[None]
    started: float


class StepLoop:
    """Steps many images at once.

    Args:
        clock: returns seconds, as `Sample.submitted_at` has them.
    """

    def __init__(
        self, scheduler: Scheduler, executor: StepExecutor, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._scheduler, self._executor, self._clock = scheduler, executor, clock
        self._running_change: _RunningChange | None = None
        self._may_run = 0  # batches that need not be waited for

    @property
    def is_idle(self) -> bool:
        """True if `step` has nothing to do."""
        return self._scheduler.is_empty and not self._executor.running and self._running_change is None

    def add(self, sample: Sample) -> None:
        """Queue a sample."""
        self._scheduler.add(sample)

    def use_table(self, table: BatchTable) -> None:
        """Batch by another table from the next pass on."""
        self._scheduler.use_table(table)

    def cancel(self, key: str) -> bool:
        """Drop an image without waiting for its running passes. Return False if no image has the key."""
        sample = self._scheduler.get(key)
        if sample is None:
            return False
        self._scheduler.remove(sample)
        return True

    def step(self) -> list[Event]:
        """Enqueue the next forward pass or change some weights, and return the events since the last call.

        Raises:
            DeviceError: the GPU failed; no image under way will be finished.
            PlanCorrupt: the plans were altered after they were loaded; their weights are in no known state.
        """
        events = self.begin_step()
        while self.must_wait:
            events += self.complete_oldest()
        return events

    def begin_step(self) -> list[Event]:
        """Begin a step: announce images, change some weights, or enqueue the next forward pass.

        The step is over once `complete_oldest` was called while `must_wait`.
        """
        now = self._clock()
        self._may_run = self._executor.running
        if self._running_change is not None:
            return self._continue_change(self._running_change)
        work = self._scheduler.next(now, is_running=self._executor.running > 0)
        if work and (announced := _announce(work)):
            return announced
        if isinstance(work, LoraChange):
            self._running_change = _RunningChange(work, self._executor.change_lora(work.lora), now)
            return self._continue_change(self._running_change)
        if work:
            self._scheduler.start(work, now)
            self._executor.enqueue(work)
        self._may_run = self._executor.max_ahead if work else 0
        return []

    @property
    def must_wait(self) -> bool:
        """True if more batches run than may run ahead."""
        return self._executor.running > self._may_run

    def complete_oldest(self) -> list[Event]:
        """Wait for the oldest running batch, record that it is over, and return its events."""
        result = self._executor.wait()
        self._scheduler.complete(result.batch, result.charges)
        events: list[Event] = [Passed(len(result.batch), result.seconds)]
        for step in result.steps:
            sample = step.sample
            if step.error is not None:
                events.append(Failed(sample.key, step.error))
                self._scheduler.remove(sample)
                continue
            events.append(Stepped(sample.key, sample.done, sample.steps, step.estimate))
            if sample.done == sample.steps:
                events.append(Denoised(sample.key, self._executor.decode(sample)))
                self._scheduler.remove(sample)
        return events

    def _continue_change(self, running: _RunningChange) -> list[Event]:
        """Do one portion of a change of LoRAs, so that the caller sees progress."""
        change, self._running_change = running.change, None
        try:
            next(running.portions)
        except StopIteration:
            seconds = self._clock() - running.started
            log.info("%s in %.2f s", f"applied LoRA {change.lora}" if change.lora else "removed the LoRA", seconds)
            self._scheduler.complete_change(change, seconds)
            return [Switched(seconds)]
        except LoraMismatch as error:
            failed = self._scheduler.with_lora(change.lora)
            for sample in failed:
                self._scheduler.remove(sample)
            return [Failed(sample.key, error) for sample in failed]
        except BaseException:  # interrupted by Ctrl-C, or a file of the plans was altered
            self._scheduler.abandon_change()
            raise
        self._running_change = running
        return []


def _announce(work: Batch | LoraChange) -> list[Event]:
    """Return a `Started` event for each sample that is about to run first: the work may end the process."""
    new = [sample for sample in work.samples if not sample.is_announced]
    for sample in new:
        sample.is_announced = True
    return [Started(sample.key) for sample in new]

"""A device of a simulated fleet with the engine's scheduler, asked before every pass or before every run of passes.

A run is what the scheduler would decide again and again while nothing changes: the same batch, until an image of it
ends or another image arrives.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.simulation.fleet.device import Device, DeviceSetup, Run
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.requests import PreparedKind, sample
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler
from engine.size import Size
from server.jobs.storage.fleet.claim_order import Kind


class RunScheduler(Scheduler):
    """The engine's scheduler, which also records several equal passes at once."""

    def largest_batch(self, size: Size) -> int:
        """Return the most rows of a pass at a size."""
        return self._limits(size)[1]

    def complete_run(self, batch: Batch, passes: int, seconds: float) -> None:
        """Record that a batch, which was started once, has run some times in a row, in `seconds`."""
        for forward in batch.passes:
            forward.branch.enqueued += passes - 1
            forward.branch.completed += passes
            self._loras.charge(forward.sample, seconds / len(batch))
        self._loras.learn(batch.tokens * passes, seconds)


class ScheduledDevice(Device):
    """A device whose scheduler decides before every pass, or before every run.

    Args:
        is_stepwise: True if every run is one pass.
        on_room: called when an image has left the device.
    """

    def __init__(
        self, setup: DeviceSetup, scheduler: RunScheduler, on_room: Callable[[], object], *, is_stepwise: bool
    ) -> None:
        super().__init__(setup, on_room)
        self._scheduler, self._manifest, self._is_stepwise = scheduler, setup.scenario.manifest, is_stepwise
        self._jobs: dict[Sample, FleetJob] = {}
        self._arrived: list[Sample] = []  # that the scheduler does not have yet: it gets them between two runs
        self._keys = 0
        self._batch: Batch | None = None  # of the run under way

    def loaded(self) -> set[Kind]:
        return {job.prepared.lora_and_size for job in self._jobs.values()}

    def _queue(self, job: FleetJob) -> None:
        for _ in range(job.missing):
            self._keys += 1
            each = sample(str(self._keys), job.prepared, self._manifest, self._env.now, job.share, job.cost_factor)
            self._jobs[each] = job
            self._arrived.append(each)

    def _drop(self) -> list[FleetJob]:
        lost = list(dict.fromkeys(self._jobs.values()))
        for each in self._jobs:
            if each not in self._arrived:
                self._scheduler.remove(each)
        self._jobs, self._arrived = {}, []
        return lost

    def _may_join(self, prepared: PreparedKind) -> bool:  # noqa: ARG002
        return True  # the scheduler decides

    def _begin(self) -> None:
        now = self._env.now
        for each in self._arrived:
            self._scheduler.add(each)
        self._arrived.clear()
        work = self._scheduler.next(now)
        if work is None:
            self._is_idle = True
            return
        if isinstance(work, LoraChange):
            self._change_lora(partial(self._end_change, work))
            return
        preparation = 0.0
        for each in work.samples:
            if each.first_pass_at is None:
                each.first_pass_at = now
                preparation += self._preparation_seconds(self._jobs[each].prepared)
        self._scheduler.start(work, now)
        self._batch = work
        passes = 1 if self._is_stepwise else _longest_run(work)
        self._start_run(len(work), passes, work.size, work.prompt_length, preparation)

    def _end_change(self, change: LoraChange) -> None:
        self._scheduler.complete_change(change, self._costs.lora_change)
        self._begin()

    def _complete(self, run: Run) -> list[FleetJob]:
        assert self._batch is not None
        self._scheduler.complete_run(self._batch, run.passes, run.duration)
        ended = [each for each in self._batch.samples if each.done == each.steps]
        for each in ended:
            self._scheduler.remove(each)
        return [self._jobs.pop(each) for each in ended]


def _longest_run(batch: Batch) -> int:
    """Return how often a batch, whose first pass is enqueued, can run before one of its images has no more passes."""
    if len(batch.passes) != sum(len(each.branches) for each in batch.samples):
        return 1  # the other branch of a guided image comes in between
    return 1 + min(forward.branch.steps - forward.branch.enqueued for forward in batch.passes)

"""A device of a simulated fleet: the engine's scheduler, asked before every pass or before every run of equal passes.

A run is what the scheduler would decide again and again while nothing changes: the same batch, until an image of it
ends or another image arrives. Knows jobs and times; not which device gets which job.
"""

import random
from collections.abc import Callable
from functools import partial
from math import sqrt

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.requests import sample
from benchmarks.simulation.scenario import Granularity, SimulationScenario
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler
from engine.size import Size
from server.jobs.storage.fleet.claim_order import Kind

MEGAPIXEL = 1e6


class RunScheduler(Scheduler):
    """The engine's scheduler, which also takes notes of several equal passes at once."""

    def largest_batch(self, size: Size) -> int:
        """Return the most rows of a pass at a size."""
        return self._limits(size)[1]

    def complete_run(self, batch: Batch, passes: int, seconds: float) -> None:
        """Record that a batch, which was started once, has run some times in a row, in `seconds`."""
        rows = len(batch)
        for forward in batch.passes:
            forward.branch.enqueued += passes - 1
            forward.branch.completed += passes
            self._loras.charge(forward.sample, seconds / rows)
        self._loras.learn(batch.tokens * passes, seconds)


class FleetDevice:
    """One device.

    Args:
        prompt_seconds: of the prompt encoder for each prompt.
        on_ended: called with a job when its last image is finished.
        on_room: called when an image has left the device.

    Attributes:
        slots: that its images take.
        cost: of its images, in pixels times passes.
        busy: seconds that it has computed, with what is under way.
        passes: by batch size, times their number.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scenario: SimulationScenario,
        scheduler: RunScheduler,
        prompt_seconds: float,
        granularity: Granularity,
        rng: random.Random,
        on_ended: Callable[[FleetJob], object],
        on_room: Callable[[], object],
    ) -> None:
        self.slots = 0
        self.cost = self.busy = 0.0
        self.passes: dict[int, int] = {}
        self._env, self._scheduler, self._manifest = env, scheduler, scenario.manifest
        self._times, self._costs, self._granularity, self._rng = scenario.times, scenario.costs, granularity, rng
        self._prompt_seconds, self._on_ended, self._on_room = prompt_seconds, on_ended, on_room
        self._jobs: dict[Sample, FleetJob] = {}
        self._arrived: list[Sample] = []  # during a pass; the worker submits them after it
        self._keys = 0
        self._run: _Run | None = None
        self._is_asleep = True
        self._version = 0  # of the run under way; timers of earlier ones are ignored

    def add(self, job: FleetJob) -> None:
        """Take all missing images of a job."""
        now = self._env.now
        for _ in range(job.missing):
            self._keys += 1
            each = sample(str(self._keys), job.prepared, self._manifest, now, job.share, job.cost_factor)
            self._jobs[each] = job
            self._arrived.append(each)
        self.slots += job.missing * job.prepared.slots
        self.cost += job.missing * job.prepared.cost
        if self._is_asleep:
            self._is_asleep = False
            self._begin()
        elif self._run is not None:
            self._shorten(self._run, now)

    def loaded(self) -> set[Kind]:
        """Return LoRA and size of what it generates."""
        return {job.prepared.lora_and_size for job in self._jobs.values()}

    def stop(self) -> list[FleetJob]:
        """Vanish, and return the jobs that are lost with it."""
        self._version += 1
        lost = list(dict.fromkeys(self._jobs.values()))
        for each in self._jobs:
            if each not in self._arrived:
                self._scheduler.remove(each)
        self._arrived.clear()
        self._jobs, self._run, self._is_asleep, self.slots, self.cost = {}, None, True, 0, 0.0
        return lost

    def _begin(self) -> None:
        """Begin what the scheduler decides, or fall asleep."""
        now = self._env.now
        for each in self._arrived:
            self._scheduler.add(each)
        self._arrived.clear()
        work = self._scheduler.next(now)
        if work is None:
            self._is_asleep = True
            return
        if isinstance(work, LoraChange):
            self.busy += self._costs.lora_change
            self._call_later(self._costs.lora_change, partial(self._end_change, work))
            return
        extra = 0.0
        for each in work.samples:
            if each.first_pass_at is None:
                each.first_pass_at = now
                extra += self._prompt_seconds * len(each.branches)
                if each.request.edit is not None:
                    extra += self._times.encode_image_seconds(each.size)
        self._scheduler.start(work, now)
        passes = 1 if self._granularity == "step" else _longest_run(work)
        seconds = self._times.pass_seconds(work.size, len(work), work.prompt_length) + self._costs.step
        if self._costs.spread:
            seconds *= max(self._rng.gauss(1.0, self._costs.spread / sqrt(passes)), 0.1)
        self._run = run = _Run(work, now + extra, seconds, passes, extra)
        self._call_later(extra + passes * seconds, partial(self._end, run))

    def _shorten(self, run: "_Run", now: float) -> None:
        """Let a run end with the pass that is under way, since an image has arrived."""
        done = max(int((now - run.began) / run.seconds) + 1, 1)
        if done < run.passes:
            run.passes = done
            self._call_later(max(run.began + done * run.seconds - now, 0.0), partial(self._end, run))

    def _end_change(self, change: LoraChange) -> None:
        self._scheduler.complete_change(change, self._costs.lora_change)
        self._begin()

    def _end(self, run: "_Run") -> None:
        self._run = None
        rows, seconds = len(run.batch), run.extra + run.passes * run.seconds
        self.busy += seconds
        self.passes[rows] = self.passes.get(rows, 0) + run.passes
        self._scheduler.complete_run(run.batch, run.passes, seconds)
        ended = [each for each in run.batch.samples if each.done == each.steps]
        if not ended:
            self._begin()
            return
        decoding = 0.0
        for each in ended:
            self._scheduler.remove(each)
            decoding += self._times.decode_seconds(each.size)
            job = self._jobs.pop(each)
            job.missing -= 1
            self.slots -= job.prepared.slots
            self.cost -= job.prepared.cost
            file = self._costs.file * each.size.area / MEGAPIXEL
            if not job.missing:
                call_later(self._env, decoding + file + self._costs.response, partial(self._on_ended, job))
        self.busy += decoding
        self._call_later(decoding, self._begin)
        self._on_room()

    def _call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call once, unless something else of this device is to be called instead until then."""
        self._version += 1
        version = self._version

        def fire(_: simpy.Event) -> None:
            if version == self._version:
                call()

        self._env.timeout(seconds).callbacks.append(fire)


class _Run:
    """Equal passes in a row, the first of which begins at a time."""

    __slots__ = ("batch", "began", "extra", "passes", "seconds")

    def __init__(self, batch: Batch, began: float, seconds: float, passes: int, extra: float) -> None:
        self.batch, self.began, self.seconds, self.passes, self.extra = batch, began, seconds, passes, extra


def _longest_run(batch: Batch) -> int:
    """Return how often a batch, whose first pass is enqueued, can run before one of its images has no more passes."""
    if len(batch.passes) != sum(len(each.branches) for each in batch.samples):
        return 1  # the other branch of a guided image comes in between
    return 1 + min(forward.branch.steps - forward.branch.enqueued for forward in batch.passes)

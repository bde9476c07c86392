"""A device of a simulated fleet: runs of equal forward passes, and the decoding of the images that end with them.

A run is the same batch several times in a row. It is cut short when an image arrives that may join the batch. Knows
jobs and times; subclasses know which images share a pass, and hosts know which device gets a job.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import sqrt

import simpy

from benchmarks.simulation.clock import SimulatedTimer, call_later
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.noise import log_normal
from benchmarks.simulation.requests import PreparedKind
from benchmarks.simulation.scenario import SimulationScenario
from engine.size import Size
from server.jobs.storage.fleet.claim_order import Kind


@dataclass(slots=True)
class Run:
    """Equal passes in a row.

    Attributes:
        rows: batch size of each pass.
        passes: their number.
        seconds: duration of each pass.
        preparation: seconds for prompts and init images before the first pass.
        began: time at which the first pass began.
    """

    rows: int
    passes: int
    seconds: float
    preparation: float
    began: float

    @property
    def duration(self) -> float:
        """Seconds of the whole run."""
        return self.preparation + self.passes * self.seconds


@dataclass(frozen=True, slots=True)
class DeviceSetup:
    """Properties that all devices of a fleet share.

    Attributes:
        prompt_seconds: seconds of the prompt encoder for each prompt.
        on_ended: called with a job when its last image is finished.
    """

    env: simpy.Environment
    scenario: SimulationScenario
    rng: random.Random
    prompt_seconds: float
    on_ended: Callable[[FleetJob], object]


class Device(ABC):
    """A device without a policy.

    Args:
        on_room: called when an image has left the device.

    Attributes:
        slots: slots that its images take.
        cost: cost of its images, in pixels times passes.
        busy: seconds that it has computed, without the run under way.
        passes: number of forward passes by batch size.
    """

    def __init__(self, setup: DeviceSetup, on_room: Callable[[], object]) -> None:
        self.slots = 0
        self.cost = self.busy = 0.0
        self.passes: dict[int, int] = {}
        self._env, self._rng, self._prompt_seconds = setup.env, setup.rng, setup.prompt_seconds
        self._times, self._costs = setup.scenario.times, setup.scenario.costs
        self._on_ended, self._on_room = setup.on_ended, on_room
        self._run: Run | None = None
        self._timer: SimulatedTimer | None = None
        self._is_idle = True

    def add(self, job: FleetJob) -> None:
        """Take all missing images of a job."""
        self.slots += job.missing * job.prepared.slots
        self.cost += job.missing * job.prepared.cost
        self._queue(job)
        if self._is_idle:
            self._is_idle = False
            self._begin()
        elif self._run is not None and self._may_join(job.prepared):
            self._shorten(self._run)

    def stop(self) -> list[FleetJob]:
        """Stop without notice, and return the jobs that are lost."""
        if self._timer is not None:
            self._timer.cancel()
        self._run, self._is_idle, self.slots, self.cost = None, True, 0, 0.0
        return self._drop()

    @abstractmethod
    def loaded(self) -> set[Kind]:
        """Return LoRA and size of its images."""

    @abstractmethod
    def _queue(self, job: FleetJob) -> None:
        """Queue all missing images of a job."""

    @abstractmethod
    def _drop(self) -> list[FleetJob]:
        """Remove all images, and return their jobs."""

    @abstractmethod
    def _may_join(self, prepared: PreparedKind) -> bool:
        """Return True if an image that has arrived may share the passes of the run under way."""

    @abstractmethod
    def _begin(self) -> None:
        """Begin what comes next with `_start_run` or `_change_lora`, or become idle."""

    @abstractmethod
    def _complete(self, run: Run) -> list[FleetJob]:
        """Remove the images that end with a run, and return the job of each."""

    def _start_run(self, rows: int, passes: int, size: Size, prompt_length: int, preparation: float) -> None:
        """Run a batch some times in a row."""
        spread = self._costs.spread / sqrt(passes)  # of the mean of independent passes
        seconds = self._times.pass_seconds(size, rows, prompt_length) * log_normal(self._rng, spread)
        self._run = run = Run(rows, passes, seconds + self._costs.step, preparation, self._env.now + preparation)
        self._call_next(run.duration, self._end_run)

    def _change_lora(self, then: Callable[[], object]) -> None:
        """Let the time of a change of LoRAs pass."""
        self.busy += self._costs.lora_change
        self._call_next(self._costs.lora_change, then)

    def _preparation_seconds(self, prepared: PreparedKind) -> float:
        """Return the seconds that an image takes before its first pass."""
        init_image = self._times.encode_image_seconds(prepared.size) if prepared.kind.edit else 0.0
        return prepared.slots * self._prompt_seconds + init_image

    def _shorten(self, run: Run) -> None:
        """Let a run end with the pass that is under way."""
        elapsed = self._env.now - run.began
        passes = max(int(elapsed / run.seconds) + 1, 1)
        if passes < run.passes:
            run.passes = passes
            self._call_next(max(passes * run.seconds - elapsed, 0.0), self._end_run)

    def _end_run(self) -> None:
        run, self._run = self._run, None
        assert run is not None
        self.busy += run.duration
        self.passes[run.rows] = self.passes.get(run.rows, 0) + run.passes
        ended = self._complete(run)
        if not ended:
            self._begin()
            return
        decoding = 0.0
        for job in ended:
            decoding += self._times.decode_seconds(job.prepared.size)
            self._remove(job, decoding)
        self.busy += decoding
        self._call_next(decoding, self._begin)
        self._on_room()

    def _remove(self, job: FleetJob, decoding: float) -> None:
        """Count one image of a job as finished after `decoding` seconds; the last one ends the job."""
        job.missing -= 1
        self.slots -= job.prepared.slots
        self.cost -= job.prepared.cost
        if not job.missing:
            seconds = decoding + self._costs.file_seconds(job.prepared.size) + self._costs.response
            call_later(self._env, seconds, partial(self._on_ended, job))

    def _call_next(self, seconds: float, call: Callable[[], object]) -> None:
        """Make a call after some seconds, in place of the one that was due next."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = call_later(self._env, seconds, call)

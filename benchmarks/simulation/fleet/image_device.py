"""The coarsest device of a simulated fleet: images run in the order of their arrival, without the engine's scheduler.

An image joins the batch at the next step if it has the same size and LoRA and the table gains from one more; the
fleet's claims share time between clients already. Several times faster than `FleetDevice`, which has the same methods.
"""

from collections.abc import Callable
from functools import partial

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.scenario import SimulationScenario
from engine.size import Size
from server.jobs.storage.fleet.claim_order import Kind

MEGAPIXEL = 1e6


class ImageDevice:
    """One device.

    Args:
        batch: returns the most rows of a pass at a size.
        prompt_seconds: of the prompt encoder for each prompt.
        on_ended: called with a job when its last image is finished.
        on_room: called when an image has left the device.

    Attributes:
        slots, cost, busy, passes: see `FleetDevice`.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scenario: SimulationScenario,
        batch: Callable[[Size], int],
        prompt_seconds: float,
        on_ended: Callable[[FleetJob], object],
        on_room: Callable[[], object],
    ) -> None:
        self.slots = 0
        self.cost = self.busy = 0.0
        self.passes: dict[int, int] = {}
        self._env, self._batch, self._times, self._costs = env, batch, scenario.times, scenario.costs
        self._prompt_seconds, self._on_ended, self._on_room = prompt_seconds, on_ended, on_room
        self._images: list[_Image] = []  # in the order of their arrival
        self._lora: str | None = None
        self._running: list[_Image] = []
        self._began = self._pass = 0.0  # of the running batch: time of its first pass, seconds of each
        self._passes_left = 0  # of the batch, from `_began` on
        self._is_idle = True
        self._version = 0  # of the timer that counts

    def add(self, job: FleetJob) -> None:
        """Take all missing images of a job."""
        prepared, missing = job.prepared, job.missing
        for _ in range(missing):
            self._images.append(_Image(job, prepared.steps))
        self.slots += missing * prepared.slots
        self.cost += missing * prepared.cost
        if self._is_idle:
            self._is_idle = False
            self._begin()
        elif self._running and self._may_join(job):
            self._shorten()

    def loaded(self) -> set[Kind]:
        """Return LoRA and size of what it generates."""
        return {image.job.prepared.lora_and_size for image in self._images}

    def stop(self) -> list[FleetJob]:
        """Vanish, and return the jobs that are lost with it."""
        self._version += 1
        lost = list(dict.fromkeys(image.job for image in self._images))
        self._images, self._running, self._is_idle, self.slots, self.cost = [], [], True, 0, 0.0
        return lost

    def _may_join(self, job: FleetJob) -> bool:
        prepared = job.prepared
        if prepared.lora_and_size != self._running[0].job.prepared.lora_and_size:
            return False
        rows = sum(image.job.prepared.slots for image in self._running)
        return rows + prepared.slots <= self._batch(prepared.lora_and_size[1])

    def _begin(self) -> None:
        """Begin a batch with the first image, or do nothing more."""
        if not self._images:
            self._is_idle = True
            return
        first = self._images[0].job.prepared
        lora, size = first.lora_and_size
        if lora != self._lora:
            self._lora = lora
            self.busy += self._costs.lora_change
            self._call_later(self._costs.lora_change, self._begin)
            return
        self._running = running = self._next_batch(self._batch(size))
        rows = sum(image.job.prepared.slots for image in running)
        extra = sum(self._starting_seconds(image) for image in running if not image.has_begun)
        self._pass = self._times.pass_seconds(size, rows, first.prompt_length) + self._costs.step
        self._passes_left = min(image.left for image in running)
        self._began = self._env.now + extra
        self.busy += extra
        self._call_later(extra + self._passes_left * self._pass, self._end)

    def _next_batch(self, limit: int) -> list["_Image"]:
        """Return the images that run next: the first, and those that may share its passes."""
        first = self._images[0]
        running, rows = [first], first.job.prepared.slots
        for image in self._images[1:] if rows < limit else ():
            prepared = image.job.prepared
            if rows + prepared.slots <= limit and prepared.lora_and_size == first.job.prepared.lora_and_size:
                running.append(image)
                rows += prepared.slots
        return running

    def _starting_seconds(self, image: "_Image") -> float:
        image.has_begun = True
        prepared = image.job.prepared
        seconds = prepared.slots * self._prompt_seconds
        return seconds + (self._times.encode_image_seconds(prepared.lora_and_size[1]) if prepared.kind.edit else 0.0)

    def _shorten(self) -> None:
        """End the batch with the pass that is under way, so that another image joins it."""
        done = max(int((self._env.now - self._began) / self._pass) + 1, 1)
        if done < self._passes_left:
            self._passes_left = done
            self._call_later(max(self._began + done * self._pass - self._env.now, 0.0), self._end)

    def _end(self) -> None:
        passes, running = self._passes_left, self._running
        self._running = []
        rows = sum(image.job.prepared.slots for image in running)
        self.busy += passes * self._pass
        self.passes[rows] = self.passes.get(rows, 0) + passes
        decoding = 0.0
        for image in running:
            image.left -= passes
            if not image.left:
                decoding += self._finish(image, decoding)
        self.busy += decoding
        if decoding:
            self._call_later(decoding, self._begin)
        else:
            self._begin()
        if any(not image.left for image in running):
            self._on_room()

    def _finish(self, image: "_Image", decoding: float) -> float:
        """Take an image off, after `decoding` seconds for others, and return the seconds of its decoding."""
        job, size = image.job, image.job.prepared.lora_and_size[1]
        seconds = self._times.decode_seconds(size)
        self._images.remove(image)
        job.missing -= 1
        self.slots -= job.prepared.slots
        self.cost -= job.prepared.cost
        if not job.missing:
            file = self._costs.file * size.area / MEGAPIXEL
            call_later(self._env, decoding + seconds + file + self._costs.response, partial(self._on_ended, job))
        return seconds

    def _call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call once, unless something else of this device is to be called instead until then."""
        self._version += 1
        version = self._version

        def fire(_: simpy.Event) -> None:
            if version == self._version:
                call()

        self._env.timeout(seconds).callbacks.append(fire)


class _Image:
    """An image with the steps that are left of it."""

    __slots__ = ("has_begun", "job", "left")

    def __init__(self, job: FleetJob, steps: int) -> None:
        self.job, self.left, self.has_begun = job, steps, False

"""An executor that only takes time: it says when each pass of a device begins and ends. Knows no tensors."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.noise import log_normal
from benchmarks.simulation.scenario import SimulationScenario
from engine.images.generated import GeneratedImage
from engine.request import LoraChoice
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch
from engine.scheduler.step_loop import BatchResult, StepResult


@dataclass(slots=True)
class SimulatedImage:
    """A `DenoisedImage` whose decoding takes `seconds` and is over at `ready_at`."""

    sample: Sample
    ready_at: float
    seconds: float

    def finish(self) -> GeneratedImage:
        """Return a black image whose pixels share one byte of memory."""
        sample = self.sample
        pixels = np.broadcast_to(np.uint8(0), (sample.size.height, sample.size.width, 3))
        return GeneratedImage(
            pixels, sample.request.seed, sample.num_inference_steps, sample.branches[0].prompt, sample.seconds
        )


@dataclass(frozen=True, slots=True)
class _RunningBatch:
    batch: Batch
    stepped: tuple[Sample, ...]  # their step is over with the batch, in every branch
    seconds: float  # of the pass
    charged: float  # with the prompts and init images before it
    ends: float
    decoded: tuple[SimulatedImage, ...]


class SimulatedExecutor:
    """A `StepExecutor` on a clock that something else moves.

    Args:
        now: returns the time.

    Attributes:
        busy: seconds of all work so far, with what is enqueued.
        passes: number of forward passes by batch size.
        free_at: time at which all work so far is done.
        pause: seconds of a change of LoRAs, which the caller lets pass and sets to 0.
    """

    def __init__(
        self,
        scenario: SimulationScenario,
        max_ahead: int,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._times, self._costs, self._different_prompts = scenario.times, scenario.costs, scenario.different_prompts
        self.busy = self.free_at = self.pause = 0.0
        self.passes: Counter[int] = Counter()
        self._max_ahead, self._now, self._rng = max_ahead, now, rng
        self._batches: deque[_RunningBatch] = deque()
        self._prompts: set[tuple[str, LoraChoice | None]] = set()  # that are encoded already
        self._uncharged: list[SimulatedImage] = []

    @property
    def running(self) -> int:
        return len(self._batches)

    @property
    def max_ahead(self) -> int:
        return self._max_ahead

    @property
    def next_end(self) -> float:
        """Time at which the oldest running batch is over."""
        return self._batches[0].ends

    def change_lora(self, lora: LoraChoice | None) -> Iterator[None]:  # noqa: ARG002
        self._uncharged.clear()
        self.pause = self._costs.lora_change
        self.busy += self.pause
        yield

    def enqueue(self, batch: Batch) -> None:
        began = max(self._now(), self.free_at) + self._costs.step
        before = sum(self._begin(sample, began) for sample in batch.samples if sample.first_pass_at is None)
        seconds = self._times.pass_seconds(batch.size, len(batch), batch.prompt_length)
        seconds *= log_normal(self._rng, self._costs.spread)
        self.busy += before + seconds
        self.passes[len(batch)] += 1
        self.free_at = began + before + seconds
        stepped = tuple(sample for sample in batch.samples if sample.is_step_complete)
        decoded = tuple(self._uncharged)
        self._batches.append(_RunningBatch(batch, stepped, seconds, before + seconds, self.free_at, decoded))
        self._uncharged = []

    def wait(self) -> BatchResult:
        running = self._batches.popleft()
        batch = running.batch
        share, pass_share = running.charged / len(batch), running.seconds / len(batch)
        charges = [(forward.sample, share) for forward in batch.passes]
        charges += [(image.sample, image.seconds) for image in running.decoded]
        for forward in batch.passes:
            forward.sample.record(passes=forward.sample.seconds.passes + pass_share)
        steps = [StepResult(sample) for sample in running.stepped if not sample.is_removed]
        return BatchResult(batch, running.seconds, charges, steps)

    def decode(self, sample: Sample) -> SimulatedImage:
        assert sample.first_pass_at is not None
        now, seconds = self._now(), self._times.decode_seconds(sample.size)
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        sample.record(denoiser=now - sample.first_pass_at, vae_decoder=seconds)
        image = SimulatedImage(sample, self.free_at, seconds)
        self._uncharged.append(image)
        return image

    def _begin(self, sample: Sample, now: float) -> float:
        """Return the seconds before the first pass of a sample."""
        encoded = init_image = 0.0
        for branch in sample.branches:
            prompt = branch.prompt.text, sample.request.lora_choice
            if self._different_prompts or prompt not in self._prompts:
                self._prompts.add(prompt)
                encoded += self._times.prompt_encoder_seconds(branch.length)
        if sample.request.edit is not None:
            init_image = self._times.encode_image_seconds(sample.size)
        sample.first_pass_at = now + encoded + init_image
        sample.record(prompt_encoder=encoded, vae_encoder=init_image)
        return encoded + init_image

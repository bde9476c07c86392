"""In-flight batching: images join and leave at step boundaries.

`Scheduler` decides what runs next, `Executor` runs it, and `EngineLoop` connects the two. One thread owns the loop. It
knows no clients and no limits on the number of queued images.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.errors import LoraMismatch
from engine.images.generated import GeneratedImage
from engine.init_image import InitImage
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.sampling.preview import preview_steps
from engine.sampling.tokenizer import TokenizedPrompts
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.executor import BatchResult, Executor
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.prompt_cache import PromptCache
from engine.scheduler.sample import GuidanceBranch, Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler
from engine.stages import StageTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _RunningChange:
    """A change of LoRAs whose portions are not all done."""

    change: LoraChange
    portions: Iterator[None]
    started: float


class EngineLoop:
    """Generates many images at once from one pipeline.

    Args:
        pipeline: the pipeline, used by nothing else. Its memory's slots limit how many images are under way.
        table: batch sizes that gain throughput.
        loras: LoRAs that requests may name; none of them is in the plans yet.
        lora_scheduler: the order of LoRAs, if not with the default time slices.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        table: BatchTable | None = None,
        loras: LoraRegistry | None = None,
        lora_scheduler: LoraScheduler | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.prompt_cache = PromptCache()
        self._loras = loras or LoraRegistry(pipeline)
        self._scheduler = Scheduler(pipeline.manifest, pipeline.memory.slots, table, lora_scheduler)
        self._executor = Executor(pipeline, self._loras, self.prompt_cache)
        self._running_change: _RunningChange | None = None

    @property
    def is_idle(self) -> bool:
        """True if `step` has nothing to do."""
        return self._scheduler.is_empty and not self._executor.running and self._running_change is None

    def use_table(self, table: BatchTable) -> None:
        """Batch by another table from the next pass on."""
        self._scheduler.use_table(table)

    def save_kernels(self) -> None:
        """Write kernels that were compiled since the last call to their files, for the next start."""
        self.pipeline.backend.save_kernels()

    def device_memory(self) -> tuple[int, int] | None:
        """Return the bytes of device memory in use and in total; None on a CPU."""
        return self.pipeline.memory.usage()

    def tokenize(self, request: ImageRequest) -> TokenizedPrompts:
        """Check a request and tokenize its prompts. Any thread may do this, beside the steps.

        Raises:
            InvalidRequest: the image cannot be generated.
        """
        started = time.perf_counter()
        request.check(self.pipeline.manifest, self._loras.names)
        self._loras.require_strength(request)
        is_guided = request.guided_steps(self.pipeline.manifest) > 0
        texts = (request.prompt, request.negative_prompt) if is_guided else (request.prompt,)
        prompts = tuple(map(self.pipeline.tokenize, texts))
        return TokenizedPrompts(prompts, time.perf_counter() - started)

    def submit(
        self,
        key: str,
        request: ImageRequest,
        previews: int = 0,
        *,
        prompts: TokenizedPrompts | None = None,
        init_image: InitImage | None = None,
        client: str = "",
        cost_factor: float = 1.0,
    ) -> None:
        """Queue an image.

        Args:
            key: name of the image in events; no other image under way may have it.
            previews: previews to return with `Stepped` events, spread evenly over the steps.
            prompts: result of `tokenize` for this request or for one with another seed; None to do it now.
            init_image: the image that the request's `edit` describes.
            client: name of the client, which gets an equal share of the device's time.
            cost_factor: times which the image counts against that share.

        Raises:
            InvalidRequest: the image cannot be generated.
        """
        prompts = prompts or self.tokenize(request)
        request.check_init_image(init_image, self.pipeline.manifest)
        schedule = self.pipeline.schedule(request)
        steps = len(schedule) - 1, request.guided_steps(self.pipeline.manifest)  # of the branches
        sample = Sample(
            key=key,
            request=request,
            size=request.size(self.pipeline.manifest),
            num_inference_steps=request.steps(self.pipeline.manifest),
            schedule=schedule,
            branches=tuple(map(GuidanceBranch, prompts.prompts, steps)),
            init_image=init_image,
            previews=preview_steps(previews, len(schedule) - 1),
            client=client,
            cost_factor=cost_factor,
            submitted_at=time.perf_counter(),
            seconds=StageTimes(tokenize=prompts.seconds),
        )
        self._scheduler.add(sample)

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
        now = time.perf_counter()
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
        events: list[Event] = []
        while self._executor.running > (self._executor.max_ahead if work else 0):
            events += self._complete(self._executor.wait())
        return events

    def generate(
        self,
        request: ImageRequest,
        on_step: Callable[[int, int], None] | None = None,
        *,
        init_image: InitImage | None = None,
    ) -> GeneratedImage:
        """Generate one image on a loop that has no other.

        Args:
            init_image: the image that the request's `edit` describes.
            on_step: called after each step with (steps done, steps in all).

        Raises:
            InvalidRequest, NonFiniteOutput, DeviceError: the reason why there is no image.
        """
        assert self._scheduler.is_empty
        self.submit("", request, init_image=init_image)
        try:
            while True:
                for event in self.step():
                    match event:
                        case Stepped() if on_step is not None:
                            on_step(event.done, event.steps)
                        case Failed():
                            raise event.error
                        case Denoised():
                            return event.pending.finish()
        finally:
            self.cancel("")

    def _continue_change(self, running: _RunningChange) -> list[Event]:
        """Do one portion of a change of LoRAs, so that the caller sees progress."""
        change, self._running_change = running.change, None
        try:
            next(running.portions)
        except StopIteration:
            seconds = time.perf_counter() - running.started
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

    def _complete(self, result: BatchResult) -> list[Event]:
        """Record a batch that is over, and return its events."""
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


def _announce(work: Batch | LoraChange) -> list[Event]:
    """Return a `Started` event for each sample that is about to run first: the work may end the process."""
    new = [sample for sample in work.samples if not sample.is_announced]
    for sample in new:
        sample.is_announced = True
    return [Started(sample.key) for sample in new]

"""In-flight batching: images join and leave at step boundaries.

`Scheduler` decides what runs next, `Executor` runs it on a pipeline, and `StepLoop`, of which `EngineLoop` is one,
connects the two. One thread owns the loop. It knows no clients and no limits on the number of queued images.
"""

import time
from collections.abc import Callable

from engine.images.generated import GeneratedImage
from engine.init_image import InitImage
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.sampling.tokenizer import TokenizedPrompts
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Failed, Stepped
from engine.scheduler.executor import Executor
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.prompt_cache import PromptCache
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step_loop import StepLoop


class EngineLoop(StepLoop):
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
        scheduler = Scheduler(pipeline.manifest, pipeline.memory.slots, table, lora_scheduler)
        super().__init__(scheduler, Executor(pipeline, self._loras, self.prompt_cache))

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
        sample = Sample.of(
            key,
            request,
            self.pipeline.manifest,
            prompts,
            self.pipeline.schedule(request),
            submitted_at=time.perf_counter(),
            init_image=init_image,
            previews=previews,
            client=client,
            cost_factor=cost_factor,
        )
        self.add(sample)

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

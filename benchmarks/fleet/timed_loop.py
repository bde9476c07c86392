"""An engine loop that sleeps instead of computing: real scheduling and batching, measured time, no processor.

Knows requests and pass times; no processes.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.fleet.launch import sleep
from benchmarks.fleet.plans import picture
from engine.images.generated import GeneratedImage
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import ImageRequest, LoraChoice
from engine.sampling.tokenizer import TokenizedPrompt, TokenizedPrompts
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.prompt_cache import PromptCache
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch, Scheduler
from engine.scheduler.step_loop import BatchResult, StepLoop, StepResult

KILL_PROMPT = "this prompt kills its worker"
HANG_PROMPT = "this prompt hangs its worker"
TOKENS = tuple(range(20))  # of every prompt


class DrawnImage(NamedTuple):
    """An image that is there at once, in place of a `PendingImage`."""

    sample: Sample
    image: GeneratedImage

    def finish(self) -> GeneratedImage:
        return self.image


class TimedLoop(StepLoop):
    """A `Loop` of `server.worker.worker` whose forward pass sleeps for the time in a table.

    Attributes:
        hangs: once set, the next pass never returns.
    """

    def __init__(self, manifest: Manifest, table: BatchTable, slots: int, loras: Sequence[str] = ()) -> None:
        self.prompt_cache = PromptCache()
        self.hangs = threading.Event()
        self._manifest, self._loras = manifest, loras
        super().__init__(Scheduler(manifest, slots, table), SleepingExecutor(table, self.hangs))

    def device_memory(self) -> None:
        return None

    def save_kernels(self) -> None:
        pass

    def tokenize(self, request: ImageRequest) -> TokenizedPrompts:
        request.check(self._manifest, self._loras)
        texts = (request.prompt, request.negative_prompt)[: 2 if request.guided_steps(self._manifest) else 1]
        return TokenizedPrompts(tuple(TokenizedPrompt(TOKENS, text, "") for text in texts), 0.0)

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
        prompts = prompts or self.tokenize(request)
        request.check_init_image(init_image, self._manifest)
        sample = Sample.of(
            key,
            request,
            self._manifest,
            prompts,
            np.asarray(request.noise_levels(self._manifest), np.float32),
            submitted_at=time.perf_counter(),
            init_image=init_image,
            previews=previews,
            client=client,
            cost_factor=cost_factor,
        )
        self.add(sample)


class SleepingExecutor:
    """A `StepExecutor` whose forward pass sleeps for the time in a table. LoRAs change at once.

    Args:
        hangs: once set, the next pass never returns.
    """

    max_ahead = 0

    def __init__(self, table: BatchTable, hangs: threading.Event) -> None:
        self._table, self._hangs = table, hangs
        self._running: Batch | None = None

    @property
    def running(self) -> int:
        return int(self._running is not None)

    def change_lora(self, lora: LoraChoice | None) -> Iterator[None]:  # noqa: ARG002
        return iter(())

    def enqueue(self, batch: Batch) -> None:
        for sample in batch.samples:
            sample.first_pass_at = sample.first_pass_at or time.perf_counter()
        self._running = batch

    def wait(self) -> BatchResult:
        assert self._running is not None
        batch, self._running = self._running, None
        began = time.perf_counter()
        self._misbehave(batch)
        sleep(self.seconds(batch))
        spent = time.perf_counter() - began
        charges = [(forward.sample, spent / len(batch)) for forward in batch.passes]
        for sample, share in charges:  # from which servers estimate
            sample.record(passes=sample.seconds.passes + share)
        return BatchResult(
            batch, spent, charges, [_step_result(sample) for sample in batch.samples if sample.is_step_complete]
        )

    def decode(self, sample: Sample) -> DrawnImage:
        assert sample.first_pass_at is not None
        sample.record(denoiser=time.perf_counter() - sample.first_pass_at)
        return DrawnImage(sample, _draw(sample))

    def seconds(self, batch: Batch) -> float:
        """Return the time of a pass: that of the next larger measured size and batch, or of the largest."""
        rows = sorted(self._table.rows, key=lambda row: row.area)
        row = next((row for row in rows if row.area >= batch.size.area), rows[-1])
        return row.seconds[min(len(batch), len(row.seconds)) - 1]

    def _misbehave(self, batch: Batch) -> None:
        """Do what a broken driver does, if a prompt or a signal asks for it."""
        prompts = {sample.request.prompt for sample in batch.samples}
        if KILL_PROMPT in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        while HANG_PROMPT in prompts or self._hangs.is_set():
            sleep(3600.0)


def _step_result(sample: Sample) -> StepResult:
    step = sample.done + 1
    if step not in sample.previews:
        return StepResult(sample)
    return StepResult(sample, np.full((16, sample.size.height // 8, sample.size.width // 8), 1.0, np.float32))


def _draw(sample: Sample) -> GeneratedImage:
    return GeneratedImage(
        picture(sample.request, sample.steps),
        sample.request.seed,
        sample.num_inference_steps,
        sample.branches[0].prompt,
        sample.seconds,
    )

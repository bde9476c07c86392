"""An engine loop that sleeps instead of computing: real scheduling and batching, measured time, no processor.

Knows requests and pass times; no processes.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.fleet.launch import sleep
from benchmarks.fleet.plans import picture
from engine.images.generated import GeneratedImage
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from engine.sampling.preview import preview_steps
from engine.sampling.tokenizer import TokenizedPrompt, TokenizedPrompts
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Event, Passed, Started, Stepped, Switched
from engine.scheduler.prompt_cache import PromptCache
from engine.scheduler.sample import GuidanceBranch, Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler
from engine.stages import StageTimes

KILL_PROMPT = "this prompt kills its worker"
HANG_PROMPT = "this prompt hangs its worker"
TOKENS = tuple(range(20))  # of every prompt


class DrawnImage(NamedTuple):
    """An image that is there at once, in place of a `PendingImage`."""

    sample: Sample
    image: GeneratedImage

    def finish(self) -> GeneratedImage:
        return self.image


class TimedLoop:
    """A `Loop` of `server.worker.worker` whose forward pass sleeps for the time in a table.

    Attributes:
        hangs: once set, the next pass never returns.
    """

    def __init__(self, manifest: Manifest, table: BatchTable, slots: int, loras: Sequence[str] = ()) -> None:
        self.prompt_cache = PromptCache()
        self.hangs = threading.Event()
        self._manifest, self._table, self._loras = manifest, table, loras
        self._scheduler = Scheduler(manifest, slots, table)

    @property
    def is_idle(self) -> bool:
        return self._scheduler.is_empty

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
        schedule = np.asarray(request.noise_levels(self._manifest), np.float32)
        steps = len(schedule) - 1, request.guided_steps(self._manifest)
        sample = Sample(
            key=key,
            request=request,
            size=request.size(self._manifest),
            num_inference_steps=request.steps(self._manifest),
            schedule=schedule,
            branches=tuple(map(GuidanceBranch, prompts.prompts, steps)),
            init_image=init_image,
            previews=preview_steps(previews, len(schedule) - 1),
            client=client,
            cost_factor=cost_factor,
            submitted_at=time.perf_counter(),
        )
        self._scheduler.add(sample)

    def cancel(self, key: str) -> bool:
        sample = self._scheduler.get(key)
        if sample is not None:
            self._scheduler.remove(sample)
        return sample is not None

    def step(self) -> list[Event]:
        now = time.perf_counter()
        work = self._scheduler.next(now)
        if work is None:
            return []
        if new := [sample for sample in work.samples if not sample.is_announced]:
            for sample in new:
                sample.is_announced = True
            return [Started(sample.key) for sample in new]
        if isinstance(work, LoraChange):
            self._scheduler.complete_change(work, 0.0)
            return [Switched(0.0)]
        return self._run(work, now)

    def _run(self, batch: Batch, now: float) -> list[Event]:
        self._scheduler.start(batch, now)
        self._misbehave(batch)
        sleep(self.seconds(batch))
        spent = time.perf_counter() - now
        self._scheduler.complete(batch, [(forward.sample, spent / len(batch)) for forward in batch.passes])
        events: list[Event] = [Passed(len(batch), spent)]
        for sample in batch.samples:
            latents = np.full((16, sample.size.height // 8, sample.size.width // 8), 1.0, np.float32)
            estimate = latents if sample.done in sample.previews else None
            events.append(Stepped(sample.key, sample.done, sample.steps, estimate))
            if sample.done == sample.steps:
                events.append(Denoised(sample.key, DrawnImage(sample, self._draw(sample))))  # type: ignore[arg-type]
                self._scheduler.remove(sample)
        return events

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
        while HANG_PROMPT in prompts or self.hangs.is_set():
            sleep(3600.0)

    def _draw(self, sample: Sample) -> GeneratedImage:
        return GeneratedImage(
            picture(sample.request, sample.steps),
            sample.request.seed,
            sample.num_inference_steps,
            sample.branches[0].prompt,
            StageTimes(),
        )

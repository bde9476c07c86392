"""Runners: zimage-trt and its peers behind one interface, and a timer that splits a generation into stages."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.harness.pixels import Pixels
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.sampling.schedule import sigmas

STAGES = ("tokenize", "prompt_encoder", "step", "decode", "copy", "encode")


class StageTimer:
    """Seconds of each stage of one generation, by the host's clock. The generation starts when the timer is made.

    Args:
        synchronize: function that waits until the device is idle. None makes a timer that records nothing.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self.seconds: dict[str, list[float]] = defaultdict(list)
        if synchronize is not None:
            synchronize()
        self._last = time.perf_counter()

    def record(self, stage: str, *, wait: bool = True) -> None:
        """End a stage and start the next one.

        Args:
            wait: wait for the device first; False if the caller knows that the device has finished the stage.
        """
        if self._synchronize is None:
            return
        if wait:
            self._synchronize()
        now = time.perf_counter()
        self.seconds[stage].append(now - self._last)
        self._last = now


NO_TIMER = StageTimer()


class Runner(Protocol):
    """A program that generates images from prompts."""

    name: str

    def tokens(self, prompt: str) -> int:
        """Return the number of tokens of a rendered prompt, without padding."""
        ...

    def generate(self, requests: Sequence[ImageRequest], timer: StageTimer = NO_TIMER) -> list[Pixels]:
        """Generate images of one size, in one batch if the runner supports batches.

        Args:
            timer: records each stage in `STAGES` except "encode"; "step" once per forward pass.

        Returns:
            [height, width, 3] uint8 each.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        ...

    def close(self) -> None:
        """Free the runner's memory. It cannot generate afterwards."""
        ...


class PlanRunner:
    """A plan directory, run stage by stage as in `Pipeline.generate`, in batches.

    A step ends when its latents have arrived on the host; the next step is running by then. The copy of the image to
    the host is enqueued with the decoder and counts as "decode". "copy" is the copy out of the buffer.
    """

    def __init__(self, directory: Path, options: RuntimeOptions) -> None:
        self._pipeline = Pipeline.load(directory, options)
        manifest = self._pipeline.manifest
        self.name = f"zimage-trt, {manifest.target.flavor} {manifest.precision}"

    def tokens(self, prompt: str) -> int:
        return len(self._pipeline.tokenize(prompt).ids)

    def generate(self, requests: Sequence[ImageRequest], timer: StageTimer = NO_TIMER) -> list[Pixels]:
        model = self._pipeline.manifest.model
        size = requests[0].size(self._pipeline.manifest)
        prompts = [self._pipeline.tokenize(request.prompt) for request in requests]
        timer.record("tokenize")
        prompt_embeds = self._pipeline.encode_prompt(prompts)
        timer.record("prompt_encoder")
        noise = np.concatenate([self._pipeline.noise(request.seed, size) for request in requests])
        schedule = sigmas(requests[0].num_inference_steps or model.default_steps, model.schedule_shift)
        latents = self._pipeline.denoise(prompt_embeds, noise, schedule, lambda *_: timer.record("step", wait=False))
        pixels = []
        for index in range(len(requests)):
            decoded = self._pipeline.decode(latents, index)
            timer.record("decode")
            pixels.append(decoded.wait())
            timer.record("copy")
        return pixels

    def synchronize(self) -> None:
        self._pipeline.synchronize()

    def close(self) -> None:
        self._pipeline.close()

"""Who generates: zimage-trt and its peers behind one verb, and the clock that splits a generating into stages."""

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


class Laps:
    """Seconds of each stage of a generating that begins now, by the host's clock; off, it waits for and keeps nothing.

    Args:
        synchronize: waits until the device is done; None for off.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self.seconds: dict[str, list[float]] = defaultdict(list)
        if synchronize is not None:
            synchronize()
        self._last = time.perf_counter()

    def __call__(self, stage: str, *, wait: bool = True) -> None:
        """The stage is over as soon as the device is done or, if the caller knows that it is, at once."""
        if self._synchronize is None:
            return
        if wait:
            self._synchronize()
        now = time.perf_counter()
        self.seconds[stage].append(now - self._last)
        self._last = now


OFF = Laps()


class Runner(Protocol):
    """Somebody who turns prompts into images with the weights of the run."""

    name: str

    def tokens(self, prompt: str) -> int:
        """How many tokens the model sees of a prompt, padding apart."""
        ...

    def generate(self, requests: Sequence[ImageRequest], laps: Laps = OFF) -> list[Pixels]:
        """Images of one size, [height, width, 3] uint8 each, in one batch if the contestant takes batches.

        Args:
            laps: told of each stage in `STAGES` but "encode" when it ends, of "step" for each forward pass.
        """
        ...

    def synchronize(self) -> None:
        """Waits until nothing is running."""
        ...

    def close(self) -> None:
        """Frees its memory; it generates no more."""
        ...


class Ours:
    """A plan directory, driven stage by stage as `Pipeline.generate` does, and in batches.

    A step ends when its latents have arrived at the host, by when the next one is running. The image's copy to the
    host is enqueued with the decoder and counts there; "copy" is what the host then does with the values.
    """

    def __init__(self, directory: Path, options: RuntimeOptions) -> None:
        self._pipeline = Pipeline.load(directory, options)
        manifest = self._pipeline.manifest
        self.name = f"zimage-trt, {manifest.target.flavor} {manifest.precision}"

    def tokens(self, prompt: str) -> int:
        return len(self._pipeline.tokenize(prompt).ids)

    def generate(self, requests: Sequence[ImageRequest], laps: Laps = OFF) -> list[Pixels]:
        model = self._pipeline.manifest.model
        size = requests[0].size(self._pipeline.manifest)
        prompts = [self._pipeline.tokenize(request.prompt) for request in requests]
        laps("tokenize")
        prompt_embeds = self._pipeline.encode_prompt(prompts)
        laps("prompt_encoder")
        noise = np.concatenate([self._pipeline.noise(request.seed, size) for request in requests])
        schedule = sigmas(requests[0].num_inference_steps or model.default_steps, model.schedule_shift)
        latents = self._pipeline.denoise(prompt_embeds, noise, schedule, lambda *_: laps("step", wait=False))
        pixels = []
        for index in range(len(requests)):
            decoded = self._pipeline.decode(latents, index)
            laps("decode")
            pixels.append(decoded.wait())
            laps("copy")
        return pixels

    def synchronize(self) -> None:
        self._pipeline.synchronize()

    def close(self) -> None:
        self._pipeline.close()

"""A fake engine that generates plain colours. Run as a script, a worker process with this engine."""

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from fakes.manifest import MANIFEST as SAMPLE

from engine.backends.cuda import failure
from engine.errors import LoraMismatch, NonFiniteOutput
from engine.images.generated import GeneratedImage
from engine.images.mask_crop import paste_back
from engine.init_image import InitImage
from engine.plan.manifest import PreviewProjection, Profile, PromptFormat, Range
from engine.request import ImageRequest, LoraChoice
from engine.sampling.tokenizer import TokenizedPrompt, TokenizedPrompts
from engine.scheduler.events import Denoised, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.prompt_cache import PromptCache
from engine.size import Size
from engine.stages import StageTimes
from server.worker.worker import Worker

MODEL = "Tongyi-MAI/Z-Image-Nano"
WORDS = 20  # of a prompt that the fake uses
NAN_PROMPT = "overflow"
BROKEN_PROMPT = "crash"
LOST_PROMPT = "the GPU falls off the bus"
HANG_PROMPT = "hang"
KILL_PROMPT = "kill -9"
HANG_TOKENIZER_PROMPT = "hang in the tokenizer"  # these two only in a process
KILL_TOKENIZER_PROMPT = "kill -9 from the tokenizer"
LORAS = ("outlines", "damaged")
SWITCH = 0.25  # seconds that a change of LoRAs seems to take
SECRET = "a detail of the inside"

MANIFEST = replace(
    SAMPLE,
    precision="fp16",
    model=replace(SAMPLE.model, name=MODEL, prompt=PromptFormat("", "", WORDS, 0)),
    profiles=(Profile("default", Range(64, 96, 256), Range(64, 128, 256), Range(1, 1, 1), Range(32, 32, 512)),),
    preview=PreviewProjection(((8.0, 8.0, 8.0),) * 16, (0.0, 0.0, 0.0), 1.0),
)


class Finished(NamedTuple):
    sample: SimpleNamespace  # with its request
    image: GeneratedImage

    def finish(self) -> GeneratedImage:
        return self.image


@dataclass
class FakeLoop:
    """Generates one image after the other, a step at a time.

    Red is the seed, green the number of steps that were run, blue the length of the prompt. With an init image, blue is
    the red of its first pixel, and pixels that its mask keeps are unchanged.
    """

    seconds_per_step: float = 0.0
    may_kill: bool = False

    def __post_init__(self) -> None:
        self.log: list[tuple[str, int]] = []  # (prompt, step) of each pass
        self.pending = threading.Event()
        self.saves = 0  # of kernels
        self.prompt_cache = PromptCache()
        self.store: Any = None  # of its server
        self._lora: LoraChoice | None = None
        self._queue: dict[str, tuple[ImageRequest, int, InitImage | None]] = {}
        self._done: dict[str, int] = {}
        self._announced: set[str] = set()

    @property
    def is_idle(self) -> bool:
        return not self._queue

    def device_memory(self) -> tuple[int, int]:
        return 3 << 30, 8 << 30

    def save_kernels(self) -> None:
        self.saves += 1

    def tokenize(self, request: ImageRequest) -> TokenizedPrompts:
        request.check(MANIFEST, LORAS)
        if request.prompt == HANG_TOKENIZER_PROMPT:
            time.sleep(3600)
        if request.prompt == KILL_TOKENIZER_PROMPT:
            os.kill(os.getpid(), signal.SIGKILL)
        return TokenizedPrompts((), 0.0)

    def submit(
        self,
        key: str,
        request: ImageRequest,
        previews: int = 0,
        *,
        init_image: InitImage | None = None,
        **_: object,
    ) -> None:
        request.check_init_image(init_image, MANIFEST)
        assert init_image is None or init_image.digest() == request.edit.image
        self._queue[key] = request, previews, init_image
        self._done[key] = 0
        self._announced.discard(key)

    def cancel(self, key: str) -> bool:
        return self._queue.pop(key, None) is not None

    def step(self) -> list[Event]:
        if not self._queue:
            return []
        key, (request, previews, init_image) = next(iter(self._queue.items()))
        if request.lora == "damaged":
            del self._queue[key]
            return [Failed(key, LoraMismatch("the LoRA 'damaged' cannot be used now; the log says why"))]
        if key not in self._announced:
            self._announced.add(key)
            return [Started(key)]
        steps = request.steps_to_run(MANIFEST)
        self._done[key] += 1
        done = self._done[key]
        self.log.append((request.prompt, done))
        self.pending.set()
        time.sleep(self.seconds_per_step)
        self._misbehave(request.prompt, done)
        events: list[Event] = []
        if request.lora_choice != self._lora:
            self._lora = request.lora_choice
            events.append(Switched(SWITCH))
        size = request.size(MANIFEST)
        estimate = (
            np.full((16, size.height // 8, size.width // 8), 1.0, np.float32) if 0 < steps - done <= previews else None
        )
        events += [Passed(1, self.seconds_per_step), Stepped(key, done, steps, estimate)]
        if done == steps:
            del self._queue[key]
            if request.prompt == NAN_PROMPT:
                events[-1] = Failed(key, NonFiniteOutput("the latents hold NaN or Inf"))
            else:
                events.append(
                    Denoised(
                        key, Finished(SimpleNamespace(request=request), self._image(request, size, steps, init_image))
                    )
                )
        return events

    def _misbehave(self, prompt: str, done: int) -> None:
        if done == 1 and prompt == KILL_PROMPT and self.may_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if done != 2:
            return
        if prompt == LOST_PROMPT:
            raise failure("cudaEventSynchronize", "cudaErrorECCUncorrectable")
        if prompt == BROKEN_PROMPT:
            raise RuntimeError(SECRET)
        if prompt == HANG_PROMPT:
            time.sleep(3600 if self.may_kill else 2.5)

    def _image(self, request: ImageRequest, size: Size, steps: int, init_image: InitImage | None) -> GeneratedImage:
        blue = len(request.prompt) % 256 if init_image is None else init_image.pixels[0]
        pixels = np.broadcast_to(np.array([request.seed % 256, steps, blue], np.uint8), (size.height, size.width, 3))
        if init_image is not None and init_image.mask is not None:
            pixels = np.where(init_image.mask_array()[:, :, None], pixels, init_image.pixel_array())
        if init_image is not None:
            pixels = paste_back(np.ascontiguousarray(pixels), init_image)
        pixels = np.ascontiguousarray(pixels)
        words = request.prompt.split(" ")
        kept, dropped = " ".join(words[:WORDS]), " ".join(words[WORDS:])
        prompt = TokenizedPrompt(tuple(range(len(words[:WORDS]))), kept, dropped)
        passes = self.seconds_per_step * steps
        return GeneratedImage(
            pixels, request.seed, request.steps(MANIFEST), prompt, StageTimes(passes=passes, denoiser=passes)
        )


def main(seconds_per_step: str, descriptor: str) -> None:
    with socket.socket(fileno=int(descriptor)) as sock:
        Worker(FakeLoop(float(seconds_per_step), may_kill=True), MANIFEST, sock).run(0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])

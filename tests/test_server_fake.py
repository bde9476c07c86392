"""A pipeline that draws plain colours, and a server for it in a thread. Run as a script it serves itself."""

import base64
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import openai
import uvicorn
from openai.types import ImagesResponse
from PIL import Image
from sample_manifest import MANIFEST as SAMPLE

from engine.cuda import failure
from engine.errors import InvalidRequest, NonFiniteOutput
from engine.manifest import Profile, PromptFormat, Range
from engine.pipeline import OnStep, Picture
from engine.prompt import TokenizedPrompt
from engine.request import PictureRequest
from engine.schedule import sigmas
from server.app import create_app

IMAGES = "/v1/images/generations"
MODEL = "Tongyi-MAI/Z-Image-Nano"
WORDS = 20  # what the fake's context holds
NAN_PROMPT = "overflow"
BROKEN_PROMPT = "crash"
LOST_PROMPT = "the GPU falls off the bus"
SECRET = "a detail of the inside"

MANIFEST = replace(
    SAMPLE,
    precision="fp16",
    model=replace(SAMPLE.model, name=MODEL, prompt=PromptFormat("", "", WORDS, 0)),
    profiles=(Profile("default", Range(64, 96, 256), Range(64, 128, 256), Range(1, 1, 1), Range(32, 32, 512)),),
)


class Drawn(NamedTuple):
    picture: Picture

    def finish(self) -> Picture:
        return self.picture


class FakePipeline:
    """Colours tell what was asked: red is the seed, green the steps, blue the prompt's length.

    Like the real one it does not stand two threads, and says so.
    """

    manifest = MANIFEST

    def __init__(self, seconds_per_step: float = 0.0) -> None:
        self.seconds_per_step = seconds_per_step
        self.log: list[tuple[str, int]] = []  # (prompt, step), in the order drawn
        self.drawing = threading.Event()
        self._busy = threading.Lock()

    def check(self, request: PictureRequest) -> None:
        self._schedule(request)
        if not request.prompt.strip():
            raise InvalidRequest("prompt must not be empty", "prompt")

    def start(self, request: PictureRequest, on_step: OnStep | None = None) -> "Drawn":
        return Drawn(self.generate(request, on_step))

    def close(self) -> None:
        self.closed = True

    def generate(self, request: PictureRequest, on_step: OnStep | None = None) -> Picture:
        assert self._busy.acquire(blocking=False), "two threads in one pipeline"
        try:
            return self._generate(request, on_step)
        finally:
            self._busy.release()

    def _generate(self, request: PictureRequest, on_step: OnStep | None) -> Picture:
        steps = len(self._schedule(request)) - 1
        for step in range(1, steps + 1):
            self.log.append((request.prompt, step))
            self.drawing.set()
            time.sleep(self.seconds_per_step)
            if on_step is not None:
                on_step(step, steps)
        if request.prompt == NAN_PROMPT:
            raise NonFiniteOutput("the latents hold NaN or Inf")
        if request.prompt == LOST_PROMPT:
            raise failure("cudaEventSynchronize", "cudaErrorECCUncorrectable")
        if request.prompt == BROKEN_PROMPT:
            raise RuntimeError(SECRET)
        height, width = self._size(request)
        colour = np.array([request.seed % 256, steps, len(request.prompt) % 256], np.uint8)
        pixels = np.broadcast_to(colour, (height, width, 3)).copy()
        words = request.prompt.split(" ")
        kept, dropped = " ".join(words[:WORDS]), " ".join(words[WORDS:])
        prompt = TokenizedPrompt(tuple(range(len(words[:WORDS]))), kept, dropped)
        return Picture(pixels, request.seed, steps, prompt)

    def _size(self, request: PictureRequest) -> tuple[int, int]:
        height, width = self.manifest.default_size
        return (
            height if request.height is None else request.height,
            width if request.width is None else request.width,
        )

    def _schedule(self, request: PictureRequest) -> np.ndarray:
        self.manifest.profile_for(*self._size(request))
        steps = request.num_inference_steps
        return sigmas(self.manifest.model.default_steps if steps is None else steps, 3.0)


@contextmanager
def serving(pipeline: FakePipeline) -> Iterator[str]:
    """The base URL of a server in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(create_app(pipeline), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive()


def official_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=10)


def pixels(response: ImagesResponse, index: int = 0) -> np.ndarray:
    png = Image.open(io.BytesIO(base64.b64decode(response.data[index].b64_json)))
    assert png.format == "PNG"
    return np.asarray(png)


if __name__ == "__main__":
    from server import serving

    seconds_per_step, serving.GRACE_SECONDS = map(float, sys.argv[1:])
    serving.serve(lambda: FakePipeline(seconds_per_step), "127.0.0.1", 0, time.perf_counter())

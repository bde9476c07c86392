"""The engine without HTTP: a process set up as the server's worker, kept full by calls: the server's upper bound.

python -m benchmarks.load.bare_loop PLANS THREADS
"""

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness.subprocess_client import Answer, serve
from benchmarks.load.traffic import Case, cases
from engine.images import encode as images
from engine.images.metadata import ImageMetadata, file_metadata
from engine.options import RuntimeOptions
from engine.pipeline import GeneratedImage, Pipeline
from engine.plan.manifest import resolve
from engine.request import ImageRequest
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Failed
from engine.scheduler.loop import EngineLoop
from engine.scheduler.pending_image import PendingImage
from server.settings import SEATS
from server.worker.process import FINISHERS, warm_up


class BareLoop:
    """Generates as fast as it can."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._finishers = ThreadPoolExecutor(FINISHERS)

    def generate(self, prompt: str, size: int, seed: int) -> Answer:
        """One image, alone: the engine's seconds, and those of encoding."""
        request = Case(prompt, size, seed).request()
        started = time.perf_counter()
        image = self._loop.generate(request)
        generated = time.perf_counter()
        self._encode(request, image)
        return {"engine_s": generated - started, "encode_s": time.perf_counter() - generated}

    def fill(self, size: int, clients: int, warm: float, seconds: float) -> Answer:
        """`clients` images under way at any time: when each was encoded, from `warm` seconds after the start on."""
        ended: list[float] = []
        wanted = cases(size)
        under_way: dict[str, ImageRequest] = {}

        def submit() -> None:
            case = next(wanted)
            under_way[str(case.seed)] = case.request()
            self._loop.submit(str(case.seed), case.request())

        def finish(pending: PendingImage, request: ImageRequest) -> None:
            self._encode(request, pending.finish())
            ended.append(time.perf_counter())

        for _ in range(clients):
            submit()
        start = time.perf_counter() + warm
        while time.perf_counter() < start + seconds:
            for event in self._loop.step():
                match event:
                    case Denoised(key, pending):
                        self._finishers.submit(finish, pending, under_way.pop(key))
                        submit()
                    case Failed(_, error):
                        raise error
        for key in under_way:
            self._loop.cancel(key)
        while not self._loop.is_idle:
            self._loop.step()
        return {"ended": [at for at in ended if at >= start], "images": len(ended)}

    def _encode(self, request: ImageRequest, image: GeneratedImage) -> None:
        metadata = ImageMetadata.of(self._loop.pipeline.manifest, request, image)
        images.encode(image.pixels, text=file_metadata(request, metadata))


def main(plans: str, threads: str) -> None:
    logging.disable(logging.INFO)
    directory = resolve(Path(plans))
    with Pipeline.load(directory, RuntimeOptions(threads=int(threads), slots=SEATS)) as pipeline:
        loop = EngineLoop(pipeline, BatchTable.read(directory))
        warm_up(loop)
        bare = BareLoop(loop)
        functions: dict[str, Callable[..., Answer]] = {"generate": bare.generate, "fill": bare.fill}
        serve(functions)


if __name__ == "__main__":
    main(*sys.argv[1:])

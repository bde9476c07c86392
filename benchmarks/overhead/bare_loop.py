"""The engine without HTTP, in a process set up as the server's worker: the upper bound of the server's throughput.

python -m benchmarks.overhead.bare_loop PLANS THREADS
"""

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness.subprocess_client import Answer, serve
from benchmarks.overhead.traffic import Case, cases
from engine.images.encode import encode
from engine.images.generated import GeneratedImage
from engine.images.metadata import file_metadata
from engine.options import SLOTS, RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import resolve
from engine.request import ImageRequest
from engine.scheduler.events import Denoised, DenoisedImage, Failed
from engine.scheduler.loop import EngineLoop
from engine.scheduler.table_files import TableFile
from server.worker.finisher import FINISHERS
from server.worker.process import generate_smallest


class BareLoop:
    """An engine loop that generates as fast as it can."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._finishers = ThreadPoolExecutor(FINISHERS)

    def generate(self, prompt: str, size: int, seed: int) -> Answer:
        """Generate and encode one image; return the seconds of both."""
        request = Case(prompt, size, seed).request()
        started = time.perf_counter()
        image = self._loop.generate(request)
        generated = time.perf_counter()
        self._encode(request, image)
        return {"engine_s": generated - started, "encode_s": time.perf_counter() - generated}

    def fill(self, size: int, clients: int, warm: float, seconds: float) -> Answer:
        """Keep `clients` images in flight; return the times at which images were encoded, without the warm-up.

        Args:
            warm: seconds of warm-up.
            seconds: seconds from the start, warm-up included.
        """
        ended: list[float] = []
        upcoming = cases(size)
        in_flight: dict[str, ImageRequest] = {}

        def submit() -> None:
            case = next(upcoming)
            in_flight[str(case.seed)] = case.request()
            self._loop.submit(str(case.seed), case.request())

        def finish(pending: DenoisedImage, request: ImageRequest) -> None:
            self._encode(request, pending.finish())
            ended.append(time.perf_counter())

        for _ in range(clients):
            submit()
        start = time.perf_counter() + warm
        while time.perf_counter() < start + seconds:
            for event in self._loop.step():
                match event:
                    case Denoised(key, pending):
                        self._finishers.submit(finish, pending, in_flight.pop(key))
                        submit()
                    case Failed(_, error):
                        raise error
        for key in in_flight:
            self._loop.cancel(key)
        while not self._loop.is_idle:
            self._loop.step()
        return {"ended": [at for at in ended if at >= start], "images": len(ended)}

    def _encode(self, request: ImageRequest, image: GeneratedImage) -> None:
        metadata = image.metadata(self._loop.pipeline.manifest, request)
        encode(image.pixels, text=file_metadata(request, metadata))


def main(plans: str, threads: str) -> None:
    logging.disable(logging.INFO)
    directory = resolve(Path(plans))
    with Pipeline.load(directory, RuntimeOptions(threads=int(threads), slots=SLOTS)) as pipeline:
        table = TableFile.of(directory, pipeline).read()
        loop = EngineLoop(pipeline, table)
        generate_smallest(loop)
        bare = BareLoop(loop)
        functions: dict[str, Callable[..., Answer]] = {
            "generate": bare.generate,
            "fill": bare.fill,
            "table": lambda: {"is_there": table is not None},
        }
        serve(functions)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Peak memory of the steps of an image, as measured by Python and numpy."""

import tracemalloc
from collections.abc import Callable

from engine.pipeline import OnStep, Pipeline
from engine.request import ImageRequest

STEP_BYTES = 16 << 10  # views, names and tuples; measured 3.5 KiB at any size, where latents of 256x256 have 64 KiB


def step_peak(pipeline: Pipeline, request: ImageRequest) -> int:
    """Return `peak_of` generating an image on a pipeline."""
    return peak_of(lambda on_step: pipeline.generate(request, on_step))


def peak_of(generate: Callable[[OnStep], object]) -> int:
    """Return the peak bytes between the second step and the last, beyond those held before."""
    peak: list[int] = []

    def on_step(done: int, steps: int) -> None:
        if done == 2:
            tracemalloc.reset_peak()
            peak.append(tracemalloc.get_traced_memory()[0])
        if done == steps:
            peak.append(tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    try:
        generate(on_step)
    finally:
        tracemalloc.stop()
    return peak[1] - peak[0]

"""Measurement of a batch table: forward passes of every size and batch, one at a time.

Between two passes the pipeline may do any other work, so a server measures while it has nothing to generate. Knows
passes and clocks; neither requests nor files.
"""

import logging
import math
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from itertools import count

import numpy as np

from engine.errors import OutOfDeviceMemory, UnsupportedShape
from engine.pipeline import Pipeline
from engine.plan.manifest import Manifest
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.table_files import TableKey
from engine.size import Size

log = logging.getLogger(__name__)

ROUNDS = 7  # measurements of each batch size, whose median counts
WARM_PASSES = 11  # on a GPU; a CUDA graph has been captured and compared by then
SIGMA, SIGMA_NEXT = 1.0, 0.9  # noise levels of every pass; they do not change its time


class BatchMeasurement:
    """A measurement of pass times that a caller advances pass by pass.

    Batch sizes alternate within each round, so that a slow phase of the machine affects all of them. The clock is the
    host's, so no timing event of other work is used again.

    A batch that does not fit into memory is left out with all larger ones, and a size of which not even one image fits
    with all larger ones. The log names them.

    Args:
        sizes: to measure; None for `usual_sizes`.
        rounds: measurements of each batch size.
        longest_pass: seconds; a pass that would probably take longer is left out, and all larger ones. It would hold
            up a request for as long, and one image alone fills a processor that needs so long for it. Only the very
            first pass, from which the others are estimated, may take longer.

    Raises:
        UnsupportedShape: no profile covers one of the sizes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sizes: Sequence[Size] | None = None,
        rounds: int = ROUNDS,
        longest_pass: float = math.inf,
    ) -> None:
        self._pipeline, self._rounds, self._longest_pass = pipeline, rounds, longest_pass
        self._sizes = sorted(sizes or usual_sizes(pipeline.manifest), key=lambda size: size.area)
        for size in self._sizes:
            pipeline.manifest.profile_for(size)
        self._rows: list[PassTimes] = []
        self._passes = self._run()

    def advance(self) -> bool:
        """Run one forward pass. Return False once there are no more.

        Raises:
            DeviceError: the device failed, or has no memory for a single image of any size.
        """
        return next(self._passes, False)

    def finish(self) -> BatchTable:
        """Run all passes that are left, and return the table."""
        while self.advance():
            pass
        return self.table()

    def table(self) -> BatchTable:
        """Return the table of what has been measured so far."""
        return BatchTable(TableKey.of(self._pipeline).device, tuple(self._rows), time.time())

    def _run(self) -> Iterator[bool]:
        per_pixel = 0.0  # seconds of a pass with one image of the size before
        for size in self._sizes:
            if per_pixel * size.area > self._longest_pass:
                return
            try:
                fastest = yield from self._warm_up(size)
                if fastest[0] > self._longest_pass:
                    return
                self._rows.append((yield from self._measure(size, len(fastest))))
            except OutOfDeviceMemory as error:
                if not self._rows:
                    raise
                log.warning(
                    "the batch table is without %s and larger sizes, which do not fit into memory: %s", size, error
                )
                return
            per_pixel = fastest[0] / size.area

    def _warm_up(self, size: Size) -> Generator[bool, None, list[float]]:
        """Run the first passes of each batch that is to be measured; return the seconds of each batch's fastest one."""
        fastest: list[float] = []
        for batch in _batches(self._pipeline.manifest, size):
            if fastest and batch * fastest[0] > self._longest_pass:
                break
            passes = []
            try:
                for _ in range(1 if self._pipeline.manifest.target.flavor == "onnx" else WARM_PASSES):
                    passes.append(self._pass_seconds(size, batch))
                    yield True
            except OutOfDeviceMemory as error:
                if not fastest:
                    raise
                log.warning(
                    "the batch table is without %d x %s, which does not fit into memory: %s", batch, size, error
                )
                break
            fastest.append(min(passes))
            if fastest[0] > self._longest_pass:
                break
        return fastest

    def _measure(self, size: Size, batches: int) -> Generator[bool, None, PassTimes]:
        """Run the rounds of a size with batches of up to `batches` images."""
        found: list[list[float]] = [[] for _ in range(batches)]
        for _ in range(self._rounds):
            for batch, seconds in enumerate(found, start=1):
                self._pass_seconds(size, batch)  # brings its kernels and tensors back into the caches
                yield True
                seconds.append(self._pass_seconds(size, batch))
                yield True
        return PassTimes(*size, tuple(map(statistics.median, found)))

    def _pass_seconds(self, size: Size, batch: int) -> float:
        """Return the seconds of a forward pass over noise. Its tensors are those of the passes of real images."""
        memory, manifest = self._pipeline.memory, self._pipeline.manifest
        length = manifest.profile_for(size, batch).prompt_length.opt
        chance = np.random.default_rng(0)
        noise = chance.standard_normal(manifest.model.latents_shape(size), np.float32)
        prompt = chance.standard_normal((1, length, manifest.model.prompt_embeds_dim), np.float32)
        latents = memory.write("latents", noise.repeat(batch, axis=0))
        prompt_embeds = memory.write("prompt_embeds", prompt.repeat(batch, axis=0))
        latents_next = memory.view("latents_next", latents.shape)
        sigma, sigma_next = (np.full(batch, level, np.float32) for level in (SIGMA, SIGMA_NEXT))
        memory.synchronize()
        started = time.perf_counter()
        self._pipeline.step(latents, latents_next, prompt_embeds, sigma, sigma_next)
        memory.synchronize()
        return time.perf_counter() - started


def usual_sizes(manifest: Manifest) -> list[Size]:
    """Return squares: each profile's smallest and largest, and the doublings of the smallest in between.

    A profile without squares has its smallest and its largest size in their place.
    """
    found = set()
    for profile in manifest.profiles:
        low, high = max(profile.height.min, profile.width.min), min(profile.height.max, profile.width.max)
        if low > high:
            found |= {Size(profile.width.min, profile.height.min), Size(profile.width.max, profile.height.max)}
            continue
        while low < high:
            found.add(Size(low, low))
            low *= 2
        found.add(Size(high, high))
    return sorted(found, key=lambda size: size.area)


def _batches(manifest: Manifest, size: Size) -> Iterator[int]:
    """Yield the batch sizes that the plans support at a size, from 1 on."""
    for batch in count(1):
        try:
            manifest.profile_for(size, batch)
        except UnsupportedShape:
            return
        yield batch

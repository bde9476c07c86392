"""A queue with several GPUs and one service time, first come, first served: what sizing is tested with."""

import heapq
import random
from itertools import takewhile

from benchmarks.capacity.sizing import Trial
from benchmarks.workload.arrivals import poisson
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.records import Record


class GpuQueue:
    """Counts how often it is simulated.

    Args:
        rate: arrivals per second.
        service: seconds of an image.
        seconds: simulated time.
    """

    def __init__(self, rate: float, service: float, seconds: float = 600.0) -> None:
        self.rate, self.service, self.seconds = rate, service, seconds
        self.simulated: list[tuple[int, int]] = []

    def __call__(self, gpus: int, seed: int) -> Trial:
        self.simulated.append((gpus, seed))
        free = [0.0] * gpus
        records = []
        for due in takewhile(lambda at: at < self.seconds, poisson(self.rate, random.Random(seed))):
            start = max(due, heapq.heappop(free))
            heapq.heappush(free, start + self.service)
            records.append(Record("square", due, due, start + self.service, "ok", images=1))
        figures = RungFigures.of(records, self.seconds)
        return Trial(gpus, seed, figures, min(1.0, len(records) * self.service / self.seconds / gpus))

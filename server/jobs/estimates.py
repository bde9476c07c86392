"""How long jobs take, from images that were generated.

Knows sizes and passes; not queues.
"""

from dataclasses import dataclass

from engine.plan.manifest import Manifest
from engine.size import Size
from engine.stages import StageTimes
from server.jobs.live_job import LiveJob

WEIGHT = 0.2  # of the newest image, in the moving averages


@dataclass(slots=True)
class _Average:
    """Seconds of the engine's time."""

    per_pass: float
    once: float  # prompt and VAE

    def learn(self, per_pass: float, once: float) -> None:
        self.per_pass += WEIGHT * (per_pass - self.per_pass)
        self.once += WEIGHT * (once - self.once)


class Estimates:
    """Moving averages by size. A size not seen yet is guessed from the nearest one, in proportion to its area."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._averages: dict[Size, _Average] = {}

    def learn(self, size: Size, passes: int, seconds: StageTimes) -> None:
        """Takes in an image's stages, as `messages.Finished` tells them."""
        per_pass = seconds.passes / passes
        once = seconds.prompt_encoder + seconds.vae_decoder
        if size in self._averages:
            self._averages[size].learn(per_pass, once)
        else:
            self._averages[size] = _Average(per_pass, once)

    def remaining(self, live: LiveJob) -> float:
        """What the rest of a job keeps the engine busy."""
        seconds = 0.0
        for index in live.missing():
            request = live.job.requests[index]
            share = 1 - live.done.get(index, 0) / request.steps(self._manifest)
            seconds += self._seconds(request.size(self._manifest), request.forwards(self._manifest), share)
        return seconds

    def _seconds(self, size: Size, passes: int, share: float) -> float:
        """What an image keeps the engine busy, 0 while nothing is known; `share`: of its passes that are to come."""
        if not self._averages:
            return 0.0
        nearest = size
        if size not in self._averages:
            nearest = min(self._averages, key=lambda known: abs(known.area - size.area))
        average = self._averages[nearest]
        return size.area / nearest.area * (average.per_pass * passes * share + average.once)

"""Estimates of the time that jobs take, learned from finished images.

Knows sizes and passes; not queues.
"""

from collections.abc import Collection
from dataclasses import dataclass

from engine.plan.manifest import Manifest
from engine.size import Size
from engine.stages import StageTimes
from server.jobs.live_job import LiveJob
from server.jobs.storage.fleet.worker_info import SizeAverage

WEIGHT = 0.2  # of the newest image in the moving averages
MAX_SIZES = 32  # that are remembered; those of the newest images


@dataclass(slots=True)
class _Average:
    """Moving averages of the engine's seconds for an image."""

    per_pass: float
    fixed: float  # prompt encoder and VAE

    def learn(self, per_pass: float, fixed: float) -> None:
        self.per_pass += WEIGHT * (per_pass - self.per_pass)
        self.fixed += WEIGHT * (fixed - self.fixed)


class Estimates:
    """Moving averages by size. An unknown size is estimated from the nearest one, in proportion to the area."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._averages: dict[Size, _Average] = {}

    def learn(self, size: Size, passes: int, seconds: StageTimes) -> None:
        """Learn from a finished image, by its size, its forward passes and the seconds of its stages."""
        per_pass = seconds.passes / passes
        fixed = seconds.prompt_encoder + seconds.vae_encoder + seconds.vae_decoder
        average = self._averages.pop(size, None) or _Average(per_pass, fixed)
        average.learn(per_pass, fixed)
        self._averages[size] = average  # the newest is last
        if len(self._averages) > MAX_SIZES:
            del self._averages[next(iter(self._averages))]

    @property
    def is_empty(self) -> bool:
        """True before the first image is finished."""
        return not self._averages

    @property
    def averages(self) -> tuple[SizeAverage, ...]:
        """Averages by size, for other processes; the newest size is last."""
        return tuple(
            SizeAverage(width=size.width, height=size.height, per_pass=average.per_pass, fixed=average.fixed)
            for size, average in self._averages.items()
        )

    def knows(self, size: Size) -> bool:
        """Return True if an image of this size was finished lately."""
        return size in self._averages

    def remaining(self, live: LiveJob, indices: Collection[int] | None = None) -> float:
        """Return the seconds of the engine's time that a job still needs; 0 before the first image is finished.

        Args:
            indices: of the unfinished images that count; all of them by default.
        """
        if not self._averages:
            return 0.0
        request, missing, begun = live.job.request, live.job.image_count - len(live.images), [*live.steps_done.values()]
        if indices is not None:
            missing, begun = len(indices), [live.steps_done[index] for index in indices if index in live.steps_done]
        size = request.size(self._manifest)
        passes = request.forwards(self._manifest) * (missing - len(begun))
        passes += sum(request.forwards(self._manifest, done) for done in begun)
        nearest = size
        if size not in self._averages:
            nearest = min(self._averages, key=lambda known: abs(known.area - size.area))
        average = self._averages[nearest]
        return size.area / nearest.area * (average.per_pass * passes + average.fixed * missing)

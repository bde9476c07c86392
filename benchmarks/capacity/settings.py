"""Settings of the server and of its autoscaler that follow from a sizing."""

import math
from dataclasses import dataclass

from benchmarks.capacity.deployment import LATENCIES
from benchmarks.capacity.sizing import Sizing, Trial

LEAST_QUEUE = 4  # jobs; one client alone can have three quarters of the queue


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings for a number of GPUs.

    Attributes:
        queue: unfinished jobs at most (`--queue`): as many as the GPUs draw within the latency objective, or within the
            longest latency of the sizing, so that only an overload is refused; at least one for each user.
        jobs_per_gpu: mean unfinished jobs for each GPU at which the objectives just hold, rounded down to hundredths
            (`targetQueryValue` of KEDA for hosts of one GPU).
        least, most: GPUs of an autoscaled fleet.
        cool_down: seconds before a GPU leaves, twice the time in which one could have been loaded.
    """

    queue: int
    jobs_per_gpu: float
    least: int
    most: int
    cool_down: float

    @classmethod
    def of(cls, sizing: Sizing, least: int, load_seconds: float, users: int = 0) -> "Settings":
        """Derive settings from a sizing that has found a number of GPUs.

        Args:
            least: GPUs that the quietest time needs.
            load_seconds: from the decision for a GPU to its first job.
            users: of a closed loop.
        """
        assert sizing.gpus is not None, "there is nothing to set for a workload without enough GPUs"
        trial = sizing.chosen[0]
        longest = max(trial.figures.latency_s.max or 0.0 for trial in sizing.chosen)
        bounds = [each.bound for each in sizing.objectives if each.name in LATENCIES]
        queue = max(LEAST_QUEUE, users, math.ceil(jobs_per_second(trial) * max(longest, *bounds, 0.0)))
        return cls(
            queue=queue,
            jobs_per_gpu=max(1, math.floor(100 * unfinished(trial) / sizing.gpus)) / 100,
            least=least,
            most=sizing.gpus,
            cool_down=2 * load_seconds,
        )


def jobs_per_second(trial: Trial) -> float:
    """Return the jobs per second of the GPUs of a trial when all of them are busy."""
    figures = trial.figures
    return figures.requests / (figures.seconds - figures.warmup_s) / max(trial.busy, 1e-9)


def unfinished(trial: Trial) -> float:
    """Return the mean number of unfinished jobs, by Little's law."""
    figures = trial.figures
    return (figures.latency_s.mean or 0.0) * figures.requests / (figures.seconds - figures.warmup_s)

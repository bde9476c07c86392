"""The answer for one kind of GPU: how many, at which costs, with which settings, and what limits it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.fleet_costs import FleetCosts
from benchmarks.capacity.settings import LATENCIES, Settings
from benchmarks.capacity.sizing import Sizing, Trial, search
from benchmarks.simulation.scenario import OpenLoop
from benchmarks.workload.arrivals import RateCurve
from benchmarks.workload.objective import Objective, Result

BUSY = 0.9  # share of the GPUs' time from which they are said to be the limit


@dataclass(frozen=True, slots=True)
class Assessment:
    """A deployment with the number of GPUs that it needs.

    Attributes:
        settings: None if no allowed number of GPUs suffices.
    """

    deployment: Deployment
    sizing: Sizing
    settings: Settings | None
    costs: FleetCosts

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        objectives: tuple[Objective, ...],
        least: int,
        most: int,
        *,
        seeds: tuple[int, ...],
        price: float | None,
        load_seconds: float,
        quietest: float,
    ) -> "Assessment":
        """Search the number of GPUs between `least` and `most`, and derive the rest.

        Args:
            price: of a GPU for an hour.
            load_seconds: from the decision for a GPU to its first job.
            quietest: load of the quietest time, as a share; it decides the least GPUs of an autoscaled fleet.
        """
        least = min(most, max(least, fewest(deployment)))
        sizing = search(deployment.trial, deployment.per_host, objectives, seeds, least, most)
        settings = None
        if sizing.gpus is not None:
            quiet = _quietest(deployment.with_load(quietest), sizing.gpus, objectives, seeds[:1])
            users = 0 if isinstance(deployment.load, OpenLoop) else deployment.load.users
            settings = Settings.of(sizing, quiet, load_seconds, users)
        trial = sizing.chosen[0]
        costs = FleetCosts.steady(trial.gpus, trial.figures.achieved_per_s, price, deployment.source.watts)
        return cls(deployment, sizing, settings, costs)

    @property
    def alone(self) -> float:
        """Seconds of one image of the largest size that is alone on its GPU."""
        return self.deployment.source.alone(self.deployment.sizes[-1])

    @property
    def limit(self) -> str:
        """Return a sentence about the limit of this kind of GPU."""
        sizing = self.sizing
        if sizing.gpus is None:
            bounds = [each.bound for each in sizing.objectives if each.name in LATENCIES]
            if bounds and self.alone > min(bounds):
                return f"One image alone takes {self.alone:.1f} s; more GPUs do not shorten it."
            return f"{sizing.most} GPUs are too few: {self._missed(sizing.chosen[0])}."
        if sizing.too_few is None:
            return "One GPU is enough."
        fewer = sizing.too_few
        why = "their time" if fewer.busy >= BUSY else "waiting behind other images"
        return f"With {fewer.gpus}: {self._missed(fewer)}; {100 * fewer.busy:.0f} % busy, so {why} is the limit."

    def figures(self) -> dict[str, Any]:
        """Return the assessment for a report in JSON."""
        trial, settings = self.sizing.chosen[0], self.settings
        return {
            "device": self.deployment.source.name,
            "origin": self.deployment.source.origin,
            "is_measured": self.deployment.source.is_measured,
            "alone_s": self.alone,
            "gpus": self.sizing.gpus,
            "limit": self.limit,
            "busy_percent": 100 * trial.busy,
            "simulated": msgspec.to_builtins(trial.figures),
            "settings": None if settings is None else msgspec.to_builtins(settings),
            "cost_per_hour": self.costs.total,
            "cost_per_thousand_images": self.costs.per_thousand_images,
            "kwh_per_thousand_images": self.costs.kilowatt_hours_per_thousand_images,
            "trials": [
                {
                    "gpus": each.gpus,
                    "seed": each.seed,
                    "busy_percent": 100 * each.busy,
                    "latency_s": msgspec.to_builtins(each.figures.latency_s),
                    "success_percent": each.figures.success_percent,
                    "achieved_per_s": each.figures.achieved_per_s,
                    "is_met": all(result.is_met for result in self.sizing.results(each)),
                }
                for each in self.sizing.trials
            ],
        }

    def _missed(self, trial: Trial) -> str:
        missed = [result for result in self.sizing.results(trial) if not result.is_met]
        return ", ".join(f"{result.objective.name} {_value(result)}" for result in missed)


def _quietest(deployment: Deployment, most: int, objectives: Sequence[Objective], seeds: Sequence[int]) -> int:
    """Return the GPUs of the quietest time, at most those of the load itself."""
    least = min(most, fewest(deployment))
    return search(deployment.trial, deployment.per_host, objectives, seeds, least, most).gpus or most


def _value(result: Result) -> str:
    if result.value is None:
        return "unknown"
    unit = {"success": " %", "rate": " images per second"}.get(result.objective.name, " s")
    return f"{result.value:.4g}{unit}"


def fewest(deployment: Deployment) -> int:
    """Return a number of GPUs below which arrivals would outrun them; 1 for users who wait for their images."""
    load = deployment.load
    if not isinstance(load, OpenLoop):
        return 1
    rate = load.rate.peak if isinstance(load.rate, RateCurve) else load.rate
    return max(1, math.floor(rate * seconds_per_request(deployment)))


def seconds_per_request(deployment: Deployment) -> float:
    """Return the mean time of a GPU for a request of the mix, in the best batches."""
    kinds, times, table = deployment.mix.kinds, deployment.source.times, deployment.table
    length = deployment.source.prompt_length
    default = deployment.manifest.model.default_steps
    total = 0.0
    for kind in kinds:
        batch = table.limit(kind.size)
        step = times.pass_seconds(kind.size, batch, length) / batch
        image = (kind.steps or default) * step + times.prompt_encoder_seconds(length) + times.decode_seconds(kind.size)
        total += kind.weight * kind.images * image
    return total / sum(kind.weight for kind in kinds)

"""The answer for one kind of GPU: how many, at which costs, with which settings, and what limits it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.fleet_costs import FleetCosts
from benchmarks.capacity.settings import Settings
from benchmarks.capacity.sizing import Sizing, Trial
from benchmarks.reports.numbers import compact, percent
from benchmarks.simulation.scenario import OpenLoop
from benchmarks.workload.objective import Objective, Result

BUSY = 0.9  # share of the GPUs' time from which they are said to be the limit


@dataclass(frozen=True, slots=True)
class Assessment:
    """A deployment with the number of GPUs that it needs.

    Attributes:
        settings, costs: None if no allowed number of GPUs suffices.
    """

    deployment: Deployment
    sizing: Sizing
    settings: Settings | None
    costs: FleetCosts | None

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
        sizing = deployment.size(objectives, seeds, least, most)
        if sizing.gpus is None:
            return cls(deployment, sizing, None, None)
        quiet = _quietest(deployment.with_load(quietest), sizing.gpus, objectives, seeds[:1])
        users = 0 if isinstance(deployment.load, OpenLoop) else deployment.load.users
        settings = Settings.of(sizing, quiet, load_seconds, users)
        images_per_second = sizing.chosen[0].figures.achieved_per_s
        costs = FleetCosts.steady(sizing.gpus, images_per_second, price, deployment.source.watts)
        return cls(deployment, sizing, settings, costs)

    @property
    def limit(self) -> str:
        """Return a sentence about the limit of this kind of GPU."""
        sizing, fewer = self.sizing, self.sizing.too_few
        if sizing.gpus is None:
            return self._why_none()
        if sizing.gpus == 1:
            return "One GPU is enough."
        if fewer is None:
            busy = self.deployment.busy_gpus
            is_busy = self.deployment.whole(self.deployment.fewest) >= sizing.gpus
            why = f"arrivals keep {compact(busy)} of them busy" if is_busy else "--gpus begins with them"
            return f"{sizing.gpus} GPUs are enough; fewer were not simulated, since {why}."
        why = "their time" if fewer.busy >= BUSY else "waiting behind other images"
        return f"With {fewer.gpus}: {self._missed(fewer)}; {100 * fewer.busy:.0f} % busy, so {why} is the limit."

    def figures(self) -> dict[str, Any]:
        """Return the assessment for a report in JSON."""
        deployment, sizing, costs = self.deployment, self.sizing, self.costs
        trial = sizing.chosen[0] if sizing.gpus is not None else None
        return {
            "device": deployment.source.name,
            "origin": deployment.source.origin,
            "is_measured": deployment.source.is_measured,
            "alone_s": deployment.alone,
            "gpus": sizing.gpus,
            "limit": self.limit,
            "busy_percent": None if trial is None else 100 * trial.busy,
            "simulated": None if trial is None else msgspec.to_builtins(trial.figures),
            "settings": msgspec.to_builtins(self.settings),
            "cost_per_hour": costs and costs.total,
            "cost_per_thousand_images": costs and costs.per_thousand_images,
            "kwh_per_thousand_images": costs and costs.kilowatt_hours_per_thousand_images,
            "trials": [
                {
                    "gpus": each.gpus,
                    "seed": each.seed,
                    "busy_percent": 100 * each.busy,
                    "latency_s": msgspec.to_builtins(each.figures.latency_s),
                    "success_percent": each.figures.success_percent,
                    "achieved_per_s": each.figures.achieved_per_s,
                    "is_met": not sizing.missed(each),
                }
                for each in sizing.trials
            ],
        }

    def _why_none(self) -> str:
        deployment, sizing = self.deployment, self.sizing
        if deployment.is_out_of_reach(sizing.objectives):
            return f"One image alone takes {deployment.alone:.1f} s; more GPUs do not shorten it."
        if not sizing.trials:
            busy = compact(deployment.busy_gpus)
            return f"{sizing.most} GPUs are too few: arrivals keep {busy} busy; allow more (--gpus)."
        missed = next(trial for trial in sizing.chosen if sizing.missed(trial))
        if any(result.value is None for result in sizing.missed(missed)):
            requests = missed.figures.requests
            return f"{self._missed(missed)}: {requests} simulated requests are too few; simulate longer (--minutes)."
        return f"{sizing.most} GPUs are too few: {self._missed(missed)}."

    def _missed(self, trial: Trial) -> str:
        return ", ".join(f"{result.objective.name} {_value(result)}" for result in self.sizing.missed(trial))


def _quietest(deployment: Deployment, most: int, objectives: Sequence[Objective], seeds: Sequence[int]) -> int:
    """Return the GPUs of the quietest time, at most those of the load itself. Less load cannot have the same rate."""
    without_rate = [objective for objective in objectives if objective.name != "rate"]
    return deployment.size(without_rate, seeds, 1, most).gpus or most


def _value(result: Result) -> str:
    if result.value is None:
        return "unknown"
    match result.objective.name:
        case "success":
            return percent(result.value)
        case "rate":
            return f"{compact(result.value)} images per second"
        case _:
            return f"{result.value:.4g} s"

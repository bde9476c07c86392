"""Curves around an answer: latency against load for several fleets, and GPUs against the latency objective."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.deployment import LATENCIES
from benchmarks.capacity.sizing import Trial

LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the load that was sized
FLEETS = (0.5, 1.0, 2.0)  # of the GPUs that were found
LOOSER = (0.75, 1.0, 1.5, 2.0, 3.0)  # of the latency objectives
SEED = 1


@dataclass(frozen=True, slots=True)
class FleetCurve:
    """Latency of one number of GPUs at several loads.

    Attributes:
        points: users or requests per second, and the p95 in seconds.
    """

    gpus: int
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, slots=True)
class ObjectivePoint:
    """The fewest GPUs for a latency objective.

    Attributes:
        seconds: the tightest latency that is asked for.
        gpus: None if no allowed number suffices.
        cost: of the GPUs for an hour; None without a price.
    """

    seconds: float
    gpus: int | None
    cost: float | None


def latency_against_load(assessment: Assessment) -> Iterator[FleetCurve]:
    """Simulate half, all and twice of the GPUs that were found, from a quarter to one and a half times the load."""
    found = assessment.sizing.gpus
    assert found is not None, "a workload without enough GPUs has no fleet"
    for gpus in sorted({assessment.deployment.whole(share * found) for share in FLEETS}):
        points = []
        for share in LOADS:
            deployment = assessment.deployment.with_load(share)
            points.append((deployment.peak, deployment.trial(gpus, SEED).figures.latency_s.p95))
        yield FleetCurve(gpus, tuple(points))


def gpus_against_objective(assessment: Assessment) -> Iterator[ObjectivePoint]:
    """Search the GPUs for tighter and looser latency objectives; the other objectives stay."""
    sizing, deployment, costs = assessment.sizing, assessment.deployment, assessment.costs
    assert costs is not None, "a workload without enough GPUs costs nothing"
    known = {(trial.gpus, trial.seed): trial for trial in sizing.trials}

    @cache
    def simulate(gpus: int, seed: int) -> Trial:
        return known.get((gpus, seed)) or deployment.trial(gpus, seed)

    bounds = [each.bound for each in sizing.objectives if each.name in LATENCIES]
    for factor in LOOSER if bounds else ():
        objectives = [
            replace(each, bound=each.bound * factor) if each.name in LATENCIES else each for each in sizing.objectives
        ]
        found = deployment.size(objectives, (SEED,), 1, sizing.most, simulate)
        cost = None if found.gpus is None else replace(costs, gpu_hours=found.gpus).total
        yield ObjectivePoint(min(bounds) * factor, found.gpus, cost)

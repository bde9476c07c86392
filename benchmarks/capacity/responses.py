"""The response of a fleet to a day, to a burst and to the loss of a rack: what holds, what queues, what it costs."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.fleet_costs import HOUR, FleetCosts
from benchmarks.capacity.settings import LATENCIES
from benchmarks.simulation.scenario import Autoscaler, Failure, Fleet, OpenLoop, SimulationResult
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.arrivals import RateCurve, burst, daily

PEAK_HOUR = 16  # of the day; the quietest one is twelve hours from it
BURST, BURST_SECONDS = 10.0, 300.0
RACK = 4  # one host in so many is lost
LOST_SECONDS = 600.0
BEGINS = 900.0  # of a burst or a loss
SEED = 1
TARGET = 5.0  # seconds of queue that the autoscaler accepts without a latency objective


@dataclass(frozen=True, slots=True)
class Response:
    """A fleet in a situation.

    Attributes:
        fleet: how it is scaled, such as "12 GPUs".
        band: name, start and end of what happens to it, in seconds; None for a day.
    """

    fleet: str
    result: SimulationResult
    costs: FleetCosts
    seconds: float
    band: tuple[str, float, float] | None = None

    def figures(self) -> dict[str, Any]:
        """Return the response for a report in JSON."""
        result = self.result
        return {
            "fleet": self.fleet,
            "seconds": self.seconds,
            "simulated": msgspec.to_builtins(result.figures),
            "busy_percent": 100 * result.utilisation,
            "gpu_hours": result.device_seconds / HOUR,
            "replays": result.replays,
            "most_waiting": max((moment.waiting for moment in result.timeline), default=0),
            "cost": self.costs.total,
            "cost_per_thousand_images": self.costs.per_thousand_images,
            "timeline": msgspec.to_builtins(result.timeline),
            "scalings": msgspec.to_builtins(result.scalings),
        }


def in_a_day(assessment: Assessment, load_seconds: float, quietest: float) -> Iterator[Response]:
    """Simulate a day with a fixed and with an autoscaled fleet; the peak is the load that was sized."""
    rate, gpus = _rate(assessment), _gpus(assessment)
    hours = [(1 + quietest + (1 - quietest) * math.cos((hour - PEAK_HOUR) * math.pi / 12)) / 2 for hour in range(24)]
    curve = daily([rate * share for share in hours])
    assert assessment.settings is not None
    least = assessment.settings.least
    yield _respond(assessment, f"{gpus} GPUs all day", curve, 24 * HOUR)
    scaler = _autoscaler(assessment, least, gpus, load_seconds)
    yield _respond(assessment, f"{least} to {gpus} GPUs", curve, 24 * HOUR, hosts=least, autoscaler=scaler)


def in_a_burst(assessment: Assessment, load_seconds: float, quietest: float) -> Iterator[Response]:  # noqa: ARG001
    """Simulate ten times the load for five minutes, with a fixed and with an autoscaled fleet."""
    gpus = _gpus(assessment)
    curve, most = burst(_rate(assessment), BURST, BEGINS, BURST_SECONDS), math.ceil(gpus * BURST)
    band = f"{BURST:g} times the load", BEGINS, BEGINS + BURST_SECONDS
    yield _respond(assessment, f"{gpus} GPUs", curve, HOUR, band=band)
    scaler = _autoscaler(assessment, gpus, most, load_seconds)
    yield _respond(assessment, f"{gpus} to {most} GPUs", curve, HOUR, autoscaler=scaler, band=band)


def without_a_rack(assessment: Assessment, load_seconds: float, quietest: float) -> Iterator[Response]:  # noqa: ARG001
    """Simulate the loss of a quarter of the hosts for ten minutes, without and with as many in reserve."""
    gpus = _gpus(assessment)
    lost = math.ceil(gpus / RACK)
    rate = _rate(assessment)
    band = f"{lost} hosts lost", BEGINS, BEGINS + LOST_SECONDS
    failures = (Failure(BEGINS, lost, LOST_SECONDS),)
    for spare in (0, lost):
        name = f"{gpus} GPUs" + (f" and {spare} in reserve" if spare else "")
        yield _respond(assessment, name, rate, HOUR, hosts=gpus + spare, failures=failures, band=band)


SCENARIOS: Mapping[str, Callable[[Assessment, float, float], Iterator[Response]]] = {
    "daily": in_a_day,
    "burst": in_a_burst,
    "rack-lost": without_a_rack,
}


def _respond(
    assessment: Assessment,
    name: str,
    rate: float | RateCurve,
    seconds: float,
    *,
    hosts: int | None = None,
    autoscaler: Autoscaler | None = None,
    failures: tuple[Failure, ...] = (),
    band: tuple[str, float, float] | None = None,
) -> Response:
    assert assessment.settings is not None
    deployment = replace(assessment.deployment, load=OpenLoop(rate), seconds=seconds, warmup=60.0)
    fleet: Fleet = replace(
        deployment.fleet(hosts or _gpus(assessment)),
        queue=assessment.settings.queue,
        autoscaler=autoscaler,
        failures=failures,
        report_every=max(10.0, seconds / 360),
    )
    result = simulate(deployment.scenario(fleet, SEED))
    costs = replace(assessment.costs, gpu_hours=result.device_seconds / HOUR, images=result.figures.images)
    return Response(name, result, costs, seconds, band)


def _autoscaler(assessment: Assessment, least: int, most: int, load_seconds: float) -> Autoscaler:
    bounds = [each.bound for each in assessment.sizing.objectives if each.name in LATENCIES]
    target = max(min(bounds) - assessment.alone, 1.0) / 2 if bounds else TARGET
    return Autoscaler(least, most, target=target, load=load_seconds, cool_down=2 * load_seconds)


def _gpus(assessment: Assessment) -> int:
    assert assessment.sizing.gpus is not None, "a workload without enough GPUs has no fleet"
    return assessment.sizing.gpus


def _rate(assessment: Assessment) -> float:
    load = assessment.deployment.load
    assert isinstance(load, OpenLoop) and not isinstance(load.rate, RateCurve), "a response starts from a constant rate"
    return load.rate

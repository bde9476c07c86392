"""The response of a fleet to a day, to a burst and to the loss of a rack: what holds, what queues, what it costs."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.deployment import LATENCIES, in_words
from benchmarks.capacity.fleet_costs import HOUR, FleetCosts
from benchmarks.simulation.scenario import Autoscaler, Failure, Fleet, OpenLoop, SimulationResult
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.arrivals import RateCurve, burst, daily

PEAK_HOUR = 16  # of the day; the quietest one is twelve hours from it
BURST, BURST_SECONDS = 10.0, 300.0
RACK = 4  # one host in so many is lost
LOST_SECONDS = 600.0
BEGINS = 900.0  # of a burst or a loss
SEED = 1
MOST_POINTS, LEAST_POINTS = 360, 60  # of a timeline
REQUESTS = 40  # of a point, which needs 20 for its p95
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
    assert assessment.settings is not None
    rate, fleet = _rate(assessment), _fleet(assessment)
    hours = [(1 + quietest + (1 - quietest) * math.cos((hour - PEAK_HOUR) * math.pi / 12)) / 2 for hour in range(24)]
    curve = daily([rate * share for share in hours])
    least = math.ceil(assessment.settings.least / fleet.devices_per_host)
    scaler = _autoscaler(assessment, least, fleet.hosts, load_seconds)
    yield _respond(assessment, f"{_gpus(fleet)} all day", fleet, curve, 24 * HOUR)
    fewest = replace(fleet, hosts=least)
    name = f"{_gpus(fewest)} to {_gpus(fleet)}"
    yield _respond(assessment, name, replace(fewest, autoscaler=scaler), curve, 24 * HOUR)


def in_a_burst(assessment: Assessment, load_seconds: float, quietest: float) -> Iterator[Response]:  # noqa: ARG001
    """Simulate ten times the load for five minutes, with a fixed and with an autoscaled fleet."""
    fleet = _fleet(assessment)
    most = replace(fleet, hosts=math.ceil(fleet.hosts * BURST))
    curve = burst(_rate(assessment), BURST, BEGINS, BURST_SECONDS)
    band = f"{BURST:g} times the load", BEGINS, BEGINS + BURST_SECONDS
    yield _respond(assessment, _gpus(fleet), fleet, curve, HOUR, band)
    scaler = _autoscaler(assessment, fleet.hosts, most.hosts, load_seconds)
    yield _respond(assessment, f"{_gpus(fleet)} to {_gpus(most)}", replace(fleet, autoscaler=scaler), curve, HOUR, band)


def without_a_rack(assessment: Assessment, load_seconds: float, quietest: float) -> Iterator[Response]:  # noqa: ARG001
    """Simulate the loss of a quarter of the hosts for ten minutes, without and with as many in reserve."""
    fleet, rate = _fleet(assessment), _rate(assessment)
    lost = math.ceil(fleet.hosts / RACK)
    band = f"{lost} host{'s' if lost > 1 else ''} lost", BEGINS, BEGINS + LOST_SECONDS
    failing = replace(fleet, failures=(Failure(BEGINS, lost, LOST_SECONDS),))
    yield _respond(assessment, _gpus(fleet), failing, rate, HOUR, band)
    reserve = replace(failing, hosts=fleet.hosts + lost)
    yield _respond(
        assessment, f"{_gpus(reserve)}, of which {lost * fleet.devices_per_host} in reserve", reserve, rate, HOUR, band
    )


SCENARIOS: Mapping[str, Callable[[Assessment, float, float], Iterator[Response]]] = {
    "daily": in_a_day,
    "burst": in_a_burst,
    "rack-lost": without_a_rack,
}


def _respond(
    assessment: Assessment,
    name: str,
    fleet: Fleet,
    rate: float | RateCurve,
    seconds: float,
    band: tuple[str, float, float] | None = None,
) -> Response:
    deployment = replace(assessment.deployment, load=OpenLoop(rate), seconds=seconds, warmup=60.0)
    every = min(REQUESTS / _rate(assessment), seconds / LEAST_POINTS)
    reporting = replace(fleet, report_every=max(every, seconds / MOST_POINTS))
    result = simulate(deployment.scenario(reporting, SEED))
    assert assessment.costs is not None, "there is no fleet without enough GPUs"
    images = result.figures.achieved_per_s * seconds  # with those of the warm-up, which is paid for as well
    costs = replace(assessment.costs, gpu_hours=result.device_seconds / HOUR, images=images)
    return Response(name, result, costs, seconds, band)


def _autoscaler(assessment: Assessment, least: int, most: int, load_seconds: float) -> Autoscaler:
    bounds = [each.bound for each in assessment.sizing.objectives if each.name in LATENCIES]
    target = max(min(bounds) - assessment.deployment.alone, 1.0) / 2 if bounds else TARGET
    return Autoscaler(least, most, target=target, load=load_seconds, cool_down=2 * load_seconds)


def _fleet(assessment: Assessment) -> Fleet:
    """Return the fleet that was found, with the queue that was proposed for it."""
    assert assessment.sizing.gpus is not None and assessment.settings is not None, (
        "there is no fleet without enough GPUs"
    )
    return replace(assessment.deployment.fleet(assessment.sizing.gpus), queue=assessment.settings.queue)


def _gpus(fleet: Fleet) -> str:
    return in_words(fleet.hosts * fleet.devices_per_host)


def _rate(assessment: Assessment) -> float:
    load = assessment.deployment.load
    assert isinstance(load, OpenLoop) and not isinstance(load.rate, RateCurve), "a response starts from a constant rate"
    return load.rate

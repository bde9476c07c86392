"""The simulation of a scenario from its start to its figures."""

from collections import Counter
from collections.abc import Iterable, Mapping

import simpy

from benchmarks.simulation.embedded.clients import Clients
from benchmarks.simulation.embedded.server import SimulatedServer
from benchmarks.simulation.fleet.clients import FleetClients
from benchmarks.simulation.fleet.fleet import SimulatedFleet
from benchmarks.simulation.scenario import EmbeddedServer, Fleet, SimulationResult, SimulationScenario
from benchmarks.workload.figures import RungFigures


def simulate(scenario: SimulationScenario) -> SimulationResult:
    """Simulate a server or a fleet under load. The same scenario has the same outcome.

    Raises:
        InvalidRequest: the plans cannot generate a kind of the mix.
    """
    match scenario.server:
        case EmbeddedServer() as spec:
            return _simulate_server(scenario, spec)
        case Fleet() as spec:
            return _simulate_fleet(scenario, spec)


def _simulate_server(scenario: SimulationScenario, spec: EmbeddedServer) -> SimulationResult:
    env = simpy.Environment()
    server = SimulatedServer(env, scenario, spec)
    clients = Clients(env, scenario, server)
    env.run(until=scenario.seconds)
    records = (*clients.records, *clients.cut_off())
    executors = [worker.executor for worker in server.workers]
    device_seconds = scenario.seconds * spec.devices
    return SimulationResult(
        RungFigures.of(records, scenario.seconds, scenario.warmup),
        records,
        utilisation=min(sum(executor.busy for executor in executors) / device_seconds, 1.0),
        device_seconds=device_seconds,
        passes=_summed(executor.passes for executor in executors),
    )


def _simulate_fleet(scenario: SimulationScenario, spec: Fleet) -> SimulationResult:
    env = simpy.Environment()
    fleet = SimulatedFleet(env, scenario, spec)
    clients = FleetClients(env, scenario, fleet)
    env.run(until=scenario.seconds)
    clients.cut_off()
    return SimulationResult(
        fleet.outcomes.figures(scenario.seconds, scenario.warmup),
        utilisation=min(fleet.busy_seconds / fleet.ready_seconds, 1.0),
        device_seconds=fleet.device_seconds,
        passes=fleet.passes(),
        timeline=tuple(fleet.timeline),
        scalings=tuple(fleet.scalings),
        replays=fleet.replays,
    )


def _summed(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))

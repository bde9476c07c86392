"""The simulation of a scenario from its start to its figures."""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import simpy

from benchmarks.simulation.embedded.clients import Clients
from benchmarks.simulation.embedded.server import SimulatedServer
from benchmarks.simulation.fleet.clients import FleetClients
from benchmarks.simulation.fleet.fleet import SimulatedFleet
from benchmarks.simulation.scenario import EmbeddedServer, Fleet, SimulationResult, SimulationScenario
from benchmarks.workload.figures import RungFigures

COLLECT_EVERY = 200_000  # new objects


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
    busy, device_seconds = sum(executor.busy for executor in server.executors), scenario.seconds * spec.devices
    passes = _summed(executor.passes for executor in server.executors)
    _wait(env, scenario, clients)
    records = (*clients.records, *clients.cut_off())
    return SimulationResult(
        RungFigures.of(records, scenario.seconds, scenario.warmup),
        records,
        utilisation=min(busy / device_seconds, 1.0),
        device_seconds=device_seconds,
        passes=passes,
    )


def _simulate_fleet(scenario: SimulationScenario, spec: Fleet) -> SimulationResult:
    env = simpy.Environment()
    fleet = SimulatedFleet(env, scenario, spec)
    clients = FleetClients(env, scenario, fleet)
    with _few_collections():
        env.run(until=scenario.seconds)
        hosts = fleet.hosts
        busy, ready, paid = hosts.busy_seconds, hosts.ready_seconds, hosts.paid_seconds
        passes = _summed(device.passes for device in hosts.all_devices())
        timeline, scalings = tuple(fleet.timeline), tuple(fleet.scalings)
        _wait(env, scenario, clients)
    clients.cut_off()
    return SimulationResult(
        fleet.outcomes.figures(scenario.seconds, scenario.warmup),
        utilisation=min(busy / ready, 1.0),
        device_seconds=paid,
        passes=passes,
        timeline=timeline,
        scalings=scalings,
        replays=fleet.replays,
    )


def _wait(env: simpy.Environment, scenario: SimulationScenario, clients: Clients | FleetClients) -> None:
    """Wait for the requests under way at the end of the load, as long as their clients do."""
    end = scenario.seconds + scenario.load.timeout + scenario.load.patience
    while clients.is_waiting and env.peek() < end:
        env.step()


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage rarely: a simulation makes hardly any cycles, and looking for them took a fifth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _summed(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))

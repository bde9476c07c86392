"""Clients of a simulated fleet, who honour Retry-After. Knows the fleet by what it answers."""

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import cast

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.embedded.clients import MIN_RETRY
from benchmarks.simulation.fleet.fleet import SimulatedFleet
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop, SimulationScenario
from benchmarks.workload.arrivals import poisson
from benchmarks.workload.records import Outcome
from server.errors import DeadlineUnreachable, QueueFull


@dataclass(slots=True)
class _User:
    name: str
    rng: random.Random


class FleetClients:
    """All clients of a fleet; their outcomes are recorded there."""

    def __init__(self, env: simpy.Environment, scenario: SimulationScenario, fleet: SimulatedFleet) -> None:
        self._env, self._scenario, self._fleet = env, scenario, fleet
        self._patience = scenario.load.patience
        self._under_way: dict[int, tuple[float, int]] = {}  # due and images, by number
        self._number = 0
        match scenario.load:
            case ClosedLoop() as load:
                for number in range(load.users):
                    name = f"client {number % load.clients if load.clients else number}"
                    self._think(_User(name, random.Random(f"{scenario.seed} user {number}")), load)
            case OpenLoop() as load:
                env.process(self._arrivals(load))

    @property
    def is_waiting(self) -> bool:
        """True while requests are under way."""
        return bool(self._under_way)

    def cut_off(self) -> None:
        """Record what is under way at the end."""
        for due, images in self._under_way.values():
            self._fleet.outcomes.add(due, self._env.now, "cut_off", images)

    def _arrivals(self, load: OpenLoop) -> "simpy.events.ProcessGenerator":
        seed, mix, env = self._scenario.seed, self._scenario.mix, self._env
        rng = random.Random(f"{seed} kinds")
        only = mix.kinds[0].name if len(mix.kinds) == 1 else None
        for number, at in enumerate(poisson(load.rate, random.Random(f"{seed} arrivals"))):
            if at >= self._scenario.seconds:
                return
            yield env.timeout(at - env.now)
            kind = only or mix.choose(rng).name
            self._begin(kind, f"client {number % load.clients}", None)

    def _think(self, user: _User, load: ClosedLoop) -> None:
        """Let a user pause, and send a request, unless the load is over."""

        def send() -> None:
            if self._env.now >= self._scenario.seconds:
                return
            self._begin(self._scenario.mix.choose(user.rng).name, user.name, user)

        pause = user.rng.expovariate(1 / load.think) if load.think else 0.0
        call_later(self._env, pause, send)

    def _begin(self, kind: str, client: str, user: _User | None) -> None:
        self._number += 1
        self._fleet.arrived += 1
        self._under_way[self._number] = self._env.now, self._fleet.kinds[kind].kind.images
        self._send(self._number, kind, client, self._env.now, user)

    def _send(self, number: int, kind: str, client: str, due: float, user: _User | None) -> None:
        try:
            self._fleet.accept(kind, client, due, partial(self._on_ended, number, user))
        except (QueueFull, DeadlineUnreachable) as refusal:
            self._fleet.outcomes.throttled += 1
            self._fleet.refused += 1
            retry_after = max(MIN_RETRY, math.ceil(refusal.retry_after))
            if self._env.now + retry_after - due <= self._patience:
                call_later(self._env, retry_after, partial(self._send, number, kind, client, due, user))
            else:
                self._end(number, user, "throttled")

    def _on_ended(self, number: int, user: _User | None, job: FleetJob, outcome: str) -> None:  # noqa: ARG002
        self._end(number, user, cast(Outcome, outcome))

    def _end(self, number: int, user: _User | None, outcome: Outcome) -> None:
        due, images = self._under_way.pop(number)
        self._fleet.outcomes.add(due, self._env.now, outcome, images)
        if user is not None:
            assert isinstance(self._scenario.load, ClosedLoop)
            self._think(user, self._scenario.load)

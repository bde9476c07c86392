"""Clients of a simulated fleet, who honour Retry-After. Knows the fleet by its answers.

Calls in place of processes: a fleet may have millions of requests.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.fleet.fleet import SimulatedFleet
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.load import User, arrivals, retry_after, users
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop, SimulationScenario
from benchmarks.workload.mix import RequestKind
from benchmarks.workload.records import Outcome
from server.errors import DeadlineUnreachable, QueueFull


@dataclass(slots=True, eq=False)
class _Request:
    kind: RequestKind
    client: str
    due: float
    user: User | None
    throttles: int = 0


class FleetClients:
    """All clients of a fleet, which records their outcomes."""

    def __init__(self, env: simpy.Environment, scenario: SimulationScenario, fleet: SimulatedFleet) -> None:
        self._env, self._scenario, self._fleet = env, scenario, fleet
        self._under_way: dict[_Request, None] = {}
        match scenario.load:
            case ClosedLoop() as load:
                for user in users(scenario, load):
                    self._think(user)
            case OpenLoop() as load:
                env.process(arrivals(env, scenario, load, self._arrive))

    @property
    def is_waiting(self) -> bool:
        """True while requests are under way."""
        return bool(self._under_way)

    def cut_off(self) -> None:
        """Record what is under way at the end."""
        for request in list(self._under_way):
            self._record(request, "cut_off")

    def _arrive(self, kind: RequestKind, client: str) -> None:
        self._begin(_Request(kind, client, self._env.now, None))

    def _think(self, user: User) -> None:
        """Let a user pause and then send a request, unless the load is over."""
        assert isinstance(self._scenario.load, ClosedLoop)
        call_later(self._env, user.pause(self._scenario.load), partial(self._send_next, user))

    def _send_next(self, user: User) -> None:
        if self._env.now < self._scenario.seconds:
            self._begin(_Request(self._scenario.mix.choose(user.rng), user.client, self._env.now, user))

    def _begin(self, request: _Request) -> None:
        self._fleet.arrived += 1
        self._under_way[request] = None
        self._send(request)

    def _send(self, request: _Request) -> None:
        try:
            self._fleet.accept(request.kind.name, request.client, request.due, partial(self._on_ended, request))
        except (QueueFull, DeadlineUnreachable) as refusal:
            self._fleet.refused += 1
            request.throttles += 1
            seconds = retry_after(refusal.retry_after)
            come_back = self._env.now + seconds
            if come_back - request.due <= self._scenario.load.patience:
                call_later(self._env, seconds, partial(self._send, request))
            else:
                self._end(request, "throttled", come_back)

    def _on_ended(self, request: _Request, _: FleetJob, outcome: str) -> None:
        self._end(request, cast(Outcome, outcome))

    def _end(self, request: _Request, outcome: Outcome, come_back: float = 0.0) -> None:
        self._record(request, outcome, come_back)
        if request.user is not None:
            self._think(request.user)

    def _record(self, request: _Request, outcome: Outcome, come_back: float = 0.0) -> None:
        del self._under_way[request]
        images, throttles = request.kind.images, request.throttles
        self._fleet.outcomes.add(request.due, self._env.now, outcome, images, throttles=throttles, come_back=come_back)

"""Simulated clients: users who think, and requests that arrive; both honour Retry-After. They leave records.

Knows servers only by what they answer.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.simulation.embedded.server import REFUSALS, RateExceeded, SimulatedServer
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop, SimulationScenario
from benchmarks.workload.arrivals import poisson
from benchmarks.workload.mix import RequestKind
from benchmarks.workload.records import Outcome, Record, Throttle
from server.api.errors import OVERLOAD
from server.errors import JobRefused
from server.jobs.job import Job, JobState

MIN_RETRY = 1  # seconds; what `server.api.errors` asks for at least
STATUS: dict[Outcome, int] = {"ok": 200, "failed": 500, "throttled": 429, "refused": 503}

Process = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class _Request:
    kind: RequestKind
    due: float
    throttles: list[Throttle] = field(default_factory=list)


class Clients:
    """All clients of a server.

    Attributes:
        records: of the requests that have ended.
    """

    def __init__(self, env: simpy.Environment, scenario: SimulationScenario, server: SimulatedServer) -> None:
        self.records: list[Record] = []
        self._env, self._scenario, self._server = env, scenario, server
        self._load = scenario.load
        self._under_way: dict[int, _Request] = {}  # by number
        self._number = 0
        match scenario.load:
            case ClosedLoop(users=users):
                for user in range(users):
                    env.process(self._user(user, scenario.load))
            case OpenLoop():
                env.process(self._arrivals(scenario.load))

    @property
    def is_waiting(self) -> bool:
        """True while requests are under way."""
        return bool(self._under_way)

    def cut_off(self) -> list[Record]:
        """Return the records of the requests that are under way."""
        now = self._env.now
        return [_record(request, now, "cut_off") for request in self._under_way.values()]

    def _user(self, user: int, load: ClosedLoop) -> Process:
        rng = random.Random(f"{self._scenario.seed} user {user}")
        client = f"client {user % load.clients if load.clients else user}"
        while True:
            if load.think:
                yield self._env.timeout(rng.expovariate(1 / load.think))
            if self._env.now >= self._scenario.seconds:
                return
            yield from self._request(self._scenario.mix.choose(rng), client)

    def _arrivals(self, load: OpenLoop) -> Process:
        seed = self._scenario.seed
        rng = random.Random(f"{seed} kinds")
        for number, at in enumerate(poisson(load.rate, random.Random(f"{seed} arrivals"))):
            if at >= self._scenario.seconds:
                return
            yield self._env.timeout(at - self._env.now)
            client = f"client {number % load.clients}"
            self._env.process(self._request(self._scenario.mix.choose(rng), client))

    def _request(self, kind: RequestKind, client: str) -> Process:
        """Send a request until it has an answer, and record it."""
        self._number += 1
        number, request = self._number, _Request(kind, self._env.now)
        self._under_way[number] = request
        while True:
            try:
                job = yield from self._server.handle(kind, client, self._load.timeout)
            except REFUSALS as refusal:
                retry_after = max(MIN_RETRY, math.ceil(refusal.retry_after))
                is_patient = self._env.now + retry_after - request.due <= self._load.patience
                request.throttles.append(Throttle(self._env.now, retry_after, is_patient))
                if not is_patient:
                    record = _record(request, self._env.now, _given_up(refusal), error=str(refusal))
                    break
                yield self._env.timeout(retry_after)
            else:
                record = _record(request, self._env.now, *_outcome(job), job)
                break
        del self._under_way[number]
        self.records.append(record)


def _record(request: _Request, now: float, outcome: Outcome, error: str = "", job: Job | None = None) -> Record:
    kind, queue, drawing = request.kind, None, None
    if job is not None and job.started is not None and job.finished is not None and outcome == "ok":
        queue, drawing = job.started - job.created, job.finished - job.started
    return Record(
        kind.name,
        request.due,
        request.due,
        now,
        outcome,
        first_byte=now - request.due if outcome == "ok" else None,
        error=error,
        status=STATUS.get(outcome, 0),
        images=kind.images,
        throttles=tuple(request.throttles),
        queue=queue,
        drawing=drawing,
    )


def _outcome(job: Job) -> tuple[Outcome, str]:
    if job.state is JobState.CANCELLED:
        return "timeout", "no answer in time"
    return ("ok", "") if job.error is None else ("failed", job.error.message)


def _given_up(refusal: RateExceeded | JobRefused) -> Outcome:
    return "throttled" if isinstance(refusal, RateExceeded) or refusal.code in OVERLOAD else "refused"

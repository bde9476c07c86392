"""Clients of a simulated server, who honour Retry-After and leave records. Knows the server by its answers."""

from dataclasses import dataclass, field

import simpy

from benchmarks.simulation.clock import Process
from benchmarks.simulation.embedded.server import REFUSALS, RateExceeded, SimulatedServer
from benchmarks.simulation.load import User, arrivals, retry_after, users
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop, SimulationScenario
from benchmarks.workload.mix import RequestKind
from benchmarks.workload.records import Outcome, Record, Throttle
from server.api.errors import OVERLOAD
from server.errors import JobRefused
from server.jobs.job import Job, JobState

STATUS: dict[Outcome, int] = {"ok": 200, "failed": 500, "throttled": 429, "refused": 503}


@dataclass(slots=True, eq=False)
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
        self._under_way: dict[_Request, None] = {}
        match scenario.load:
            case ClosedLoop() as load:
                for user in users(scenario, load):
                    env.process(self._user(user, load))
            case OpenLoop() as load:
                env.process(arrivals(env, scenario, load, self._arrive))

    @property
    def is_waiting(self) -> bool:
        """True while requests are under way."""
        return bool(self._under_way)

    def cut_off(self) -> list[Record]:
        """Return the records of the requests that are under way."""
        now = self._env.now
        return [_record(request, now, "cut_off") for request in self._under_way]

    def _user(self, user: User, load: ClosedLoop) -> Process:
        while True:
            yield self._env.timeout(user.pause(load))
            if self._env.now >= self._scenario.seconds:
                return
            yield from self._request(self._scenario.mix.choose(user.rng), user.client)

    def _arrive(self, kind: RequestKind, client: str) -> None:
        self._env.process(self._request(kind, client))

    def _request(self, kind: RequestKind, client: str) -> Process:
        """Send a request until it is answered or its client gives up, and record it."""
        request = _Request(kind, self._env.now)
        self._under_way[request] = None
        while True:
            try:
                job = yield from self._server.handle(kind, client, self._load.timeout)
            except REFUSALS as refusal:
                seconds = retry_after(refusal.retry_after)
                is_patient = self._env.now + seconds - request.due <= self._load.patience
                request.throttles.append(Throttle(self._env.now, seconds, is_patient))
                if not is_patient:
                    record = _record(request, self._env.now, _given_up(refusal), error=str(refusal))
                    break
                yield self._env.timeout(seconds)
            else:
                record = _record(request, self._env.now, *_outcome(job), job)
                break
        del self._under_way[request]
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

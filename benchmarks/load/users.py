"""Locust's users: of a closed loop, who wait for their images and pause, and the arrivals of an open loop.

Importing this module imports Locust, which replaces blocking functions of this process by those of gevent.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count, takewhile
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.load.client.cases import Case
from benchmarks.load.client.connection import Connection
from benchmarks.load.client.request import Request, Session
from benchmarks.load.plan import LoadOptions, Rung
from benchmarks.workload.arrivals import poisson
from benchmarks.workload.mix import Mix
from benchmarks.workload.records import Record


class RunningRung:
    """A rung that runs: what its users share."""

    def __init__(
        self,
        rung: Rung,
        options: LoadOptions,
        session: Session,
        cases: Sequence[Case],
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.rung, self.options, self.session = rung, options, session
        self.numbers = count()
        self._on_record = on_record
        self._cases: defaultdict[str, list[Case]] = defaultdict(list)
        for case in cases:
            self._cases[case.kind.name].append(case)
        self._mix = Mix(tuple({case.kind.name: case.kind for case in cases}.values()))

    @property
    def is_over(self) -> bool:
        """True if no request may be sent any more."""
        return self.session.now >= self.rung.seconds

    def choose(self, rng: random.Random) -> Case:
        """Draw a case: its kind by the weights of the mix."""
        return rng.choice(self._cases[self._mix.choose(rng).name])

    def run(self, request: Request, connection: Connection, environment: Environment) -> None:
        """Run a request and keep its record; it is cut off if Locust ends its user."""
        try:
            record = request.run(connection)
        except gevent.GreenletExit:
            connection.close()
            self.finish(request.end("cut_off"), environment)
            raise
        self.finish(record, environment)

    def finish(self, record: Record, environment: Environment) -> None:
        """Keep a record, and tell Locust about the request."""
        if self._on_record is not None:
            self._on_record(record)
        if record.outcome == "cut_off":
            return
        environment.events.request.fire(
            request_type="POST",
            name=record.kind,
            response_time=1000 * record.latency,
            response_length=0,
            exception=None if record.outcome == "ok" else RuntimeError(f"{record.outcome}: {record.error}"),
            context={},
        )


class ClosedUser(User):
    """A user who asks for images, waits for them, pauses, and starts over, beginning with a pause.

    Attributes:
        rung: the one that runs now.
    """

    rung: ClassVar[RunningRung]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.rng = random.Random(f"{self.rung.options.seed} {next(self.rung.numbers)}")
        self.connection = Connection(self.rung.session.url)

    def wait_time(self) -> float:
        think = self.rung.rung.think
        return self.rng.expovariate(1 / think) if think else 0.0

    def on_start(self) -> None:
        self.wait()  # type: ignore[no-untyped-call]

    def on_stop(self) -> None:
        self.connection.close()

    @task
    def ask(self) -> None:
        if self.rung.is_over:
            raise StopUser
        request = Request(self.rung.session, self.rung.choose(self.rng))
        self.rung.run(request, self.connection, self.environment)


class Arrivals(User):
    """All requests of an open loop: each is sent when it is due, whatever became of the others.

    A request that is sent late, because this process was busy, still counts from the moment it was due.
    """

    rung: ClassVar[RunningRung]

    @task
    def send_all(self) -> None:
        rung, group = self.rung, Group()
        assert rung.rung.rate is not None
        rng = random.Random(rung.options.seed)
        idle: list[Connection] = []
        arrivals = takewhile(lambda due: due < rung.rung.seconds, poisson(rung.rung.rate, rng))
        try:
            for due in arrivals:
                gevent.sleep(max(due - rung.session.now, 0))
                request = Request(rung.session, rung.choose(rng), due)
                if len(group) < rung.options.max_in_flight:
                    group.spawn(self._send, request, idle)
                else:
                    many = f"{rung.options.max_in_flight} requests in flight (--max-in-flight)"
                    text = f"not sent: the load generator has {many}"
                    rung.finish(request.end("failed", text), self.environment)
            group.join()
        finally:
            group.kill()
        raise StopUser

    def _send(self, request: Request, idle: list[Connection]) -> None:
        connection = idle.pop() if idle else Connection(self.rung.session.url)
        self.rung.run(request, connection, self.environment)
        idle.append(connection)


def in_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs another one in a thread, so that it holds up no other user."""
    return lambda *arguments: gevent.get_hub().threadpool.apply(function, arguments)

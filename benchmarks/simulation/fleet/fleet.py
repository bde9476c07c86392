"""A simulated fleet: replicas that accept jobs, tickets that wake hosts, and hosts that claim, vanish and are added.

Coarser than the simulated server: all images of a job go to one device, replicas and the database take constant time,
and hosts find room by tickets alone. Knows no clients.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.fleet.autoscaler import wanted_hosts
from benchmarks.simulation.fleet.host import FleetHost
from benchmarks.simulation.fleet.hosts import FleetHosts
from benchmarks.simulation.fleet.outcomes import Outcomes
from benchmarks.simulation.fleet.queue import FleetJob, FleetQueue
from benchmarks.simulation.requests import PreparedKind, prepare
from benchmarks.simulation.scenario import Failure, Fleet, FleetMoment, ScalingEvent, SimulationScenario
from server.errors import DeadlineUnreachable
from server.jobs.admission.admission import RETRY_SHARE
from server.jobs.storage.fleet.expiry import MAX_LOSSES


class SimulatedFleet:
    """A fleet in a SimPy environment.

    Attributes:
        hosts: of the fleet.
        outcomes: of the requests, as the clients record them.
        replays: jobs that were claimed again after their host had vanished.
    """

    def __init__(self, env: simpy.Environment, scenario: SimulationScenario, spec: Fleet) -> None:
        self.outcomes = Outcomes()
        self.kinds = prepare(scenario.mix.kinds, scenario.manifest, scenario.prompt_length)
        self.scalings: list[ScalingEvent] = []
        self.timeline: list[FleetMoment] = []
        self.replays = self.arrived = self.refused = 0
        self._env, self._scenario, self._spec = env, scenario, spec
        is_uniform = len({prepared.lora_and_size for prepared in self.kinds.values()}) == 1
        self._queue = FleetQueue(spec.queue, scenario.changes, is_uniform=is_uniform)
        self._listening: deque[FleetHost] = deque()  # hosts with room, in the order in which tickets reach them
        self._tickets = 0  # that no host has taken yet
        self.hosts = FleetHosts(env, scenario, spec, self._on_finished, self._on_room)
        self._last_added = 0.0
        self._seconds_per_cost = _seconds_per_cost(scenario, self.kinds.values())
        for _ in range(spec.hosts):
            self._open(self.hosts.add())
        for failure in spec.failures:
            call_later(self._env, failure.at, partial(self._fail, failure))
        if spec.autoscaler is not None:
            env.process(self._scale())
        env.process(self._report())

    def retry_after(self) -> float:
        """Return the seconds that a refused client is told to wait: a fourth of the queue's time."""
        devices = max(self.hosts.devices("ready"), 1)
        mean = self._queue.waiting_cost / max(self._queue.waiting, 1)
        jobs = max(1, self._queue.unfinished // RETRY_SHARE)
        return jobs * mean * self._seconds_per_cost / devices

    def accept(self, kind: str, client: str, due: float, on_ended: Callable[[FleetJob, str], object]) -> None:
        """Accept a job. `on_ended` is called with its outcome.

        Raises:
            QueueFull, DeadlineUnreachable: with the seconds after which to try again.
        """
        self._queue.admit(client, self.retry_after)
        prepared = self.kinds[kind]
        if (left := prepared.kind.deadline) is not None:
            waiting = self._queue.waiting_cost / max(self.hosts.devices("ready"), 1)
            ready = (waiting + prepared.cost * prepared.kind.images) * self._seconds_per_cost
            if ready > left:
                raise DeadlineUnreachable("the images would be late", ready - left)
        job = FleetJob(prepared, client, due, self._env.now, 0, prepared.kind.images, on_ended)
        self._queue.add(job)
        call_later(self._env, self._spec.claim + self._scenario.costs.request, self._deliver_ticket)

    def _deliver_ticket(self) -> None:
        """Wake the host that has listened longest; without one, the ticket waits."""
        self._tickets += 1
        while self._listening:
            host = self._listening.popleft()
            host.is_listening = False
            if host.state == "ready" and host.has_room(1):
                self._take_tickets(host, 1)
                return

    def _take_tickets(self, host: FleetHost, count: int) -> None:
        """Let a host claim a job for each of some tickets, while it has room, and listen for the next one."""
        for _ in range(count):
            if not host.has_room(1):
                return
            self._tickets -= 1
            self._claim(host)
        if host.has_room(1):
            self._listen(host)

    def _claim(self, host: FleetHost) -> None:
        """Let a host claim one job that its client still waits for."""
        now = self._env.now
        while (job := self._queue.claim(host.loaded)) is not None:
            if now > job.is_late_at:
                self._end(job, "failed")
            elif now - job.due > self._scenario.load.timeout:
                self._end(job, "timeout")  # its client has gone
            else:
                self.replays += job.losses > 0
                host.take(job)
                return

    def _listen(self, host: FleetHost) -> None:
        if not host.is_listening and host.state == "ready":
            host.is_listening = True
            self._listening.append(host)

    def _on_room(self, host: FleetHost) -> None:
        if host.state == "ready":
            self._take_tickets(host, self._tickets)
        elif host.state == "draining" and host.is_idle:
            self.hosts.remove(host)

    def _on_finished(self, job: FleetJob) -> None:
        now = self._env.now
        if now > job.is_late_at:
            self._end(job, "failed")
        else:
            self._end(job, "ok" if now - job.due <= self._scenario.load.timeout else "timeout")

    def _end(self, job: FleetJob, outcome: str) -> None:
        self._queue.end(job)
        job.on_ended(job, outcome)

    def _open(self, host: FleetHost) -> None:
        """Let a host take jobs, unless it has vanished or was removed meanwhile."""
        if host.state == "starting":
            self.hosts.set_state(host, "ready")
            self._on_room(host)

    def _fail(self, failure: Failure) -> None:
        """Let consecutive hosts vanish, and their jobs wait again once their leases have ended."""
        ready = self.hosts.in_state("ready")
        first = self.hosts.rng.randrange(max(len(ready) - failure.hosts, 0) + 1)
        for host in ready[first : first + failure.hosts]:
            lease = self._spec.lease - self.hosts.rng.random() * self._spec.heartbeat
            self.hosts.set_state(host, "gone")
            for job in host.vanish():
                call_later(self._env, lease, partial(self._replay, job))
            call_later(self._env, failure.lasts, partial(self._come_back, host))

    def _come_back(self, host: FleetHost) -> None:
        self.hosts.set_state(host, "ready")
        self._on_room(host)

    def _replay(self, job: FleetJob) -> None:
        job.losses += 1
        if job.losses >= MAX_LOSSES:
            self._end(job, "failed")
            return
        self._queue.put_back(job)
        self._deliver_ticket()

    def _scale(self) -> "simpy.events.ProcessGenerator":
        policy = self._spec.autoscaler
        assert policy is not None
        before = 0.0
        while True:
            yield self._env.timeout(policy.every)
            computed = self.hosts.busy_seconds
            busy, before = (computed - before) / policy.every, computed
            waiting = self._queue.waiting_cost * self._seconds_per_cost
            wanted = wanted_hosts(policy, self._spec.devices_per_host, busy, waiting)
            self._resize(wanted, policy.load, policy.cool_down)

    def _resize(self, wanted: int, load: float, cool_down: float) -> None:
        now = self._env.now
        present = self.hosts.in_state("starting", "ready")
        if wanted > len(present):
            self._last_added = now
            for _ in range(wanted - len(present)):
                call_later(self._env, load, partial(self._open, self.hosts.add()))
        elif wanted < len(present) and now - self._last_added >= cool_down:
            ready = [host for host in present if host.state == "ready"]
            for host in sorted(ready, key=lambda each: each.busy_devices)[: len(present) - wanted]:
                self.hosts.set_state(host, "draining")
                self._on_room(host)
        else:
            return
        self.scalings.append(ScalingEvent(now, len(present), wanted))

    def _report(self) -> "simpy.events.ProcessGenerator":
        while True:
            yield self._env.timeout(self._spec.report_every)
            ended, p95 = self.outcomes.take_recent()
            moment = FleetMoment(
                self._env.now,
                self.hosts.devices("ready"),
                self.hosts.devices("starting"),
                self.hosts.busy_devices,
                self._queue.waiting,
                self.arrived,
                ended,
                self.refused,
                p95,
            )
            self.timeline.append(moment)
            self.arrived = self.refused = 0


def _seconds_per_cost(scenario: SimulationScenario, kinds: Iterable[PreparedKind]) -> float:
    """Return the device's seconds for a pixel in a pass, over the mix: what averages of finished images tell."""
    seconds = cost = 0.0
    for prepared in kinds:
        kind, length = prepared.kind, prepared.prompt_length
        passes = prepared.cost / kind.size.area
        alone = passes * scenario.times.pass_seconds(kind.size, 1, length) + scenario.times.decode_seconds(kind.size)
        seconds += kind.weight * alone
        cost += kind.weight * prepared.cost
    return seconds / cost

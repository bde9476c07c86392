"""A simulated `zimage-serve`: the real admission, order of the queue and delivery to devices, over simulated workers.

Does what `server.jobs.embedded` does, without a store. Knows no clients.
"""

import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

import simpy

from benchmarks.simulation.clock import Process, SimulatedClock
from benchmarks.simulation.embedded.executor import SimulatedExecutor
from benchmarks.simulation.embedded.link import SimulatedLink
from benchmarks.simulation.embedded.store import InitImagesAtHand, SimulatedStore
from benchmarks.simulation.embedded.worker import SimulatedWorker
from benchmarks.simulation.policies import AcceptanceOrder, device_window, new_scheduler
from benchmarks.simulation.requests import prepare
from benchmarks.simulation.scenario import EmbeddedServer, SimulationScenario
from benchmarks.workload.mix import RequestKind
from engine.request import PNG
from engine.scheduler.scheduler import Scheduler
from server.errors import JobRefused
from server.jobs.admission.admission import Admission
from server.jobs.admission.rate import RateLimiter
from server.jobs.devices.worker_queue import WorkerQueue
from server.jobs.job import Job
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.tracker import JobTracker
from server.worker.messages import FromWorker


class RateExceeded(Exception):
    """A client has sent more requests than its rate allows. `retry_after`: seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the rate limit is exceeded")
        self.retry_after = retry_after


REFUSALS = (RateExceeded, JobRefused)


class SimulatedServer:
    """A server with its workers, in a SimPy environment."""

    def __init__(self, env: simpy.Environment, scenario: SimulationScenario, spec: EmbeddedServer) -> None:
        self._env, self._scenario, self._spec = env, scenario, spec
        self._kinds = prepare(scenario.mix.kinds, scenario.manifest, scenario.prompt_length)
        self._clock = SimulatedClock(env)
        self._waiting: dict[str, simpy.Event] = {}  # by job, for its end
        metrics, manifest = Metrics(), scenario.manifest
        self._tracker = JobTracker(SimulatedStore(self._on_ended), manifest, metrics, clock=self._clock)
        if "fifo" in scenario.changes:
            self._tracker.unfinished = AcceptanceOrder(self._tracker.estimates, manifest)
        self._worker_queue = WorkerQueue(self._tracker, metrics, InitImagesAtHand())
        self._admission = Admission(replace(spec.limits, free_bytes=0), self._clock)
        self._limiter = RateLimiter(spec.rate, lambda: int(env.now * 1e9)) if spec.rate is not None else None
        self._event_loop = simpy.Resource(env)
        self._sequence = 0
        self._links = [self._link(number) for number in range(spec.devices)]
        for link in self._links:
            link.start()

    @property
    def executors(self) -> list[SimulatedExecutor]:
        """Return the executors of all workers, also of dead ones."""
        return [worker.executor for link in self._links for worker in link.workers]

    def handle(self, kind: RequestKind, client: str, timeout: float) -> Generator[simpy.Event, Any, Job]:
        """Take a request and return its job once it has ended and is answered. Time passes meanwhile.

        Args:
            timeout: seconds after which the client disconnects, so that its job is cancelled.

        Raises:
            RateExceeded, JobRefused: the request is refused.
        """
        yield from self._use_event_loop(self._scenario.costs.request)
        if self._limiter is not None and (seconds := self._limiter.hit(client)) > 0:
            raise RateExceeded(seconds)
        live = self._submit(kind, client)
        ended = self._waiting[live.job.id] = self._env.event()
        self._worker_queue.send_pending()
        yield ended | self._env.timeout(timeout)
        self._tracker.cancel(live)  # unless it has ended
        yield from self._use_event_loop(self._scenario.costs.response * len(live.images))
        return live.job

    def _submit(self, kind: RequestKind, client: str) -> LiveJob:
        """Admit a request and queue its job. Raises JobRefused."""
        now, prepared = self._clock.time(), self._kinds[kind.name]
        self._sequence += 1
        job = Job(
            id=f"job_{self._sequence}",
            request=prepared.request,
            image_count=kind.images,
            format=PNG,
            api="images",
            durable=False,
            fingerprint="",
            created=now,
            deadline=None if kind.deadline is None else now + kind.deadline,
            client=client,
            priority=kind.priority,
            cost=prepared.cost * kind.images,
            sequence=self._sequence,
        )
        live = LiveJob(job, init_image_bytes=3 * kind.size.area if kind.edit else 0)
        self._admission.check(live, self._tracker.unfinished, Counter())
        self._tracker.add(live)
        return live

    def _link(self, number: int) -> SimulatedLink:
        """Return the link of a new device."""
        scenario, spec = self._scenario, self._spec
        queue = self._worker_queue.add_device(f"device:{number}")
        rng = random.Random(f"{scenario.seed} device {number}")
        window = device_window(spec.slots, spec.table, scenario.changes)
        deaths = [death for death in spec.deaths if death.device == number]
        link = SimulatedLink(self._env, queue, partial(self._worker, queue.on_message, rng), window, deaths)
        queue.link = link
        return link

    def _worker(self, tell: Callable[[FromWorker], None], rng: random.Random) -> SimulatedWorker:
        scenario, spec = self._scenario, self._spec
        executor = SimulatedExecutor(scenario, spec.max_ahead, lambda: self._env.now, rng)
        scheduler = new_scheduler(scenario.manifest, spec.slots, spec.table, scenario.changes, Scheduler)
        return SimulatedWorker(self._env, tell, scenario, self._kinds, scheduler, executor)

    def _use_event_loop(self, seconds: float) -> Process:
        with self._event_loop.request() as granted:
            yield granted
            yield self._env.timeout(seconds)

    def _on_ended(self, job_id: str) -> None:
        self._waiting.pop(job_id).succeed()

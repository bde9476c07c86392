"""A simulated worker: the engine's loop on a simulated device, and its messages to the server.

Does what `server.worker.worker` does, in the same order, without threads. Knows no jobs but those that it is sent.
"""

from collections import deque
from collections.abc import Callable, Mapping

import simpy

from benchmarks.simulation.clock import Process
from benchmarks.simulation.embedded.executor import SimulatedExecutor, SimulatedImage
from benchmarks.simulation.requests import PreparedKind, sample
from benchmarks.simulation.scenario import SimulationScenario
from engine.scheduler.events import Denoised, Event, Passed, Started, Stepped, Switched
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step_loop import StepLoop
from server.worker import life_signs, messages
from server.worker.finisher import FINISHERS
from server.worker.messages import Cancel, FromWorker, Generate, Stop, ToWorker, image_key
from server.worker.worker import HEARTBEAT_EVERY


class SimulatedWorker:
    """One worker process of a simulated device, from its start to its death.

    Args:
        tell: sends a message to the server.
    """

    def __init__(
        self,
        env: simpy.Environment,
        tell: Callable[[FromWorker], None],
        scenario: SimulationScenario,
        kinds: Mapping[str, PreparedKind],
        scheduler: Scheduler,
        executor: SimulatedExecutor,
    ) -> None:
        self.executor = executor
        self._env, self._send, self._kinds = env, tell, kinds
        self._manifest, self._costs = scenario.manifest, scenario.costs
        self._is_dead = False
        self._loop = StepLoop(scheduler, executor, lambda: env.now)
        self._inbox: deque[ToWorker] = deque()
        self._wake = env.event()
        self._finishers = simpy.Resource(env, FINISHERS)
        self._passes: list[tuple[int, float]] = []
        self._steps_done: dict[str, int] = {}
        self._heartbeat_due = 0.0
        env.process(self._run())

    def stop(self) -> None:
        """Die without another message."""
        self._is_dead = True

    def receive(self, message: ToWorker) -> None:
        """Take a message of the server."""
        self._inbox.append(message)
        if not self._wake.triggered:
            self._wake.succeed()

    def _tell(self, message: FromWorker) -> None:
        if not self._is_dead:
            self._send(message)

    def _run(self) -> Process:
        while not self._is_dead:
            if self._loop.is_idle and not self._inbox:
                self._wake = self._env.event()
                yield self._wake
            self._take_messages()
            events = self._loop.begin_step()
            if self.executor.pause:
                until, self.executor.pause = self._env.now + self.executor.pause, 0.0
                yield from self._work_until(until)
            while self._loop.must_wait:
                yield from self._work_until(self.executor.next_end)
                events += self._loop.complete_oldest()
            if not self.executor.max_ahead:  # a CPU, on which decoding holds up the next step
                yield from self._work_until(self.executor.free_at)
            self._handle(events)

    def _work_until(self, time: float) -> Process:
        """Let time pass, and tell the server meanwhile for how long the device has been busy."""
        began = self._env.now
        while self._env.now + life_signs.EVERY < time:
            yield self._env.timeout(life_signs.EVERY)
            self._tell(messages.Alive(self._env.now - began))
        if self._env.now < time:
            yield self._env.timeout(time - self._env.now)

    def _take_messages(self) -> None:
        while self._inbox:
            match self._inbox.popleft():
                case Generate() as generate:
                    self._add(generate)
                case Cancel(job, indices):
                    for index in indices:
                        self._loop.cancel(image_key(job, index))
                case Stop():
                    raise AssertionError("a simulated worker is not stopped")

    def _add(self, generate: Generate) -> None:
        prepared = self._kinds[generate.request.prompt]
        for index in generate.indices:
            key = image_key(generate.job, index)
            self._loop.add(sample(key, prepared, self._manifest, self._env.now, generate.client, generate.cost_factor))

    def _handle(self, events: list[Event]) -> None:
        has_ended = False
        for event in events:
            match event:
                case Started(key):
                    self._tell(messages.Started(key))
                case Passed(batch, seconds):
                    self._passes.append((batch, seconds))
                case Stepped(key, done):
                    self._steps_done[key] = done
                case Denoised(key, SimulatedImage() as image):
                    has_ended = True
                    self._env.process(self._finish(key, image))
                case Switched(seconds):
                    self._tell(messages.LoraSwitched(seconds))
        if self._passes and (has_ended or self._env.now >= self._heartbeat_due):
            self._heartbeat_due = self._env.now + HEARTBEAT_EVERY
            self._tell(messages.Heartbeat(self._passes, 0, 0, self._steps_done))
            self._passes, self._steps_done = [], {}

    def _finish(self, key: str, image: SimulatedImage) -> Process:
        """Encode the file of an image in one of the threads, while other images are generated."""
        with self._finishers.request() as thread:
            yield thread
            if self._env.now < image.ready_at:
                yield self._env.timeout(image.ready_at - self._env.now)
            yield self._env.timeout(self._costs.file_seconds(image.sample.size))
        metadata = image.finish().metadata(self._manifest, image.sample.request)
        self._tell(messages.Finished(key, b"", metadata))

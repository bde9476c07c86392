"""The connection to the workers of one simulated device, as `server.worker.supervisor` is. Knows no jobs."""

from collections.abc import Callable, Sequence
from functools import partial

import simpy

from benchmarks.simulation.clock import call_later
from benchmarks.simulation.embedded.worker import SimulatedWorker
from benchmarks.simulation.scenario import WorkerDeath
from server.worker import messages
from server.worker.messages import ToWorker
from server.worker.supervisor import WorkerListener


class SimulatedLink:
    """The `WorkerLink` of a device.

    Args:
        listener: the `DeviceQueue` of the device.
        new_worker: starts a worker.
        window: slots that the engine makes use of.
        deaths: deaths of the device's workers.

    Attributes:
        workers: all workers so far; the last one may be dead.
    """

    def __init__(
        self,
        env: simpy.Environment,
        listener: WorkerListener,
        new_worker: Callable[[], SimulatedWorker],
        window: int,
        deaths: Sequence[WorkerDeath],
    ) -> None:
        self.is_ready, self.starts, self.failed_starts = False, 0, 0
        self.last_failure: str | None = None
        self.pid = None
        self.workers: list[SimulatedWorker] = []
        self._env, self._listener, self._new_worker, self._window = env, listener, new_worker, window
        for death in deaths:
            call_later(env, death.at, partial(self._die, death))

    def start(self) -> None:
        """Start a worker, which is ready at once."""
        self.workers.append(self._new_worker())
        self.starts += 1
        self.is_ready = True
        self._listener.on_worker_ready()
        self._listener.on_message(messages.Ready(0.0, window=self._window))

    def send(self, message: ToWorker) -> None:
        if self.is_ready:
            self.workers[-1].receive(message)

    def _die(self, death: WorkerDeath) -> None:
        if not self.is_ready:
            return
        self.is_ready, self.last_failure = False, "it died"
        self.workers[-1].stop()
        call_later(self._env, death.restart, self.start)
        self._listener.on_worker_lost(self.last_failure)

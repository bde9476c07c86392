"""The clock of a simulation, as the server's jobs use one. Knows no jobs."""

from collections.abc import Callable

import simpy

EPOCH = 1_700_000_000.0  # unix seconds at which simulations begin


def call_later(env: simpy.Environment, seconds: float, call: Callable[[], object]) -> None:
    """Make a call after some seconds."""

    def fire(_: simpy.Event) -> None:
        call()

    env.timeout(seconds).callbacks.append(fire)


class SimulatedTimer:
    """A call that is due later; a `server.jobs.clock.Timer`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        if self._call is not None:
            self._call()


class SimulatedClock:
    """A `server.jobs.clock.Clock` that stands still while Python computes."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def time(self) -> float:
        return EPOCH + self._env.now

    def monotonic(self) -> float:
        return float(self._env.now)

    def call_later(self, seconds: float, call: Callable[[], object]) -> SimulatedTimer:
        timer = SimulatedTimer(call)
        call_later(self._env, seconds, timer.fire)
        return timer

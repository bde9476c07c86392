"""The clock of a simulation, as the server's jobs use one. Knows no jobs."""

from collections.abc import Callable, Generator
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, None]  # yields what it waits for

EPOCH = 1_700_000_000.0  # unix seconds at which simulations begin


class SimulatedTimer:
    """A call that is due later; a `server.jobs.clock.Timer`."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self, _: simpy.Event) -> None:
        if self._call is not None:
            self._call()


def call_later(env: simpy.Environment, seconds: float, call: Callable[[], object]) -> SimulatedTimer:
    """Make a call after some seconds, and return its timer."""
    timer = SimulatedTimer(call)
    env.timeout(seconds).callbacks.append(timer.fire)
    return timer


class SimulatedClock:
    """A `server.jobs.clock.Clock` that stands still while Python computes."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def time(self) -> float:
        return EPOCH + self._env.now

    def monotonic(self) -> float:
        return float(self._env.now)

    def call_later(self, seconds: float, call: Callable[[], object]) -> SimulatedTimer:
        return call_later(self._env, seconds, call)

"""The time as jobs have it: of the system, or of a simulation. Knows no jobs."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due later, such as `asyncio.TimerHandle`."""

    def cancel(self) -> object:
        """Do not call."""
        ...


class Clock(Protocol):
    """The time, and calls that are due later: `SystemClock`, or that of `benchmarks.simulation`."""

    def time(self) -> float:
        """Return unix seconds."""
        ...

    def monotonic(self) -> float:
        """Return seconds that no one sets."""
        ...

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Make a call after some seconds, and return its timer."""
        ...


class SystemClock:
    """The clock of the system, with the timers of the running event loop."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, call)


SYSTEM = SystemClock()

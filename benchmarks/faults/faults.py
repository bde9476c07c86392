"""Faults at random times: processes killed and stopped, clocks that jump. Knows processes; not clients."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.faults.server import Server

MAX_PAUSE = 20.0  # seconds; longer than the server lets a worker be silent
SETTLE = 5.0  # seconds after a recovery that still count as disturbed: clients come back, jobs are replayed

Fault = Callable[[Server, random.Random], Awaitable[None]]


async def kill_worker(server: Server, _: random.Random) -> None:
    server.signal("worker", signal.SIGKILL)
    await asyncio.sleep(0.5)  # the server learns of it


async def kill_server(server: Server, _: random.Random) -> None:
    server.kill()
    await server.start()


async def kill_server_ten_days_ahead(server: Server, rng: random.Random) -> None:
    server.set_clock("+10d")
    await kill_server(server, rng)
    await asyncio.sleep(rng.uniform(2, 5))
    server.set_clock("+0")


async def jump_ahead(server: Server, rng: random.Random) -> None:
    await _jump(server, "+10d", rng)


async def jump_back(server: Server, rng: random.Random) -> None:
    await _jump(server, "-1d", rng)


async def pause_worker(server: Server, rng: random.Random) -> None:
    await _pause(server, ("worker",), rng)


async def pause_server(server: Server, rng: random.Random) -> None:
    await _pause(server, ("server",), rng)


async def pause_both(server: Server, rng: random.Random) -> None:
    await _pause(server, ("server", "worker"), rng)


FAULTS: tuple[Fault, ...] = (kill_worker, kill_worker, kill_server, pause_worker, pause_server, pause_both)
CLOCK_FAULTS: tuple[Fault, ...] = (jump_ahead, jump_back, kill_server_ten_days_ahead)


@dataclass(slots=True)
class FaultLog:
    """The faults so far, with their times by time.monotonic()."""

    names: list[str] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)  # from a fault until SETTLE after the recovery

    def overlaps(self, start: float, end: float) -> bool:
        """Return True if a fault fell into this time."""
        return any(start < until and since < end for since, until in self.windows)


async def cause_faults(
    server: Server, rng: random.Random, log: FaultLog, pause: tuple[float, float], until: float
) -> None:
    """Cause one fault after the other.

    Args:
        pause: shortest and longest time from a recovery to the next fault, seconds.
        until: end by time.monotonic().
    """
    faults = (*FAULTS, *(CLOCK_FAULTS if server.has_clock else ()))
    while True:
        await asyncio.sleep(rng.uniform(*pause))
        if time.monotonic() > until:
            return
        fault, started = rng.choice(faults), time.monotonic()
        log.names.append(fault.__name__)
        log.windows.append((started, float("inf")))
        try:
            await fault(server, rng)
            await server.wait_until_ready()
        finally:
            log.windows[-1] = (started, time.monotonic() + SETTLE)


async def _jump(server: Server, offset: str, rng: random.Random) -> None:
    server.set_clock(offset)
    await asyncio.sleep(rng.uniform(3, 10))
    server.set_clock("+0")


async def _pause(server: Server, names: tuple[str, ...], rng: random.Random) -> None:
    for name in names:
        server.signal(name, signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(1, MAX_PAUSE))
    finally:
        for name in names:
            server.signal(name, signal.SIGCONT)

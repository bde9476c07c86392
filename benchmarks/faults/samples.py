"""Memory and descriptors of a server's processes over time."""

import asyncio
import statistics
import time
from dataclasses import dataclass

import psutil

from benchmarks.faults.server import Server

MEBI = 1 << 20
EVERY = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a time by time.monotonic()."""

    at: float
    process: str
    pid: int
    mib: float
    descriptors: int


async def sample(server: Server, samples: list[Sample]) -> None:
    """Add samples until cancelled."""
    while True:
        samples += take(server)
        await asyncio.sleep(EVERY)


def take(server: Server) -> list[Sample]:
    """Return a sample of each process."""
    found = []
    for name, process in server.processes().items():
        try:
            memory, descriptors = process.memory_info().rss / MEBI, process.num_fds()
        except psutil.Error:  # it has ended meanwhile
            continue
        found.append(Sample(time.monotonic(), name, process.pid, round(memory, 1), descriptors))
    return found


def summary(samples: list[Sample], process: str) -> dict[str, dict[str, float | list[float]]]:
    """Return the first value, the medians of the quarters, the largest and the last value."""
    own = [each for each in samples if each.process == process]
    values = {"mib": [each.mib for each in own], "descriptors": [float(each.descriptors) for each in own]}
    return {name: _summary(found) for name, found in values.items()}


def zombies(server: Server) -> int:
    """Return the number of the server's children that have ended and were not waited for."""
    try:
        children = server.processes()["server"].children()
    except (KeyError, psutil.Error):
        return 0
    return sum(child.status() == psutil.STATUS_ZOMBIE for child in children)


def _summary(values: list[float]) -> dict[str, float | list[float]]:
    size = max(len(values) // 4, 1)
    quarters = [values[start : start + size] for start in range(0, 4 * size, size)]
    return {
        "start": values[0],
        "quarters": [statistics.median(quarter or values[-1:]) for quarter in quarters],
        "max": max(values),
        "end": values[-1],
    }

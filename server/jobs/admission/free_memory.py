"""Free memory of the machine or the container. Knows no jobs."""

import logging
import time
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
MAX_AGE = 1.0  # seconds between two readings: under load, one at every request took a twentieth of the server's time


class FreeMemory:
    """The result of `free_memory`, read at most every MAX_AGE seconds."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self._cgroup = cgroup
        self._bytes, self._due = 0, 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + MAX_AGE
            try:
                self._bytes = free_memory(self._cgroup)
            except OSError as error:  # such as no descriptor left; the last reading is the best there is
                log.warning("Cannot read the free memory: %s", error)
        return self._bytes


def free_memory(cgroup: Path = CGROUP) -> int:
    """Return the bytes that are free without swapping: those of the machine, or of the container if it has a limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        files = _reclaimable((cgroup / "memory.stat").read_text())
    except (OSError, ValueError):  # no container, or version 1
        return available
    return available if limit == "max" else min(available, int(limit) - used + files)


def _reclaimable(stat: str) -> int:
    """Return the bytes of cached files, which the kernel frees when memory is short."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)

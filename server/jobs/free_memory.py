"""How much memory the machine, or the container, has left. Knows neither jobs nor what to do about it."""

import time
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own

FRESH = 1.0  # seconds for which a reading is believed: under load, one at every request took a twentieth of the server


class FreeMemory:
    """What `free_memory` gives, read at most every FRESH seconds."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self._cgroup = cgroup
        self._bytes, self._due = 0, 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._due:
            self._bytes, self._due = free_memory(self._cgroup), now + FRESH
        return self._bytes


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that can be had without swapping: the machine's, or what is left of a container's share."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        files = _reclaimable((cgroup / "memory.stat").read_text())
    except (OSError, ValueError):  # no container, or another version
        return available
    return available if limit == "max" else min(available, int(limit) - used + files)


def _reclaimable(stat: str) -> int:
    """Bytes of cached files, which the kernel gives up when memory is short."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)

"""Admission of jobs: room in the queue, free memory, time before the deadline.

Knows the jobs that wait; not what becomes of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.errors import DeadlineUnreachable, MemoryShort, QueueFull
from server.jobs.estimates import Estimates
from server.jobs.free_memory import FreeMemory
from server.jobs.job import Job
from server.jobs.live_job import LiveJob
from server.jobs.storage.retention import Retention

RETRY_SHARE = 4  # a refused client may come again when a fourth of the queue has been generated
MEMORY_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what is accepted and kept.

    Attributes:
        queue: jobs that may be unfinished at once.
        history: of finished jobs, images included.
        free_bytes: memory of the machine that must be free.
    """

    queue: int = 256
    history: Retention = field(default_factory=lambda: Retention(max_bytes=1 << 30))
    free_bytes: int = 256 << 20


class Admission:
    """Refuses jobs that cannot be generated in time or in memory."""

    def __init__(self, limits: Limits, estimates: Estimates) -> None:
        self._limits, self._estimates = limits, estimates
        self._free_memory = FreeMemory()

    def check(self, job: Job, unfinished: Sequence[LiveJob], admitted: int) -> None:
        """Raise if a job cannot be accepted now.

        Args:
            unfinished: in the order of acceptance.
            admitted: number of accepted jobs that are not in `unfinished` yet.

        Raises:
            MemoryShort, QueueFull, DeadlineUnreachable: with the seconds after which to try again.
        """
        limits, remaining = self._limits, self._estimates.remaining
        if limits.free_bytes and self._free_memory() < limits.free_bytes:
            raise MemoryShort("The machine is short of memory; try again later.", MEMORY_RETRY_SECONDS)
        if len(unfinished) + admitted >= limits.queue:
            soon = sum(map(remaining, unfinished[: max(1, len(unfinished) // RETRY_SHARE)]))
            raise QueueFull(f"The queue is full, with {len(unfinished)} unfinished jobs; try again later.", soon)
        if job.deadline is not None:
            ready = sum(map(remaining, unfinished)) + remaining(LiveJob(job))
            left = job.deadline - time.time()
            if ready > left:
                message = f"It would take about {ready:.1f} s, and the deadline is in {left:.1f} s; try again later."
                raise DeadlineUnreachable(message, ready - left)

"""Whether one more job is accepted now: room in the queue, memory, time before its deadline.

Knows what waits; not what becomes of it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.jobs.estimates import Estimates
from server.jobs.free_memory import FreeMemory
from server.jobs.job import Job
from server.jobs.live_job import LiveJob

ROOM = 4  # whoever is refused comes back when a fourth of the queue has been generated


class Refusal(Exception):
    """A job that is not accepted now. `retry_after` in seconds."""

    def __init__(self, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted, and kept.

    Attributes:
        queue: jobs that may be unfinished at once.
        history: seconds for which finished jobs and their images are kept.
        history_bytes: of those jobs, images included.
        free_bytes: of the machine's memory that must be free.
    """

    queue: int = 256
    history: float = 7 * 86400.0
    history_bytes: int = 1 << 30
    free_bytes: int = 256 << 20


class Admission:
    """Refuses what cannot be generated in time or in memory."""

    def __init__(self, limits: Limits, estimates: Estimates) -> None:
        self._limits, self._estimates = limits, estimates
        self._free_memory = FreeMemory()

    def check(self, job: Job, waiting: Sequence[LiveJob], coming: int) -> None:
        """
        Args:
            waiting: unfinished jobs, in the order of acceptance.
            coming: jobs that were let in, and are not among them yet.

        Raises:
            Refusal: memory is short, the queue is full, or the deadline cannot be met.
        """
        limits, remaining = self._limits, self._estimates.remaining
        if limits.free_bytes and self._free_memory() < limits.free_bytes:
            raise Refusal("out_of_memory", "The machine is short of memory; try again later.", 10.0)
        if len(waiting) + coming >= limits.queue:
            soon = sum(map(remaining, waiting[: max(1, len(waiting) // ROOM)]))
            message = f"{len(waiting)} jobs are unfinished, which is as many as this server takes; try again later."
            raise Refusal("queue_full", message, soon)
        if job.deadline is not None:
            ready = sum(map(remaining, waiting)) + remaining(LiveJob(job))
            left = job.deadline - time.time()
            if ready > left:
                message = f"It would take about {ready:.1f} s, and the deadline is in {left:.1f} s; try again later."
                raise Refusal("deadline_unreachable", message, ready - left)

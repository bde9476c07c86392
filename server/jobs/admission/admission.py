"""Admission of jobs: room in the queue, free memory, time before the deadline.

Knows the jobs that wait; not what becomes of them.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from server.errors import DeadlineUnreachable, MemoryShort, QueueFull
from server.jobs.admission.free_memory import FreeMemory
from server.jobs.admission.queue_limit import SHARE, check_queue
from server.jobs.admission.queue_order import QueueOrder
from server.jobs.clock import SYSTEM, Clock
from server.jobs.live_job import LiveJob
from server.jobs.storage.retention import Retention

RETRY_SHARE = 4  # a refused client may come again when a fourth of the queue has been generated
MEMORY_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what is accepted and kept.

    Attributes:
        queue: jobs that may be unfinished at once; one client alone can have three quarters of them.
        wait: seconds that a job whose client waits for the answer may spend behind others; 0 for no limit. Clients that
            give up before their turn leave a full queue without a single answer.
        history: of finished jobs, images included.
        free_bytes: memory of the machine that must be free.
        init_image_bytes: of the images that unfinished jobs begin with, in the worker's memory; one client alone can
            have three quarters of them.
    """

    queue: int = 256
    wait: float = 0.0
    history: Retention = field(default_factory=lambda: Retention(max_bytes=1 << 30))
    free_bytes: int = 256 << 20
    init_image_bytes: int = 1 << 30


class Admission:
    """Refuses jobs that cannot be generated in time or in memory."""

    def __init__(self, limits: Limits, clock: Clock = SYSTEM) -> None:
        self._limits, self._clock = limits, clock
        self._free_memory = FreeMemory()

    def check(self, live: LiveJob, unfinished: QueueOrder, admitted: Counter[str], admitted_bytes: int = 0) -> None:
        """Raise if a job cannot be accepted now.

        Args:
            admitted: number of accepted jobs that are not in `unfinished` yet, by client.
            admitted_bytes: of the images that these jobs begin with.

        Raises:
            MemoryShort, QueueFull, DeadlineUnreachable: with the seconds after which to try again.
        """
        self.check_memory()
        taken = len(unfinished) + admitted.total()
        own = unfinished.by_client[live.job.client] + admitted[live.job.client]
        check_queue(taken, own, self._limits.queue, lambda: self.soon(unfinished))
        self.check_estimates(live, unfinished, admitted_bytes)

    def check_memory(self) -> None:
        """Raise MemoryShort if this machine has too little free memory."""
        if self._limits.free_bytes and self._free_memory() < self._limits.free_bytes:
            raise MemoryShort("The machine is short of memory; try again later.", MEMORY_RETRY_SECONDS)

    def check_estimates(self, live: LiveJob, unfinished: QueueOrder, admitted_bytes: int = 0) -> None:
        """Raise if there are too many images to begin with, or if the job would wait too long or be late.

        Raises:
            QueueFull, DeadlineUnreachable: with the seconds after which to try again.
        """
        if live.init_image_bytes:
            self._check_init_images(live, unfinished, admitted_bytes)
        if self._limits.wait and not live.job.durable:
            self._check_wait(live, unfinished)
        if live.job.deadline is not None:
            ready = unfinished.seconds_until(live)
            left = live.job.deadline - self._clock.time()
            if ready > left:
                message = f"It would take about {ready:.1f} s, and the deadline is in {left:.1f} s; try again later."
                raise DeadlineUnreachable(message, ready - left)

    def _check_wait(self, live: LiveJob, unfinished: QueueOrder) -> None:
        wait = unfinished.seconds_before(live)
        if wait > self._limits.wait:
            raise QueueFull(
                f"Its turn would come in about {wait:.0f} s, and clients wait {self._limits.wait:g} s at most; "
                "try again later.",
                wait - self._limits.wait,
            )

    def _check_init_images(self, live: LiveJob, unfinished: QueueOrder, admitted_bytes: int) -> None:
        used, own = admitted_bytes, live.init_image_bytes
        for other in unfinished:
            used += other.init_image_bytes
            own += other.init_image_bytes if other.job.client == live.job.client else 0
        free = self._limits.init_image_bytes - used - live.init_image_bytes
        if free < 0 or own > SHARE * free:
            raise QueueFull(
                f"The images that unfinished jobs begin with take {used >> 20} MiB; try again later.",
                self.soon(unfinished),
            )

    def soon(self, unfinished: QueueOrder) -> float:
        """Return the estimated seconds until a fourth of the queue is generated."""
        return unfinished.seconds_of(islice(unfinished, max(1, len(unfinished) // RETRY_SHARE)))

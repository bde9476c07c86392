"""Unfinished jobs in the order in which a worker takes them: clients alternate, as in the engine's `FairQueue`.

Knows jobs and the seconds that they need; neither workers nor the store.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from engine.fair_order import FairOrder
from engine.plan.manifest import Manifest
from server.jobs.estimates import Estimates
from server.jobs.live_job import LiveJob


@dataclass(slots=True)
class _Queued:
    live: LiveJob
    tag: float
    cost: float
    is_started: bool = False


class QueueOrder:
    """Unfinished jobs of all clients, and the place of each.

    Attributes:
        by_client: number of unfinished jobs by client.
    """

    def __init__(self, estimates: Estimates, manifest: Manifest) -> None:
        self.by_client: Counter[str] = Counter()
        self._estimates, self._manifest = estimates, manifest
        self._order = FairOrder()
        self._jobs: list[_Queued] = []
        self._by_id: dict[str, _Queued] = {}
        self._places: dict[str, tuple[int, float]] | None = None  # by job; computed at once for all jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[LiveJob]:
        """Yield the jobs; first the one that a worker takes first."""
        return (queued.live for queued in self._jobs)

    def add(self, live: LiveJob) -> None:
        cost = self._cost(live)
        queued = _Queued(live, self._order.add(live.client, cost), cost)
        insort(self._jobs, queued, key=lambda other: other.tag)
        self._by_id[live.job.id] = queued
        self.by_client[live.client] += 1
        self._places = None

    def start(self, live: LiveJob) -> None:
        """Record that a worker has started a job."""
        queued = self._by_id[live.job.id]
        queued.is_started = True
        self._order.start(queued.tag)

    def remove(self, live: LiveJob) -> None:
        """Remove a job that has ended."""
        queued = self._by_id.pop(live.job.id)
        self._jobs.remove(queued)
        self.by_client[live.client] -= 1
        self.by_client += Counter()  # drops those at 0
        if not queued.is_started:
            self._order.withdraw(live.client, queued.cost)
        self._places = None

    def on_progress(self) -> None:
        """Compute the places anew when they are needed, since jobs have made progress."""
        self._places = None

    def place(self, live: LiveJob) -> tuple[int, float]:
        """Return the number of jobs before this one, and the estimated seconds until its end."""
        if self._places is None:
            self._places, seconds = {}, 0.0
            for position, queued in enumerate(self._jobs):
                seconds += self._estimates.remaining(queued.live)
                self._places[queued.live.job.id] = position, seconds
        return self._places[live.job.id]

    def seconds_until(self, live: LiveJob) -> float:
        """Return the estimated seconds until the end of a job that is not queued yet."""
        tag = self._order.next_tag(live.client)
        before = takewhile(lambda other: other.tag <= tag, self._jobs)
        remaining = self._estimates.remaining
        return sum(remaining(queued.live) for queued in before) + remaining(live)

    def _cost(self, live: LiveJob) -> float:
        """Return the work of a job in pixels times forward passes, which is about proportional to its time."""
        job = live.job
        return job.image_count * job.request.forwards(self._manifest) * job.request.size(self._manifest).area

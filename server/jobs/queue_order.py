"""Unfinished jobs in the order in which a worker ends them: clients get equal shares, as in the engine's `FairQueue`.

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
    image_cost: float


class QueueOrder:
    """Unfinished jobs of all clients, and the place of each."""

    def __init__(self, estimates: Estimates, manifest: Manifest) -> None:
        self._estimates, self._manifest = estimates, manifest
        self._order = FairOrder()
        self._jobs: list[_Queued] = []
        self._by_id: dict[str, _Queued] = {}
        self._places: dict[str, tuple[int, float]] | None = None  # by job; computed at once for all jobs

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def by_client(self) -> Counter[str]:
        """Number of unfinished jobs by client."""
        return self._order.clients

    def __iter__(self) -> Iterator[LiveJob]:
        """Yield the jobs in their order."""
        return (queued.live for queued in self._jobs)

    def add(self, live: LiveJob) -> None:
        cost = self._image_cost(live)
        queued = _Queued(live, self._order.add(live.client, cost * len(live.missing())), cost)
        insort(self._jobs, queued, key=lambda other: other.tag)
        self._by_id[live.job.id] = queued
        self._places = None

    def on_image(self, live: LiveJob) -> None:
        """Record that one more image of a job is finished."""
        self._order.advance(self._by_id[live.job.id].image_cost)
        self._places = None

    def remove(self, live: LiveJob) -> None:
        """Remove a job that has ended."""
        queued = self._by_id.pop(live.job.id)
        self._jobs.remove(queued)
        self._order.remove(live.client, queued.image_cost * len(live.missing()))
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
        tag = self._order.tag(live.client, self._image_cost(live) * live.job.image_count)
        before = takewhile(lambda other: other.tag <= tag, self._jobs)
        remaining = self._estimates.remaining
        return sum(remaining(queued.live) for queued in before) + remaining(live)

    def _image_cost(self, live: LiveJob) -> float:
        """Return the pixels of an image times its forward passes, which is about proportional to its time."""
        request = live.job.request
        return request.forwards(self._manifest) * request.size(self._manifest).area

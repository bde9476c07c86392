"""Unfinished jobs in the estimated order of their ends: clients get equal shares, as in the engine's `FairQueue`.

Knows jobs, the seconds that they need and the number of devices; neither workers, LoRAs nor the store.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

from engine.fair_share import FairShare
from engine.plan.manifest import Manifest
from server.jobs.admission.estimates import Estimates
from server.jobs.live_job import LiveJob


class QueueOrder:
    """Unfinished jobs of all clients, and the place of each.

    Attributes:
        waiting: jobs with images that no worker has, in the order of their acceptance.
        devices: that take jobs now, at least 1; see `set_devices`.
        by_client: number of unfinished jobs by client.
    """

    def __init__(self, estimates: Estimates, manifest: Manifest) -> None:
        self.waiting: dict[LiveJob, None] = {}
        self.devices = 1
        self._estimates, self._manifest = estimates, manifest
        self._shares: FairShare[str] = FairShare()
        self.by_client: Counter[str] = Counter()
        self._jobs: dict[str, LiveJob] = {}  # in the order of their acceptance
        self._image_costs: dict[str, float] = {}  # by job
        self._places: dict[str, tuple[int, float]] | None = None  # by job; computed at once for all jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[LiveJob]:
        """Yield the jobs in the order of their acceptance."""
        return iter(self._jobs.values())

    @property
    def seconds(self) -> float:
        """Estimated seconds until the end of all jobs."""
        return self.seconds_of(self)

    def seconds_of(self, jobs: Iterable[LiveJob]) -> float:
        """Return the estimated seconds that all devices together need for some jobs."""
        return sum(map(self._estimates.remaining, jobs)) / self.devices

    def set_devices(self, devices: int) -> None:
        """Set the number of devices that take jobs, at least 1."""
        if devices != self.devices:
            self.devices, self._places = devices, None

    def on_sent(self, live: LiveJob) -> None:
        """Record that a worker has more images of a job."""
        if not live.is_waiting:
            self.waiting.pop(live, None)

    def on_taken_back(self) -> None:
        """Record that images which a worker had wait again."""
        self.waiting = {live: None for live in self if live.is_waiting}

    def in_order(self) -> Iterator[LiveJob]:
        """Yield the jobs in the estimated order of their ends."""
        ends = self._ends()
        return (self._jobs[job_id] for job_id in sorted(ends, key=ends.__getitem__))

    def add(self, live: LiveJob) -> None:
        self._jobs[live.job.id] = live
        self.waiting[live] = None
        self._image_costs[live.job.id] = self.image_cost(live)
        self._shares.add(live.job.share)
        self.by_client[live.job.client] += 1
        self._places = None

    def remove(self, live: LiveJob) -> None:
        """Remove a job that has ended."""
        del self._jobs[live.job.id], self._image_costs[live.job.id]
        self.waiting.pop(live, None)
        self._shares.remove(live.job.share)
        self.by_client[live.job.client] -= 1
        self.by_client += Counter()  # drops those at 0
        self._places = None

    def on_image(self, live: LiveJob) -> None:
        """Record that one more image of a job is finished."""
        self._shares.charge(live.job.share, self._image_costs[live.job.id])
        self._places = None

    def on_progress(self) -> None:
        """Compute the places anew when they are needed, since jobs have made progress."""
        self._places = None

    def place(self, live: LiveJob) -> tuple[int, float]:
        """Return the number of jobs before this one, and the estimated seconds until its end."""
        if self._places is None:
            ends = self._ends_on_devices(self.in_order())
            self._places = {other.job.id: (position, end) for position, (other, end) in enumerate(ends)}
        return self._places[live.job.id]

    def seconds_until(self, live: LiveJob) -> float:
        """Return the estimated seconds until the end of a job that is not queued yet."""
        own = [other for other in self if other.job.share == live.job.share]
        end = self._shares.spent(live.job.share) + sum(map(self._cost, [*own, live]))
        before = [self._jobs[job_id] for job_id, other in self._ends().items() if other <= end]
        return max(end for _, end in self._ends_on_devices([*before, live]))

    def seconds_before(self, live: LiveJob) -> float:
        """Return the estimated seconds that a job which is not queued yet waits for others."""
        return self.seconds_until(live) - next(self._ends_on_devices([live]))[1]

    def _ends_on_devices(self, jobs: Iterable[LiveJob]) -> Iterator[tuple[LiveJob, float]]:
        """Yield jobs, with the estimated seconds until their ends if each image goes to the first free device."""
        free = [0.0] * self.devices  # a heap of the seconds after which each device is free
        for live in jobs:
            missing = live.job.image_count - len(live.images)
            share, end = self._estimates.remaining(live) / max(missing, 1), 0.0
            for _ in range(missing):
                end = max(end, free[0] + share)
                heapq.heapreplace(free, free[0] + share)
            yield live, end

    def _ends(self) -> dict[str, float]:
        """Return what the share of each job will have spent at the job's end, by job."""
        spent = {share: self._shares.spent(share) for share in self._shares.users}
        ends: dict[str, float] = {}
        for live in self:
            spent[live.job.share] += self._cost(live)
            ends[live.job.id] = spent[live.job.share]
        return ends

    def _cost(self, live: LiveJob) -> float:
        """Return the cost of the images that are not finished."""
        known = self._image_costs.get(live.job.id)
        image_cost = self.image_cost(live) if known is None else known
        return (live.job.image_count - len(live.images)) * image_cost

    def image_cost(self, live: LiveJob) -> float:
        """Return the pixels of an image times its forward passes, about proportional to its time, times its factor."""
        request = live.job.request
        return live.job.cost_factor * request.forwards(self._manifest) * request.size(self._manifest).area

"""Jobs of a simulated fleet, and the order in which hosts claim them: that of `server.jobs.storage.fleet`.

Knows clients and jobs; neither hosts nor time.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import islice

from benchmarks.simulation.requests import PreparedKind
from benchmarks.simulation.scenario import Change
from server.jobs.admission.queue_limit import check_queue
from server.jobs.job import BATCH, BATCH_FACTOR
from server.jobs.storage.fleet.claim_order import LOOK_AHEAD, ClaimShare, Kind, best_batching, charge, distance


@dataclass(slots=True, eq=False)
class FleetJob:
    """A job from its request to its end.

    Attributes:
        due: when the client sent the request first.
        created: when it was accepted.
        number: its place in the order of acceptance.
        missing: images that are not finished.
        charged: cost that its client was charged for it.
        losses: hosts that stopped while they had it.
        on_ended: called with the job and its outcome when it has ended.
    """

    prepared: PreparedKind
    client: str
    due: float
    created: float
    number: int
    missing: int
    on_ended: Callable[["FleetJob", str], object]
    charged: float = 0.0
    losses: int = 0

    @property
    def share(self) -> str:
        """Name of the client whose share it uses; see `server.jobs.job.Job`."""
        return self.client if self.prepared.kind.priority == "interactive" else BATCH

    @property
    def cost_factor(self) -> float:
        return 1.0 if self.prepared.kind.priority == "interactive" else BATCH_FACTOR

    @property
    def is_late_at(self) -> float:
        """Time after which nobody wants its images."""
        deadline = self.prepared.kind.deadline
        return self.created + deadline if deadline is not None else float("inf")


class FleetQueue:
    """The unfinished jobs of a fleet.

    Args:
        limit: unfinished jobs at most.
        is_uniform: True if all jobs have the same LoRA and size, so that none batches better than another.

    Attributes:
        waiting: jobs that no host has.
        waiting_cost: cost of these jobs, in pixels times passes.
        unfinished: jobs that wait or that a host has.
    """

    def __init__(self, limit: int, changes: Collection[Change] = (), *, is_uniform: bool = False) -> None:
        self.waiting = self.unfinished = 0
        self.waiting_cost = 0.0
        self._limit, self._is_fifo, self._is_uniform = limit, "fifo" in changes, is_uniform
        self._by_client: Counter[str] = Counter()
        self._jobs: dict[str, deque[FleetJob]] = {}  # that wait, by share
        self._spent: dict[str, float] = {}
        self._now = 0.0  # the virtual time
        self._heap: list[tuple[float, int, str]] = []  # shares: spent, first job and name; some entries are stale
        self._numbers = 0

    def admit(self, client: str, retry_after: Callable[[], float]) -> None:
        """Raise QueueFull if a client cannot have one more job."""
        check_queue(self.unfinished, self._by_client[client], self._limit, retry_after)

    def add(self, job: FleetJob) -> None:
        """Queue an accepted job."""
        self._numbers += 1
        job.number = self._numbers
        self.unfinished += 1
        self._by_client[job.client] += 1
        self._wait(job)

    def put_back(self, job: FleetJob) -> None:
        """Queue a job whose host has stopped again at its old place, and take back the charge of its client."""
        self._spent[self._share(job)] -= job.charged
        self._wait(job)

    def end(self, job: FleetJob) -> None:
        """Forget a job that has ended."""
        self.unfinished -= 1
        self._by_client[job.client] -= 1
        if not self._by_client[job.client]:
            del self._by_client[job.client]

    def claim(self, loaded: Callable[[], Collection[Kind]]) -> FleetJob | None:
        """Return the next job for a host; None if no job waits.

        Args:
            loaded: returns LoRA and size of the images that the host generates.
        """
        while self._heap:
            spent, first, name = heapq.heappop(self._heap)
            jobs = self._jobs.get(name)
            if not jobs or first != jobs[0].number or spent != self._spent.get(name, 0.0):
                continue  # stale: the share was charged since
            job = jobs[0]
            if len(jobs) > 1 and not self._is_uniform and (kinds := loaded()):
                job = best_batching(list(islice(jobs, LOOK_AHEAD)), _created, partial(_distance, kinds))
            jobs.remove(job)
            share = ClaimShare(name, first, spent)
            job.charged = charge(job.prepared.cost, job.cost_factor, job.prepared.kind.images, job.missing)
            self._now = share.charge(job.charged, self._now)
            self._spent[name] = share.spent
            self.waiting -= 1
            self.waiting_cost -= job.prepared.cost * job.missing
            self._push(name)
            return job
        return None

    def _wait(self, job: FleetJob) -> None:
        self.waiting += 1
        self.waiting_cost += job.prepared.cost * job.missing
        name = self._share(job)
        jobs = self._jobs.setdefault(name, deque())
        if jobs and jobs[-1].number > job.number:
            self._jobs[name] = deque(sorted([*jobs, job], key=lambda each: each.number))
        else:
            jobs.append(job)
        if self._jobs[name][0] is job:
            self._push(name)

    def _push(self, name: str) -> None:
        """Add the place of a share. It is that of `ClaimShare.order`: the virtual time there swaps no two shares."""
        if jobs := self._jobs.get(name):
            heapq.heappush(self._heap, (self._spent.get(name, 0.0), jobs[0].number, name))
        else:
            self._jobs.pop(name, None)

    def _share(self, job: FleetJob) -> str:
        return f"job {job.number}" if self._is_fifo else job.share


def _distance(loaded: Collection[Kind], job: FleetJob) -> int:
    return distance(job.prepared.lora_and_size, loaded)


def _created(job: FleetJob) -> float:
    return job.created

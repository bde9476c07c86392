"""The order in which waiting jobs are claimed: whose turn it is, which of a client's jobs, and what it is charged.

Pure arithmetic, which `JobChoice` applies to rows and `benchmarks.simulation` to jobs in memory; see `JobChoice`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.size import Size

LOOK_AHEAD = 8  # jobs of a client among which the one that batches best is chosen
OVERTAKE_SECONDS = 10.0  # by which a job that batches better may be younger than the one that it overtakes

Waiting = TypeVar("Waiting")
Kind = tuple[str | None, Size]  # LoRA and size


@dataclass(slots=True)
class ClaimShare:
    """A client with waiting jobs, and what it has spent."""

    client: str
    first: int  # sequence of its oldest waiting job
    spent: float

    def order(self, now: float) -> tuple[float, float, int]:
        """Return its place at a virtual time; the smallest comes first.

        Clients that wait for a rare host fall behind the virtual time; then the one that got least comes first.
        """
        return max(self.spent, now), self.spent, self.first

    def charge(self, cost: float, now: float) -> float:
        """Charge the client for a job, and return the virtual time after it."""
        after = max(now, self.spent)
        self.spent = max(self.spent, after) + cost
        return after


def charge(cost: float, cost_factor: float, images: int, missing: int) -> float:
    """Return what a client is charged for a job of some images, of which some are missing."""
    return max(1.0, cost * cost_factor * (max(1, missing) / images))


def best_batching(
    jobs: Sequence[Waiting], created: Callable[[Waiting], float], distance: Callable[[Waiting], int]
) -> Waiting:
    """Return the job that batches best with what a host generates, of those that are hardly younger than the first.

    Args:
        jobs: the first LOOK_AHEAD of a client that the host can generate.
        distance: of a job to what the host generates; 0 for the same LoRA and size.
    """
    eldest = created(jobs[0])
    return min((job for job in jobs if created(job) - eldest <= OVERTAKE_SECONDS), key=distance)


def distance(kind: Kind, loaded: Collection[Kind]) -> int:
    """Return how far a job's LoRA and size are from those that a host generates: 0 if it has both, 1 with the LoRA."""
    if kind in loaded:
        return 0
    return 1 if any(lora == kind[0] for lora, _ in loaded) else 2

"""The order of unfinished jobs of several clients and priorities."""

from fakes.loop import MANIFEST
from fakes.worker_link import job

from server.jobs.admission.estimates import Estimates
from server.jobs.admission.queue_order import QueueOrder
from server.jobs.live_job import LiveJob


def order(*jobs: LiveJob) -> list[str]:
    """Return the ids of jobs in their order."""
    queue = QueueOrder(Estimates(MANIFEST), MANIFEST)
    for live in jobs:
        queue.add(live)
    return [live.job.id for live in sorted(queue, key=lambda live: queue.place(live)[0])]


def batch(name: str, client: str) -> LiveJob:
    return LiveJob(job(name, client=client, priority="batch"))


def test_batch_jobs_come_after_eight_times_their_cost_of_interactive_ones() -> None:
    early = [batch(f"batch {number}", client=f"client {number}") for number in range(2)]
    late = [LiveJob(job(f"{number}", client="one")) for number in range(20)]
    found = order(*early, *late)
    assert found.index("batch 0") in (7, 8)
    assert found.index("batch 1") in (16, 17)


def test_many_clients_with_batch_jobs_share_as_one() -> None:
    found = order(*(batch(f"batch {number}", client=f"client {number}") for number in range(9)), LiveJob(job("single")))
    assert found[:2] == ["single", "batch 0"]


def test_jobs_count_for_their_own_client_whatever_their_priority() -> None:
    queue = QueueOrder(Estimates(MANIFEST), MANIFEST)
    mine = [batch("a", "me"), batch("b", "me"), batch("c", "other")]
    for live in mine:
        queue.add(live)
    assert queue.by_client == {"me": 2, "other": 1}
    queue.remove(mine[0])
    queue.remove(mine[2])
    assert queue.by_client == {"me": 1}

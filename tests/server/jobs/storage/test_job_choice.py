"""JobChoice of worker hosts: which jobs come next, for which host, and what clients get."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
from fakes.databases import ClockedPostgres, empty, wait_until_blocked
from fakes.jobs import Clock, host, image, job
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import ImageRequest
from engine.size import Size
from server.jobs.job import Job
from server.jobs.storage.fleet.claim_order import LOOK_AHEAD, OVERTAKE_SECONDS
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import WorkerInfo

SMALL, LARGE = Size(64, 64), Size(128, 128)
HOST = host()


def size_of(job: Job) -> Size | None:
    """Return the size of a job's images; None for large ones, which no host of these tests can generate."""
    size = Size(job.request.width or 64, job.request.height or 64)
    return None if size.area > LARGE.area else size


def add(fleet: FleetStore, client: str = "", *, lora: str | None = None, side: int = 64, **fields: object) -> str:
    request = ImageRequest("a cat", side, side, lora=lora)
    return fleet.add(job(client=client, request=request, **{"model": "nano", "cost": 1.0} | fields)).id


def claim(
    fleet: FleetStore, count: int = 1, worker: WorkerInfo = HOST, loaded: Sequence[tuple[str | None, Size]] = ()
) -> list[str]:
    return [claimed.job.id for claimed in fleet.claim(worker, loaded, count, size_of)]


@pytest.fixture(autouse=True)
def _registered(fleet: FleetStore) -> None:
    fleet.register(HOST)


def test_oldest_job_of_a_client_comes_first_and_once(fleet: FleetStore) -> None:
    ids = [add(fleet) for _ in range(3)]
    assert [claim(fleet) for _ in range(4)] == [[id] for id in ids] + [[]]


def test_claimed_job_is_held_with_a_lease_and_its_images_so_far(fleet: FleetStore, clock: Clock) -> None:
    id = fleet.add(job(2, model="nano", deadline=31.5)).id  # 30 s after `created`
    assert claim(fleet) == [id]
    assert fleet.held_by("host").add_image(id, image(1))
    assert fleet.release(id, "host", refund_attempt=True)
    clock.now += 10
    (claimed,) = fleet.claim(HOST, (), 1, size_of)
    assert (claimed.job.worker, claimed.images, claimed.seconds_left) == ("host", {1: image(1)}, 20.0)
    stored = fleet.get(id)
    assert (stored.state, stored.worker, stored.lease) == ("queued", "host", clock.now + 10)


def test_jobs_are_claimed_until_their_missing_images_are_enough(fleet: FleetStore) -> None:
    ids = [fleet.add(job(images, model="nano")).id for images in (2, 3, 1)]
    assert claim(fleet, 3) == ids[:2]
    assert claim(fleet, 0) == []
    assert claim(fleet, 3) == ids[2:]


def test_finished_images_do_not_count_as_claimed(fleet: FleetStore) -> None:
    nearly_done, other = (fleet.add(job(images, model="nano")).id for images in (3, 1))
    assert claim(fleet) == [nearly_done]
    for index in (0, 1):
        fleet.held_by("host").add_image(nearly_done, image(index))
    fleet.release(nearly_done, "host", refund_attempt=True)
    assert claim(fleet, 2) == [nearly_done, other]


@pytest.mark.parametrize(
    ("fields", "is_claimed"),
    [
        ({}, True),
        ({"model": None}, True),
        ({"model": "other"}, False),
        ({"plan_id": "plan"}, True),
        ({"plan_id": "newer plan"}, False),
        ({"lora": "ink"}, True),
        ({"lora": "paper"}, False),
        ({"side": 256}, False),
    ],
)
def test_host_claims_only_what_its_plans_and_loras_can_generate(
    fleet: FleetStore, fields: dict[str, object], is_claimed: bool
) -> None:
    wanted, behind = add(fleet, **fields), add(fleet)
    assert claim(fleet) == [wanted if is_claimed else behind]


def test_host_without_loras_claims_jobs_without_loras(fleet: FleetStore) -> None:
    add(fleet, lora="ink")
    plain = add(fleet)
    assert claim(fleet, 9, replace(HOST, loras=())) == [plain]


def test_job_behind_many_that_the_host_cannot_generate_is_found(fleet: FleetStore) -> None:
    for _ in range(3 * LOOK_AHEAD):
        add(fleet, side=256)
    wanted = add(fleet)
    assert claim(fleet) == [wanted]


def test_unknown_and_draining_hosts_claim_nothing(fleet: FleetStore) -> None:
    id = add(fleet)
    assert claim(fleet, worker=host("unknown")) == []
    assert fleet.drain("host") and not fleet.drain("unknown")
    assert claim(fleet) == []
    fleet.register(host("other"))
    assert claim(fleet, worker=host("other")) == [id]


def test_clients_take_turns_however_many_jobs_one_has(fleet: FleetStore) -> None:
    for _ in range(5):
        add(fleet, "flood")
    single = add(fleet, "single")
    assert single in claim(fleet, 2)


def test_client_that_returns_gets_no_credit_for_its_absence(fleet: FleetStore) -> None:
    for _ in range(20):
        add(fleet, "busy")
    claim(fleet, 10)
    new = [add(fleet, "new") for _ in range(9)]
    assert len(set(claim(fleet, 6)) & set(new)) == 3


def test_batch_jobs_of_all_clients_get_an_eighth_of_one_client_s_share(fleet: FleetStore) -> None:
    for number in range(40):
        add(fleet, "interactive")
        add(fleet, f"client {number}", priority="batch")
    priorities = Counter(fleet.get(id).priority for id in claim(fleet, 36))
    assert priorities == {"interactive": 32, "batch": 4}


def test_released_job_gives_its_cost_back_to_its_client(fleet: FleetStore) -> None:
    dear = add(fleet, "a", cost=100.0)
    add(fleet, "a", cost=100.0)
    for _ in range(3):
        add(fleet, "b")
    assert claim(fleet) == [dear]
    fleet.release(dear, "host", refund_attempt=True)
    assert claim(fleet) == [dear]
    assert {fleet.get(id).client for id in claim(fleet, 3)} == {"b"}


def test_finished_images_are_not_charged_again(fleet: FleetStore) -> None:
    id = fleet.add(job(10, model="nano", client="a", cost=10.0)).id
    claim(fleet)
    for index in range(9):
        fleet.held_by("host").add_image(id, image(index))
    fleet.release(id, "host", refund_attempt=True)
    claim(fleet)
    assert fleet.database.rows("SELECT spent FROM shares WHERE client = 'a'")[0]["spent"] == 1.0


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ([], 0),
        ([("ink", LARGE)], 3),
        ([("ink", SMALL)], 2),
        ([(None, LARGE)], 1),
        ([(None, SMALL), ("ink", LARGE)], 0),
    ],
)
def test_job_that_batches_comes_first_among_those_of_a_client(
    fleet: FleetStore, loaded: list[tuple[str | None, Size]], expected: int
) -> None:
    kinds = [(None, 64), (None, 128), ("ink", 64), ("ink", 128)]
    ids = [add(fleet, lora=lora, side=side) for lora, side in kinds]
    assert claim(fleet, loaded=loaded) == [ids[expected]]


def test_job_is_not_overtaken_by_much_younger_ones(fleet: FleetStore, clock: Clock) -> None:
    old = add(fleet)
    clock.now += OVERTAKE_SECONDS + 1
    add(fleet, lora="ink")
    assert claim(fleet, loaded=[("ink", SMALL)]) == [old]


COSTS = st.lists(st.sampled_from([1.0, 2.0, 5.0, 40.0]), min_size=12, max_size=12)


@given(costs=st.dictionaries(st.sampled_from(["a", "b", "c", "batch"]), COSTS, min_size=2), counts=st.data())
@settings(max_examples=15, deadline=None)
def test_clients_with_waiting_jobs_are_never_further_apart_than_their_largest_jobs(
    reused_url: str, costs: dict[str, list[float]], counts: st.DataObject
) -> None:
    """The bound of start-time fair queueing: the batch jobs are a client whose costs count 8-fold."""
    empty(reused_url)
    with closing(FleetStore(ClockedPostgres(reused_url, Clock()))) as fleet:
        fleet.register(HOST)
        for client, jobs in costs.items():
            for number, cost in enumerate(jobs):
                name = f"{client} {number}" if client == "batch" else client
                add(fleet, name, cost=cost, priority="batch" if client == "batch" else "interactive")
        weights = {client: 8.0 if client == "batch" else 1.0 for client in costs}
        spent, waiting = dict.fromkeys(costs, 0.0), Counter(dict.fromkeys(costs, 12))
        while True:
            for claimed in fleet.claim(HOST, (), counts.draw(st.integers(1, 3)), size_of):
                if not min(waiting.values()):
                    return  # a client has no more jobs, so that the others share its time
                share = claimed.job.share
                waiting[share] -= 1
                spent[share] += claimed.job.cost * weights[share]
            for one in costs:
                for other in costs:
                    apart = max(costs[one]) * weights[one] + max(costs[other]) * weights[other]
                    assert abs(spent[one] - spent[other]) <= apart


def test_threads_of_several_hosts_claim_each_job_once(store_url: str) -> None:
    with ExitStack() as stack:
        fleets = [stack.enter_context(closing(FleetStore(store_url))) for _ in range(3)]
        ids = [add(fleets[0], f"client {number % 4}") for number in range(60)]
        workers = [host(f"host {number}") for number in range(6)]
        for worker in workers:
            fleets[0].register(worker)

        def claim_all(number: int) -> list[str]:
            found: list[str] = []
            while new := claim(fleets[number % 3], 2, workers[number]):
                found += new
            return found

        threads = stack.enter_context(ThreadPoolExecutor(len(workers)))
        claimed = list(threads.map(claim_all, range(len(workers))))
        assert sorted(id for found in claimed for id in found) == sorted(ids)
        assert all(fleets[0].get(id).worker == f"host {n}" for n, found in enumerate(claimed) for id in found)


def test_job_that_is_cancelled_during_a_claim_is_not_claimed(fleet: FleetStore, store_url: str) -> None:
    cancelled, other = add(fleet), add(fleet)
    with closing(FleetStore(store_url)) as replica, ThreadPoolExecutor(1) as threads:
        with replica.database.transaction():
            assert replica.cancel(cancelled)
            claimed = threads.submit(claim, fleet, 1)
            wait_until_blocked(replica.database)
        assert claimed.result() == [other]
    assert fleet.get(cancelled).worker is None


def test_jobs_that_may_have_killed_workers_are_claimed_one_at_a_time(fleet: FleetStore) -> None:
    suspects = [add(fleet) for _ in range(2)]
    assert claim(fleet, 2) == suspects
    for id in suspects:
        assert fleet.held_by("host").start(id)
        assert fleet.release(id, "host", refund_attempt=False)
    assert [claim(fleet, 2), claim(fleet, 2)] == [[id] for id in suspects]

"""The store of a fleet: admission, leases, the janitor, hosts, rates, and what administrators do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.databases import ClockedPostgres, wait_until_blocked
from fakes.jobs import ERROR, Clock, generated, host, image, init_image, job

from engine.request import ImageRequest
from engine.size import Size
from server.errors import IdempotencyKeyReused, QueueFull, StoreUnavailable
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.job import MAX_TOTAL_ATTEMPTS, Job
from server.jobs.storage.databases.database import Lock
from server.jobs.storage.fleet.client_hash import client_hash
from server.jobs.storage.fleet.expiry import FORGET_SECONDS, LEASE_SECONDS, MAX_LOSSES
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.job_choice import DEBT_SECONDS
from server.jobs.storage.fleet.worker_info import HeartbeatAnswer, JobStatus, QueueLength, SizeAverage
from server.jobs.storage.retention import Retention
from server.worker.messages import Batching, MeasuredSize
from server.worker.packed_image import pack

HOST, OTHER = host("host"), host("other")
PACKED = pack(init_image())


@pytest.fixture(autouse=True)
def _registered(fleet: FleetStore) -> None:
    fleet.register(HOST)
    fleet.register(OTHER)
    fleet.expire()  # the first run of a janitor gives all hosts time


def claim(fleet: FleetStore, worker: str = "host") -> str:
    """Add a job of two images and claim it."""
    id = fleet.add(job(2, client="192.0.2.1", model="nano", cost=2.0)).id
    (claimed,) = fleet.claim(host(worker), (), 1, lambda _: Size(64, 64))
    assert claimed.job.id == id
    return id


def pass_time(fleet: FleetStore, clock: Clock, seconds: float, *alive: str) -> None:
    """Let time pass, while janitors run and hosts send heartbeats without jobs."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 1
        for name in alive:
            fleet.heartbeat(host(name), {})
        fleet.expire()


def test_fleet_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"keeps its jobs in PostgreSQL; got .*jobs.db, expected postgresql://"):
        FleetStore(str(tmp_path / "jobs.db"))


# admission


def test_added_job_has_the_times_of_the_database_and_keeps_its_span(fleet: FleetStore, clock: Clock) -> None:
    added = fleet.add(job(created=5.0, deadline=65.0))
    assert (added.created, added.deadline, added.sequence) == (clock.now, clock.now + 60, 1)
    assert fleet.get(added.id) == added


def test_queue_refuses_more_jobs_and_a_client_s_last_quarter(fleet: FleetStore) -> None:
    for _ in range(12):
        fleet.add(job(client="flood"), queue_limit=16)
    with pytest.raises(QueueFull, match="12 of your jobs are unfinished") as refusal:
        fleet.add(job(client="flood"), queue_limit=16)
    assert (refusal.value.taken, refusal.value.own) == (12, 12)
    for number in range(4):
        fleet.add(job(client=f"{number}"), queue_limit=16)
    with pytest.raises(QueueFull, match="The queue is full, with 16 unfinished jobs"):
        fleet.add(job(client="late"), queue_limit=16)
    assert fleet.add(job(client="late")).sequence == 17  # without a limit


def test_full_queue_still_returns_the_job_of_a_known_key_or_id(fleet: FleetStore) -> None:
    first = fleet.add(job(idempotency_key="key"), queue_limit=1)
    assert fleet.add(job(idempotency_key="key"), queue_limit=1) == first
    repeated = job()
    second = fleet.add(repeated, queue_limit=2)
    assert fleet.add(repeated, queue_limit=2) == second  # after a commit whose answer was lost
    with pytest.raises(IdempotencyKeyReused):
        fleet.add(job(idempotency_key="key", fingerprint="other"), queue_limit=1)


def test_threads_never_exceed_the_queue(store_url: str) -> None:
    together = threading.Barrier(8, timeout=20)
    with closing(FleetStore(store_url)) as one, closing(FleetStore(store_url)) as other, ThreadPoolExecutor(8) as pool:

        def add(number: int) -> list[int]:
            store, accepted = (one, other)[number % 2], []
            for limit in range(1, 21):
                together.wait()
                with suppress(QueueFull):
                    store.add(job(client=f"{number}"), queue_limit=limit)
                    accepted.append(limit)
            return accepted

        limits = sorted(limit for accepted in pool.map(add, range(8)) for limit in accepted)
        assert limits == list(range(1, 21))  # one job found a place at each


def init_images(fleet: FleetStore) -> dict[str, int]:
    return {row["job"]: row["size"] for row in fleet.database.rows("SELECT job, length(data) AS size FROM init_images")}


def test_slow_upload_of_an_init_image_holds_up_no_other_submission(fleet: FleetStore, store_url: str) -> None:
    slow = job()
    one, other = FleetStore(store_url), FleetStore(store_url, timeout=1.0)
    with closing(one), closing(other), ThreadPoolExecutor(1) as threads:
        with suppress(ZeroDivisionError), fleet.database.transaction():
            # this row stands for the network: `one` cannot write its own before the end of the transaction
            fleet.init_images.add(slow.id, PACKED)
            adding = threads.submit(one.add, slow, PACKED, 9)
            wait_until_blocked(fleet.database)
            assert other.add(job(), queue_limit=9).sequence == 1
            raise ZeroDivisionError
        assert adding.result().sequence == 2
    assert init_images(fleet) == {slow.id: len(PACKED.data)}


def test_refused_job_leaves_no_init_image_and_a_full_queue_does_not_wait_for_it(
    fleet: FleetStore, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(FleetStore(store_url)) as other, ThreadPoolExecutor(1) as threads:
        with fleet.database.transaction():
            fleet.database.lock(Lock.ADMISSION)
            adding = threads.submit(other.add, job(), PACKED, 1)
            wait_until_blocked(fleet.database)  # for the lock, with its init image
            fleet._insert(job(), None)
        with pytest.raises(QueueFull):
            adding.result()
    assert init_images(fleet) == {}
    monkeypatch.setattr(fleet.init_images, "add", None)  # is not called
    with pytest.raises(QueueFull):
        fleet.add(job(), PACKED, 1)


def test_repeated_key_or_id_keeps_the_init_image_of_the_first(fleet: FleetStore, store_url: str) -> None:
    first, same_key = job(idempotency_key="key"), job(idempotency_key="key")
    sent = {first.id: PACKED, same_key.id: replace(PACKED, data=PACKED.data + b"other")}
    with closing(FleetStore(store_url)) as other, ThreadPoolExecutor(2) as threads:
        with fleet.database.transaction():
            fleet.database.lock(Lock.ADMISSION)
            adding = [threads.submit(other.add, each, sent[each.id], 9) for each in (first, same_key)]
            wait_until_blocked(fleet.database, calls=2)
        added = [each.result() for each in adding]
    assert added[0] == added[1]
    repeated = replace(PACKED, data=b"another")
    assert fleet.add(first, repeated, 9) == fleet.add(same_key, repeated, 9) == added[0]
    assert init_images(fleet) == {added[0].id: len(sent[added[0].id].data)}


# leases


def test_writes_of_a_host_that_does_not_hold_the_job_change_nothing(fleet: FleetStore) -> None:
    id = claim(fleet)
    before = fleet.get(id)
    stranger = fleet.held_by("other")
    assert not stranger.start(id)
    assert not stranger.add_image(id, image())
    assert not stranger.fail(id, ERROR)
    assert not stranger.finish(id)
    assert not fleet.release(id, "other", refund_attempt=True)
    assert fleet.get(id) == before and fleet.images(id) == []
    mine = fleet.held_by("host")
    assert mine.start(id) and not stranger.requeue(id) and mine.requeue(id) and mine.start(id)
    assert mine.add_image(id, image(0)) and mine.add_image(id, image(1)) and mine.finish(id)
    ended = fleet.get(id)
    assert (ended.state, ended.attempts, ended.worker, ended.lease, ended.client) == ("done", 2, "host", None, "")


def test_heartbeat_extends_the_leases_it_names_and_tells_what_is_gone(fleet: FleetStore, clock: Clock) -> None:
    held, unnamed, cancelled = claim(fleet), claim(fleet), claim(fleet)
    fleet.cancel(cancelled)
    clock.now += 5
    steps = {held: 7, cancelled: 3, "unknown": 0}
    assert fleet.heartbeat(HOST, steps) == HeartbeatAnswer([cancelled, "unknown"], is_draining=False)
    assert (fleet.get(held).lease, fleet.get(held).steps_done) == (clock.now + LEASE_SECONDS, 7)
    assert fleet.get(unnamed).lease == clock.now + LEASE_SECONDS - 5
    assert fleet.heartbeat(OTHER, {held: 9}) == HeartbeatAnswer([held], is_draining=False)
    assert fleet.get(held).steps_done == 7


def test_job_of_a_lost_host_is_queued_again_with_its_attempts_and_images(fleet: FleetStore, clock: Clock) -> None:
    lost, kept = claim(fleet), claim(fleet, "other")
    fleet.held_by("host").start(lost)
    fleet.held_by("host").add_image(lost, image())
    for _ in range(12):
        clock.now += 1
        fleet.heartbeat(OTHER, {kept: 1})
        expired = fleet.expire()
        if expired.requeued:
            break
    assert [found.id for found in expired.requeued] == [lost] and not expired.ended
    assert clock.now == 1000.0 + LEASE_SECONDS + 1
    found = fleet.get(lost)
    assert (found.state, found.attempts, found.worker, found.lease, found.steps_done) == ("queued", 1, None, None, 0)
    assert fleet.images(lost) == [image()]
    assert fleet.get(kept).worker == "other"
    assert not fleet.held_by("host").add_image(lost, image(1))  # it comes back late
    assert fleet.heartbeat(HOST, {lost: 9}).ended == [lost]


def test_complete_job_of_a_lost_host_is_done(fleet: FleetStore, clock: Clock) -> None:
    id = claim(fleet)
    fleet.held_by("host").start(id)
    for index in (0, 1):
        fleet.held_by("host").add_image(id, image(index))
    pass_time(fleet, clock, LEASE_SECONDS + 1)
    assert fleet.get(id).state == "done"


def test_job_that_was_started_too_often_fails(fleet: FleetStore, clock: Clock) -> None:
    id = claim(fleet)
    for attempt in range(1, MAX_TOTAL_ATTEMPTS + 1):
        assert fleet.held_by("host").start(id) and fleet.get(id).attempts == attempt
        pass_time(fleet, clock, LEASE_SECONDS + 1, "host")
        assert bool(fleet.claim(HOST, (), 1, lambda _: Size(64, 64))) == (attempt < MAX_TOTAL_ATTEMPTS)
    failed = fleet.get(id)
    assert (failed.state, failed.error.code) == ("failed", "worker_lost")
    assert failed.error.message == f"The job was started {MAX_TOTAL_ATTEMPTS} times and never finished."
    assert fleet.dead() == [failed]


def test_job_that_was_never_started_survives_many_lost_hosts_but_not_any_number(
    fleet: FleetStore, clock: Clock
) -> None:
    id = claim(fleet)
    for _ in range(MAX_LOSSES - 1):
        pass_time(fleet, clock, LEASE_SECONDS + 1, "host")
        assert fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    pass_time(fleet, clock, LEASE_SECONDS + 1)
    assert fleet.get(id).error.code == "worker_lost" and fleet.get(id).attempts == 0


def test_late_job_fails_waiting_or_held(fleet: FleetStore, clock: Clock) -> None:
    held, waiting, unhurried = (fleet.add(job(created=0.0, deadline=end)).id for end in (5.0, 6.0, None))
    fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    clock.now += 4
    assert fleet.expire().ended == []
    clock.now += 3
    assert {found.id: found.error.code for found in fleet.expire().ended} == {
        held: "deadline_exceeded",
        waiting: "deadline_exceeded",
    }
    assert fleet.heartbeat(HOST, {held: 1}).ended == [held]
    assert [found.id for found in fleet.unfinished()] == [unhurried]


def test_lost_job_whose_deadline_has_passed_ends(fleet: FleetStore, clock: Clock) -> None:
    id = fleet.add(job(created=0.0, deadline=LEASE_SECONDS + 1)).id
    fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    pass_time(fleet, clock, LEASE_SECONDS - 1)
    clock.now += 3
    expired = fleet.expire()
    assert (expired.requeued, [found.id for found in expired.ended]) == ([], [id])


def test_janitor_and_claim_do_not_wait_for_each_other(fleet: FleetStore, clock: Clock, store_url: str) -> None:
    lost = claim(fleet)
    pass_time(fleet, clock, LEASE_SECONDS - 1)
    late = fleet.add(job(created=0.0, deadline=1.0)).id
    clock.now += 2
    with closing(FleetStore(ClockedPostgres(store_url, clock))) as other, ThreadPoolExecutor(1) as threads:
        with fleet.database.transaction():
            fleet.database.lock(Lock.CLAIM)
            expired = threads.submit(other.expire)
            wait_until_blocked(fleet.database)
            assert fleet.database.execute("UPDATE jobs SET charged = 1 WHERE id = ?", late) == 1
        found = expired.result()
    assert ([each.id for each in found.requeued], [each.id for each in found.ended]) == ([lost], [late])


def test_leases_survive_a_time_without_database(fleet: FleetStore, clock: Clock) -> None:
    id = claim(fleet)
    clock.now += 300
    assert fleet.expire().requeued == [] and len(fleet.workers()) == 2
    assert fleet.heartbeat(HOST, {id: 1}).ended == []
    pass_time(fleet, clock, LEASE_SECONDS)
    assert fleet.get(id).worker == "host"


def test_one_janitor_runs_at_a_time(fleet: FleetStore, clock: Clock, store_url: str) -> None:
    late = fleet.add(job(created=0.0, deadline=1.0)).id
    clock.now += 2
    with closing(FleetStore(ClockedPostgres(store_url, clock))) as other:
        with fleet.database.transaction():
            assert fleet.database.try_lock(Lock.JANITOR)
            assert other.expire().ended == []
        assert [found.id for found in other.expire().ended] == [late]


@pytest.mark.parametrize("refund", [True, False])
def test_released_job_is_free_for_any_host(fleet: FleetStore, refund: bool) -> None:
    id = claim(fleet)
    fleet.held_by("host").start(id)
    assert fleet.release(id, "host", refund_attempt=refund)
    found = fleet.get(id)
    assert (found.state, found.attempts, found.worker) == ("queued", int(not refund), None)
    assert not fleet.release(id, "host", refund_attempt=refund)
    assert [claimed.job.id for claimed in fleet.claim(OTHER, (), 1, lambda _: Size(64, 64))] == [id]


def test_attempt_that_was_not_begun_is_not_refunded(fleet: FleetStore) -> None:
    id = claim(fleet)
    assert fleet.release(id, "host", refund_attempt=True)
    assert (fleet.get(id).state, fleet.get(id).attempts) == ("queued", 0)


def test_init_image_comes_with_the_claim(fleet: FleetStore) -> None:
    request = ImageRequest("a cat").starting_from(init_image())
    fleet.add(job(request=request), PACKED)
    (claimed,) = fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    assert claimed.init_image == PACKED


# hosts


def test_hosts_are_listed_with_what_they_said_last(fleet: FleetStore, clock: Clock) -> None:
    device = DeviceStatus("cuda:0", is_ready=True, starts=2, last_failure="it fell off the bus", jobs=3, host="machine")
    device = replace(device, batching=Batching("measured", 8, "a GPU", 1.75e9, (MeasuredSize(64, 64, 4, 2.5),)))
    average = SizeAverage(width=64, height=64, per_pass=0.5, fixed=0.1)
    info = replace(HOST, devices=(device,), averages=(average,), window=4, image_input=True)
    fleet.heartbeat(info, {})
    clock.now += 3
    fleet.heartbeat(OTHER, {})
    fleet.drain("other")
    assert fleet.workers() == [replace(info, seconds_since_seen=3.0), replace(OTHER, is_draining=True)]
    assert fleet.heartbeat(OTHER, {}).is_draining


def test_host_that_is_not_seen_for_a_minute_is_forgotten(fleet: FleetStore, clock: Clock) -> None:
    pass_time(fleet, clock, FORGET_SECONDS, "other")
    assert len(fleet.workers()) == 2
    clock.now += 1
    fleet.heartbeat(OTHER, {})
    assert fleet.expire().workers == ["host"]
    assert [info.id for info in fleet.workers()] == ["other"]


def test_jobs_of_a_forgotten_host_are_queued_at_once(fleet: FleetStore) -> None:
    id = claim(fleet)
    assert fleet.forget("host") and not fleet.forget("host")
    assert [found.id for found in fleet.expire().requeued] == [id]
    assert not fleet.heartbeat(HOST, {}).is_draining  # it was alive, and is known again
    assert len(fleet.workers()) == 2


def test_host_of_a_newer_version_is_read(fleet: FleetStore) -> None:
    fleet.database.execute("""UPDATE workers SET info = replace(info, '{{"id"', '{{"news":[1],"id"')""")
    assert [info.id for info in fleet.workers()] == ["host", "other"]


# watchers, rates, administrators


def test_states_tell_watchers_steps_and_images(fleet: FleetStore) -> None:
    id, waiting = claim(fleet), fleet.add(job()).id
    mine = fleet.held_by("host")
    mine.start(id)
    mine.add_image(id, image(1))
    fleet.heartbeat(HOST, {id: 5})
    assert fleet.states([id, waiting, "unknown"]) == {
        id: JobStatus("running", 5, (1,)),
        waiting: JobStatus("queued", 0, ()),
    }
    assert fleet.states([]) == {}


def test_queue_is_counted_by_priority_and_by_what_jobs_need(fleet: FleetStore, clock: Clock) -> None:
    claim(fleet)
    fleet.add(job(model="nano", cost=4.0))
    clock.now += 3
    fleet.add(job(model="nano", cost=5.0))
    fleet.add(job(model="other", priority="batch", request=ImageRequest("a cat", lora="ink")))
    fleet.cancel(fleet.add(job(model="other")).id)
    fleet.add(job(model="other", plan_id="plan"), pack(init_image()))
    assert fleet.queue() == [
        QueueLength("nano", "interactive", None, waiting=2, held=1, oldest=3.0, cost=9.0),
        QueueLength("other", "batch", "ink", waiting=1, held=0, oldest=0.0, cost=0.0),
        QueueLength("other", "interactive", None, 1, 0, oldest=0.0, cost=0.0, plan_id="plan", image_input=True),
    ]


def test_rate_allows_a_burst_and_then_one_request_in_each_interval(fleet: FleetStore, clock: Clock) -> None:
    assert [fleet.rates.hit("a", 3, 60) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]
    assert fleet.rates.hit("b", 3, 60) == 0.0
    clock.now += 15
    assert fleet.rates.hit("a", 3, 60) == 5.0
    clock.now += 5
    assert [fleet.rates.hit("a", 3, 60) for _ in range(2)] == [0.0, 20.0]
    clock.now += 600
    assert [fleet.rates.hit("a", 3, 60) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]


def test_rate_is_shared_by_the_threads_of_several_replicas(store_url: str) -> None:
    with closing(FleetStore(store_url)) as one, closing(FleetStore(store_url)) as other, ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda n: (one if n % 2 else other).rates.hit("a", 10, 3600), range(80)))
    assert waits.count(0.0) == 10 and all(300 < wait <= 360 for wait in waits if wait)


def test_dead_job_is_retried_with_all_its_attempts(fleet: FleetStore, clock: Clock) -> None:
    id = fleet.add(job(created=0.0, deadline=50.0, owner="me", client="192.0.2.1")).id
    (claimed,) = fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    assert fleet.retry(id) is None and fleet.retry("unknown") is None
    fleet.held_by("host").start(id)
    clock.now += 60
    fleet.expire()
    queued = fleet.retry(id)
    assert queued == replace(claimed.job, deadline=None, client=client_hash("me"), worker=None, started=1000.0)
    assert [each.job.id for each in fleet.claim(OTHER, (), 1, lambda _: Size(64, 64))] == [id]


def test_only_failed_jobs_are_dropped(fleet: FleetStore) -> None:
    waiting, done, failed = fleet.add(job()).id, generated(fleet), fleet.add(job()).id
    fleet.fail(failed, ERROR)
    assert [fleet.drop(id) for id in (waiting, done, failed, "unknown")] == [False, False, True, False]
    assert fleet.get(failed) is None and fleet.dead() == []


def test_prune_forgets_rates_and_shares_that_no_longer_matter(fleet: FleetStore, clock: Clock) -> None:
    fleet.add(job(client="gone", model="nano", cost=1.0))
    for _ in range(3):
        fleet.add(job(client="here", model="nano", cost=5.0))
    ended = [claimed.job.id for claimed in fleet.claim(HOST, (), 3, lambda _: Size(64, 64))]
    for id in ended:
        fleet.cancel(id)
    fleet.rates.hit("gone", 1, 60)
    clock.now += 30
    fleet.rates.hit("here", 1, 60)
    clock.now += 31
    assert fleet.prune(Retention()) == 0
    for table in ("rates", "shares"):
        assert clients(fleet, table) == ["here"]


def clients(fleet: FleetStore, table: str) -> list[str]:
    return [row["client"] for row in fleet.database.rows(f"SELECT client FROM {table} ORDER BY client")]


def test_clients_that_sent_one_job_each_are_forgotten_after_an_hour(fleet: FleetStore, clock: Clock) -> None:
    """None of them is behind the others, however many there are."""

    def generate(client: str) -> None:
        fleet.add(job(client=client, model="nano", cost=1.0))
        (claimed,) = fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
        fleet.cancel(claimed.job.id)

    for client in ("a", "b", "returns"):
        generate(client)
    fleet.add(job(client="waits", model="nano"))
    fleet.claim(HOST, (), 1, lambda _: Size(64, 64))
    clock.now += DEBT_SECONDS - 1
    generate("returns")
    fleet.prune(Retention())
    assert clients(fleet, "shares") == ["a", "b", "returns", "waits"]
    clock.now += 2
    fleet.prune(Retention())
    assert clients(fleet, "shares") == ["returns", "waits"]


def test_host_does_not_prune_and_one_replica_does(fleet: FleetStore, clock: Clock) -> None:
    generated(fleet)
    clock.now += 100
    assert fleet.held_by("host").prune(Retention(max_age=1.0)) == 0
    assert fleet.prune(Retention(max_age=1.0)) == 1


def test_lease_ends_by_the_clock_of_the_database(store_url: str) -> None:
    with closing(FleetStore(store_url, lease=0.2)) as fleet:
        fleet.register(HOST)
        fleet.expire()
        id = claim(fleet)
        assert abs(fleet.get(id).created - time.time()) < 60
        requeued: list[Job] = []
        while not requeued:
            time.sleep(0.02)
            requeued = fleet.expire().requeued
        assert [found.id for found in requeued] == [id]

"""Faults of a fleet, with real servers and processes: nothing accepted is lost, stored twice or left without an end."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from fakes.fleet import hosting, new_options
from fakes.jobs import job as new_job
from fakes.jobs_mode import FleetServices
from fakes.loop import KILL_PROMPT, MANIFEST, FakeLoop
from fakes.services import PostgreSql, RabbitMq, Redis, Service, new
from fakes.waiting import wait_until
from fakes.worker_host import LEASE, Fleet

from engine.request import ImageRequest
from server.fleet.host import heartbeats
from server.jobs.job import Job, JobState
from server.jobs.storage.fleet.fleet_store import FleetStore

SLOW = 0.1  # seconds for a step, of which an image has eight


@pytest.fixture
def fleet(redis_url: str, postgres_url: str) -> Iterator[Fleet]:
    with ExitStack() as owned:
        yield Fleet(redis_url, postgres_url, owned)


def assert_done(fleet: Fleet, *jobs: Job) -> None:
    """Check that jobs end with all their images, each stored once."""
    for job in fleet.wait(*jobs):
        assert (job.state, job.error) == (JobState.DONE, None)
        assert [image.index for image in fleet.store.images(job.id)] == list(range(job.image_count))


def test_jobs_of_a_killed_host_are_generated_by_another(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW)
    jobs = [fleet.submit(image_count=2) for _ in range(4)]
    fleet.wait(jobs[0], state=JobState.RUNNING)
    first.kill()
    second = fleet.host()
    assert_done(fleet, *jobs)
    assert fleet.get(jobs[0]).worker == second.id
    assert fleet.get(jobs[0]).attempts == 2


def test_job_that_kills_workers_ends_by_name_over_two_hosts(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW)
    poison = fleet.submit("a dog", request=ImageRequest(KILL_PROMPT, 64, 64, num_inference_steps=2))
    others = [fleet.submit() for _ in range(3)]
    fleet.wait(poison, state=JobState.RUNNING)
    first.kill()
    second = fleet.host()
    (ended,) = fleet.wait(poison)
    assert ended.error is not None and ended.error.code == "worker_lost"
    assert (ended.attempts, ended.worker) == (2, second.id)
    assert_done(fleet, *others)


def test_host_that_was_cut_off_cannot_end_what_another_one_has(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW)
    jobs = [fleet.submit(image_count=2) for _ in range(3)]
    fleet.wait(jobs[0], state=JobState.RUNNING)
    first.pause()
    second = fleet.host()
    assert_done(fleet, *jobs)
    ends = [(job.finished, job.worker) for job in map(fleet.get, jobs)]
    first.resume()
    after = [fleet.submit() for _ in range(6)]
    assert_done(fleet, *after)
    until = time.monotonic() + 20
    while first.health()["jobs"] and time.monotonic() < until:
        time.sleep(0.1)
    assert first.health()["jobs"] == 0  # it has forgotten them
    assert [(job.finished, job.worker) for job in map(fleet.get, jobs)] == ends
    assert {worker for _, worker in ends} == {second.id}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Redis, RabbitMq])
def test_jobs_are_generated_beside_a_broker_that_is_dead_or_silent_and_by_tickets_in_between(
    kind: type[Service], postgres_url: str
) -> None:
    with new(kind) as broker, ExitStack() as owned:
        fleet = Fleet(broker.fresh_url(), postgres_url, owned)
        host = fleet.host(seconds_per_step=0.02)
        before = [fleet.submit() for _ in range(4)]
        broker.kill()
        during = [fleet.submit(ticket=False) for _ in range(4)]
        assert_done(fleet, *before, *during)
        broker.start()
        host.wait_until_ready()
        taken, until = host.metric("zimage_host_claims_by_ticket_total"), time.monotonic() + 60
        after = 0
        while host.metric("zimage_host_claims_by_ticket_total") == taken:  # a poll may come first
            assert time.monotonic() < until
            assert_done(fleet, fleet.submit())
            after += 1
        assert host.metric("zimage_images_total") == 8 + after
        broker.pause()
        assert_done(fleet, *(fleet.submit(ticket=False) for _ in range(3)))
        assert host.terminate() == 0
        assert fleet.store.workers() == []
        broker.resume()


def test_jobs_end_once_although_the_database_is_killed_meanwhile(redis_url: str) -> None:
    with new(PostgreSql) as database, ExitStack() as owned:
        fleet = Fleet(redis_url, database.fresh_url(), owned)
        hosts = [fleet.host(seconds_per_step=SLOW), fleet.host(seconds_per_step=SLOW)]
        jobs = [fleet.submit(image_count=2) for _ in range(6)]
        fleet.wait(jobs[0], state=JobState.RUNNING)
        database.kill()
        time.sleep(LEASE + 1)
        database.start()
        assert_done(fleet, *jobs)
        assert all(job.attempts == 1 for job in map(fleet.get, jobs))  # the outage was no host's fault
        assert_done(fleet, fleet.submit())
        assert [host.terminate() for host in hosts] == [0, 0]


def test_deadlines_pass_in_the_queue_and_while_a_job_is_generated(fleet: Fleet) -> None:
    waiting = fleet.submit(deadline=0.5)
    (late,) = fleet.wait(waiting)
    assert late.error is not None and late.error.code == "deadline_exceeded"
    host = fleet.host(seconds_per_step=SLOW)
    running = fleet.submit(image_count=20, deadline=1.5)
    (late,) = fleet.wait(running)
    assert late.error is not None and late.error.code == "deadline_exceeded"
    assert late.worker == host.id
    assert_done(fleet, fleet.submit())


def test_cancelled_job_frees_its_host(fleet: Fleet) -> None:
    host = fleet.host(seconds_per_step=SLOW)
    running, claimed, queued = (fleet.submit(image_count=50) for _ in range(3))
    fleet.wait(running, state=JobState.RUNNING)
    for job in (queued, claimed, running):
        assert fleet.store.cancel(job.id)
    assert_done(fleet, fleet.submit())
    assert host.health()["jobs"] == 0
    assert all(job.state is JobState.CANCELLED for job in map(fleet.get, (running, claimed, queued)))


def test_job_that_its_host_lost_and_claims_again_begins_from_its_row(
    redis_url: str, postgres: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 60.0)  # so that the host does not hear that it lost the job
    options = new_options(FleetServices(redis_url, postgres.fresh_url))
    with closing(FleetStore(options.database)) as store, hosting(FakeLoop(SLOW), options, MANIFEST):
        id = store.add(new_job(4, model=MANIFEST.model.name)).id
        wait_until(lambda: len(store.images(id)) == 1)
        with store.database.transaction():
            store.database.execute("UPDATE jobs SET worker = NULL, state = 'queued', started = NULL WHERE id = ?", id)
            store.database.execute("DELETE FROM images WHERE job = ?", id)
        wait_until(lambda: store.get(id).state.is_final)
        ended, row = store.get(id), store.database.rows("SELECT losses FROM jobs WHERE id = ?", id)[0]
        assert (ended.state, ended.error, len(store.images(id)), row["losses"]) == (JobState.DONE, None, 4, 0)

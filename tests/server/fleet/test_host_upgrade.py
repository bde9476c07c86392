"""Hosts that come, drain and go, and hosts with different plans and LoRAs beside each other."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fakes.loop import LORAS
from fakes.waiting import wait_until
from fakes.worker_host import Fleet

from engine.request import ImageRequest
from server.jobs.job import JobState

SLOW = 0.1  # seconds for a step, of which an image has eight


@pytest.fixture
def fleet(redis_url: str, postgres_url: str) -> Iterator[Fleet]:
    with ExitStack() as owned:
        yield Fleet(redis_url, postgres_url, owned)


def test_terminated_host_finishes_what_runs_and_leaves_the_rest_to_others(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW)
    running = fleet.submit(image_count=4)
    fleet.wait(running, state=JobState.RUNNING)
    first.process.terminate()
    until = time.monotonic() + 10
    while first.health()["status"] != "draining":
        assert time.monotonic() < until
    waiting = fleet.submit()
    assert first.process.wait(30) == 0
    (done,) = fleet.wait(running)
    assert (done.state, done.worker, done.attempts) == (JobState.DONE, first.id, 1)
    assert fleet.get(waiting).worker is None
    assert fleet.store.workers() == []
    second = fleet.host()
    (done,) = fleet.wait(waiting)
    assert (done.state, done.worker) == (JobState.DONE, second.id)


def test_terminated_host_gives_back_at_once_what_no_worker_has_begun(fleet: Fleet) -> None:
    host = fleet.host(seconds_per_step=2.0, grace=600.0, lease=600.0)
    running = fleet.submit(image_count=3)
    fleet.wait(running, state=JobState.RUNNING)
    claimed = fleet.submit()
    wait_until(lambda: fleet.get(claimed).worker == host.id)
    host.process.terminate()
    wait_until(lambda: fleet.get(claimed).worker is None)
    assert (fleet.get(running).worker, fleet.get(claimed).attempts) == (host.id, 0)
    wait_until(lambda: [each.is_draining for each in fleet.store.workers()] == [True])
    assert host.terminate() == 0, "a second signal ends the wait"


def test_host_without_grace_gives_its_jobs_back_at_once_and_without_an_attempt(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW, grace=0.0, lease=60.0)
    jobs = [fleet.submit(image_count=50) for _ in range(2)]
    fleet.wait(jobs[0], state=JobState.RUNNING)
    assert first.terminate() == 0
    assert [(job.state, job.worker, job.attempts) for job in map(fleet.get, jobs)] == [(JobState.QUEUED, None, 0)] * 2
    second = fleet.host()
    assert {job.worker for job in fleet.wait(*jobs)} == {second.id}


def test_host_that_is_drained_by_the_fleet_takes_no_more_jobs_and_stays(fleet: Fleet) -> None:
    first = fleet.host(seconds_per_step=SLOW)
    running = fleet.submit(image_count=2)
    fleet.wait(running, state=JobState.RUNNING)
    assert fleet.store.drain(first.id)
    until = time.monotonic() + 20
    while first.health()["status"] != "draining":
        assert time.monotonic() < until
    waiting = fleet.submit()
    assert fleet.wait(running)[0].worker == first.id
    second = fleet.host()
    assert fleet.wait(waiting)[0].worker == second.id
    assert first.process.poll() is None


def test_jobs_go_only_to_hosts_with_their_plans_and_loras(fleet: Fleet) -> None:
    old = fleet.host(plan_id="a" * 12)
    new = fleet.host(plan_id="b" * 12, loras=LORAS)
    own = {host.id: [fleet.submit(plan_id=plan) for _ in range(3)] for host, plan in ((old, "a" * 12), (new, "b" * 12))}
    with_lora = [fleet.submit(request=ImageRequest("a cat", 64, 64, lora=LORAS[0])) for _ in range(3)]
    unknown = fleet.submit(plan_id="c" * 12, deadline=2.0)
    for host_id, jobs in own.items():
        assert [(job.state, job.worker) for job in fleet.wait(*jobs)] == [(JobState.DONE, host_id)] * 3
    assert [(job.state, job.worker) for job in fleet.wait(*with_lora)] == [(JobState.DONE, new.id)] * 3
    (late,) = fleet.wait(unknown)
    assert late.error is not None and late.error.code == "deadline_exceeded"
    assert late.worker is None

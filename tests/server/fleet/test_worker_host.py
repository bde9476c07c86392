"""A worker host in a process, with real brokers and PostgreSQL: jobs from the row to the image."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from fakes.server import decoded
from fakes.worker_host import FLEET, Fleet

from engine.request import ImageRequest
from server.fleet.messaging.celery_app import send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import Event, ImageStored, JobEnded, JobRunning
from server.jobs.job import Job, JobState


@pytest.fixture
def fleet(redis_url: str, postgres_url: str) -> Iterator[Fleet]:
    with ExitStack() as owned:
        yield Fleet(redis_url, postgres_url, owned)


def images(fleet: Fleet, job: Job) -> list[np.ndarray]:
    return [decoded(image.data) for image in fleet.store.images(job.id)]


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_job_is_generated_by_its_ticket_and_announced(
    broker: str, postgres_url: str, request: pytest.FixtureRequest
) -> None:
    events: list[Event] = []
    with ExitStack() as owned:
        fleet = Fleet(request.getfixturevalue(broker), postgres_url, owned)
        bus = EventBus(fleet.broker, FLEET, "events", events.append)
        bus.start()
        owned.callback(bus.close)
        assert bus.wait_until_listening(20)
        host = fleet.host()
        job = fleet.submit(request=ImageRequest("a cat", 64, 64, seed=7), image_count=3)
        (done,) = fleet.wait(job)
        assert (done.state, done.attempts, done.worker) == (JobState.DONE, 1, host.id)
        assert [image[0, 0, 0] for image in images(fleet, job)] == [7, 8, 9]
        assert (host.metric("zimage_host_claims_by_ticket_total"), host.metric("zimage_images_total")) == (1, 3)
        until = time.monotonic() + 10
        while JobEnded(job.id) not in events and time.monotonic() < until:
            time.sleep(0.01)
    seen = [event for event in events if isinstance(event, JobRunning | ImageStored | JobEnded)]
    assert (seen[0], seen[-1]) == (JobRunning(job.id), JobEnded(job.id))
    stored = [event for event in seen[1:-1] if isinstance(event, ImageStored)]
    assert sorted(event.index for event in stored) == [0, 1, 2] and len(seen) == 5


def test_job_without_a_ticket_is_found_and_doubled_tickets_do_nothing(fleet: Fleet) -> None:
    host = fleet.host()
    lost = fleet.submit(ticket=False)
    assert fleet.wait(lost)[0].state is JobState.DONE
    doubled = fleet.submit()
    for _ in range(6):  # one of an ended job among them
        send_ticket(fleet.app, doubled)
        send_ticket(fleet.app, lost)
    assert fleet.wait(doubled)[0].state is JobState.DONE
    after = fleet.submit()
    assert fleet.wait(after)[0].attempts == 1
    assert host.metric("zimage_images_total") == 3

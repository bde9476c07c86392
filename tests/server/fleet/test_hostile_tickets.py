"""Tests of a Celery worker that finds messages in its queues that no API replica sends."""

import gzip
import json
import pickle
import queue
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.jobs import job
from kombu import Producer

from server.fleet.messaging.broker import Broker
from server.fleet.messaging.celery_app import create_celery, queue_of, queues_of_host, send_ticket
from server.fleet.messaging.celery_app import queue as queue_called
from server.fleet.messaging.ticket_worker import TicketWorker

TIMEOUT = 60.0  # seconds
FLEET = "hostile"
BODY = json.dumps([["job_x"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def headers(**changed: Any) -> dict[str, Any]:
    usual = {"lang": "py", "task": "zimage.generate", "id": "a", "root_id": "a", "parent_id": None, "retries": 0}
    return usual | {"timelimit": [None, None], "eta": None, "expires": None, "ignore_result": True} | changed


HOSTILE: list[tuple[bytes, str, dict[str, Any]]] = [
    (b"x", "application/json", {}),
    (BODY, "application/json", {}),
    (BODY, "application/json", headers(task="os.system")),
    (pickle.dumps(1), "application/x-python-serialize", headers()),
    (b"[[], {}, {}]", "application/json", headers()),
    (b"[]", "application/json", headers()),
    (b'[[{"a": 1}], {}, {}]', "application/json", headers()),
    (b"[" * 100_000, "application/json", headers()),
    (b"\xff\xfe", "application/json", headers()),
    (BODY, "application/json", headers(id=[1])),
    (BODY, "application/json", headers(eta="never")),
    (BODY, "application/json", headers(timelimit=["x", {}])),
    (gzip.compress(BODY), "application/json", headers(compression="application/x-gzip")),
]


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def held(broker: str) -> Iterator["queue.Queue[Any]"]:
    """Yield the ids of the tickets that a Celery worker was asked to hold."""
    held: queue.Queue[Any] = queue.Queue()
    app = create_celery(broker, FLEET, queues_of_host(FLEET, "nano", "plan", ()))
    worker = TicketWorker(app, "host-1", lambda id: held.put(id) is None)
    worker.start(1)
    yield held
    worker.stop(TIMEOUT)


def test_ticket_after_hostile_messages_is_taken(
    broker: str, held: "queue.Queue[Any]", caplog: pytest.LogCaptureFixture
) -> None:
    asked = job(id="job_after", model="nano")
    target = queue_called(queue_of(asked, FLEET))
    with Broker(broker, FLEET).connection() as connection:
        producer = Producer(connection.channel(), target.exchange, routing_key=target.routing_key)
        for body, kind, given in HOSTILE:
            producer.publish(body, content_type=kind, content_encoding="utf-8", headers=given, declare=[target])
    assert send_ticket(create_celery(broker, FLEET), asked)
    while held.get(timeout=TIMEOUT) != "job_after":
        pass
    assert "the Celery worker has ended" not in caplog.text

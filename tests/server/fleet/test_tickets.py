"""Queues, tickets and the Celery worker, with real brokers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from celery import Celery
from celery.worker import WorkController
from fakes.jobs import job
from fakes.waiting import wait_until

from benchmarks.services.service import free_port
from engine.request import ImageRequest
from server.fleet.messaging.celery_app import create_celery, queue, queue_of, queues_of_host, send_ticket
from server.fleet.messaging.ticket_worker import TicketWorker, delete_unused_queues

QUEUES = queues_of_host("f", "m", "p", ("a.b",))


@contextmanager
def celery(broker: str, *, consumes: bool = False) -> Iterator[Celery]:
    app = create_celery(broker, "f", QUEUES if consumes else ())
    try:
        yield app
    finally:
        app.pool.force_close_all()
        app.close()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "f.any.interactive"),
        ({"model": "m"}, "f.m.interactive"),
        ({"model": "m", "priority": "batch"}, "f.m.batch"),
        ({"model": "m", "request": ImageRequest("a cat", lora="a.b"), "priority": "batch"}, "f.m.lora.a.b"),
        ({"model": "m", "request": ImageRequest("a cat", lora="a.b"), "plan_id": "p"}, "f.plan.p"),
    ],
)
def test_every_queue_of_a_job_is_consumed_by_the_hosts_that_can_generate_it(
    fields: dict[str, object], name: str
) -> None:
    assert queue_of(job(**fields), "f") == name
    assert name in QUEUES


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_tickets_are_held_given_back_and_acknowledged(broker: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(broker)
    held: list[str] = []
    refusing, go_on = threading.Event(), threading.Event()

    def hold(job_id: str) -> bool:
        if refusing.is_set():
            return False
        held.append(job_id)
        go_on.wait(20)
        return True

    jobs = [replace(job(), model="m", priority=priority) for priority in ("interactive", "batch")]
    with celery(url, consumes=True) as app:
        first = TicketWorker(app, "first", hold)
        first.start(4)
        assert all(send_ticket(app, each) for each in jobs)
        wait_until(lambda: len(held) == 2)
        first.pause()
        wait_until(lambda: first._worker.consumer.task_consumer.channel is not None)
        refusing.set()
        late = replace(job(), model="m")
        send_ticket(app, late)
        go_on.set()
        time.sleep(0.3)  # in which a worker that is not paused would take, and give back, the last one for ever
        first.stop(20)
        assert not first._thread.is_alive()
    refusing.clear()
    with celery(url, consumes=True) as app:
        second = TicketWorker(app, "second", hold)
        second.start(4)
        wait_until(lambda: late.id in held)
        time.sleep(0.3)
        second.stop(20)
    assert sorted(held) == sorted([*(each.id for each in jobs), late.id])  # the first two were acknowledged


def test_worker_that_is_paused_at_once_takes_no_tickets(redis_url: str) -> None:
    """It would take each one, and give it back, for as long as its host drains."""
    held: list[str] = []
    with celery(redis_url, consumes=True) as app:
        worker = TicketWorker(app, "paused", held.append)
        worker.start(1)
        worker.pause()
        send_ticket(app, replace(job(), model="m"))
        wait_until(lambda: worker.is_connected)
        time.sleep(0.3)
        worker.stop(20)
    assert held == []


def test_sockets_are_closed_although_celery_fails_to_close_its_event_loop(redis_url: str) -> None:
    """As it does over RabbitMQ when it was about to read from a connection that is closed by then."""

    def fail(hub: object) -> None:
        failures.append(hub)
        celery_worker.hub.on_close.discard(fail)
        raise ConnectionResetError("Socket was disconnected")

    failures: list[object] = []
    with celery(redis_url, consumes=True) as app:
        worker = TicketWorker(app, "host", lambda _: True)
        worker.start(1)
        wait_until(lambda: worker.is_connected)
        celery_worker: WorkController = worker._worker
        waker = celery_worker.hub._waker
        celery_worker.hub.on_close.add(fail)
        worker.stop(20)
    assert failures and waker.reader.fileno() == waker.writer.fileno() == -1


def test_thread_of_tickets_survives_an_event_loop_that_cannot_be_closed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[object] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)

    def fail(hub: object) -> None:
        failures.append(hub)
        raise ConnectionResetError("Socket was disconnected")

    failures: list[object] = []
    with celery(redis_url, consumes=True) as app:
        worker = TicketWorker(app, "host", lambda _: True)
        worker.start(1)
        wait_until(lambda: worker.is_connected)
        hub = worker._worker.hub
        hub.on_close.add(fail)
        worker.stop(20)
    hub.on_close.clear()
    hub.close()
    assert len(failures) >= 2 and not deaths


def test_only_queues_that_nobody_consumes_are_deleted(rabbitmq_url: str) -> None:
    with celery(rabbitmq_url, consumes=True) as app, app.connection_for_write() as connection:
        channel = connection.channel()
        for name in QUEUES:
            queue(name)(channel).declare()
        queue(QUEUES[0])(channel).consume(callback=lambda _: None)
        delete_unused_queues(app)
        assert queue(QUEUES[0])(channel).queue_declare(passive=True).consumer_count == 1
        for name in QUEUES[1:]:
            with pytest.raises(connection.channel_errors):
                queue(name)(connection.channel()).queue_declare(passive=True)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_ticket_for_a_dead_broker_is_given_up(scheme: str) -> None:
    with celery(f"{scheme}://127.0.0.1:{free_port()}") as app:
        assert not send_ticket(app, job())

"""The fleets of the API tests, in threads of the test's process."""

import threading

import pytest
from celery.worker import WorkController
from fakes.fleet import hosting, new_options
from fakes.jobs_mode import FleetServices
from fakes.loop import MANIFEST, FakeLoop
from fakes.services import PostgreSql
from fakes.waiting import wait_until


@pytest.fixture
def services(redis_url: str, postgres: PostgreSql) -> FleetServices:
    return FleetServices(redis_url, postgres.fresh_url)


def test_host_leaves_no_socket_though_celery_fails_to_close_its_event_loop(services: FleetServices) -> None:
    """As it does over RabbitMQ when it was about to read from a connection that is closed by then."""

    def fail(hub: object) -> None:
        failures.append(hub)
        celery_worker.hub.on_close.discard(fail)
        raise ConnectionResetError("Socket was disconnected")

    failures: list[object] = []
    with hosting(FakeLoop(), new_options(services), MANIFEST) as host:
        wait_until(lambda: host._tickets.is_connected)
        celery_worker: WorkController = host._tickets._worker
        waker = celery_worker.hub._waker
        celery_worker.hub.on_close.add(fail)
    assert failures and waker.reader.fileno() == waker.writer.fileno() == -1


def test_thread_of_tickets_survives_an_event_loop_that_cannot_be_closed(
    services: FleetServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[object] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)

    def fail(hub: object) -> None:
        failures.append(hub)
        raise ConnectionResetError("Socket was disconnected")

    failures: list[object] = []
    with hosting(FakeLoop(), new_options(services), MANIFEST) as host:
        wait_until(lambda: host._tickets.is_connected)
        hub = host._tickets._worker.hub
        hub.on_close.add(fail)
    hub.on_close.clear()
    hub.close()
    assert len(failures) >= 2 and not deaths

"""Tests of the janitor over PostgreSQL: what it requeues, ends and reports, and that nothing stops it."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fakes.hosts import worker
from fakes.jobs import job
from prometheus_client.parser import text_string_to_metric_families

from engine.size import Size
from server.errors import StoreUnavailable
from server.fleet import janitor as janitor_module
from server.fleet.janitor import Findings, Janitor
from server.fleet.messaging.event_bus import EventBus
from server.fleet.metrics import FleetMetrics
from server.jobs.job import Job
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import Expired


@dataclass
class Found:
    """Calls of a janitor, and its metrics."""

    has_broker: bool = True
    tickets: list[str] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.fleet_metrics = FleetMetrics(self.metrics, EventBus("redis://127.0.0.1:1/0", "zimage"))

    def findings(self) -> Findings:
        return Findings(self._send, self.ended.append)

    def _send(self, job: Job) -> bool:
        self.tickets.append(job.id)
        return self.has_broker

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.metrics.text().decode())
        samples = [sample for family in families for sample in family.samples]
        (value,) = (
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )
        return float(value)


@pytest.fixture
def store(postgres_url: str) -> Iterator[FleetStore]:
    store = FleetStore(postgres_url)
    store.expire()  # the first run after a pause gives hosts time
    yield store
    store.database.close()


def claimed(store: FleetStore, count: int) -> list[str]:
    """Have a host claim jobs."""
    ids = [store.add(job(model="nano")).id for _ in range(count)]
    store.register(worker())
    assert len(store.claim(worker(), [], count, lambda _: Size(64, 64))) == count
    return ids


def lose_leases(store: FleetStore) -> None:
    store.database.execute("UPDATE jobs SET lease = {now} - 1")


def test_jobs_of_a_lost_host_are_queued_again_with_tickets(store: FleetStore) -> None:
    found, ids = Found(), claimed(store, 2)
    janitor = Janitor(store, found.fleet_metrics, found.findings())
    janitor.run_once()
    assert found.tickets == []
    lose_leases(store)
    janitor.run_once()
    assert sorted(found.tickets) == sorted(ids) and found.ended == []
    assert found.metric("zimage_leases_expired_total") == 2
    janitor.run_once()
    assert len(found.tickets) == 2


def test_tickets_stop_at_the_first_that_the_broker_does_not_take(store: FleetStore) -> None:
    found = Found(has_broker=False)
    claimed(store, 3)
    lose_leases(store)
    Janitor(store, found.fleet_metrics, found.findings()).run_once()
    assert len(found.tickets) == 1


def test_late_job_is_reported_and_counted_by_the_process_that_ends_it(store: FleetStore) -> None:
    first, second = Found(), Found()
    late = store.add(job(created=1.0, deadline=1.0))
    for found in (first, second):
        Janitor(store, found.fleet_metrics, found.findings()).run_once()
    assert [job.id for job in first.ended] == [late.id] and second.ended == []
    assert first.metric("zimage_jobs_ended_total", code="deadline_exceeded") == 1


def test_host_that_is_gone_is_counted(store: FleetStore) -> None:
    found = Found()
    store.register(worker())
    store.database.execute("UPDATE workers SET seen = {now} - 100")
    Janitor(store, found.fleet_metrics, found.findings()).run_once()
    assert found.metric("zimage_workers_lost_total") == 1 and store.workers() == []


def test_view_has_hosts_and_queue(store: FleetStore) -> None:
    found = Found()
    claimed(store, 1)
    janitor = Janitor(store, found.fleet_metrics, found.findings(), has_view=True)
    assert janitor.view.workers == ()
    janitor.run_once()
    assert [host.id for host in janitor.view.workers] == ["host-1"]
    assert [(length.waiting, length.held) for length in janitor.view.queue] == [(0, 1)]


class FailingStore:
    """A store whose first run finds the database down, and whose second has a defect."""

    def __init__(self) -> None:
        self.runs, self.has_recovered = 0, threading.Event()

    def expire(self) -> Expired:
        self.runs += 1
        if self.runs == 1:
            raise StoreUnavailable("the database is away")
        if self.runs == 2:
            raise KeyError("a defect")
        self.has_recovered.set()
        return Expired([], [], [])


def test_failures_do_not_end_the_janitor(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(janitor_module, "EVERY", 0.01)
    found, failing = Found(), FailingStore()
    janitor = Janitor(failing, found.fleet_metrics, found.findings())  # type: ignore[arg-type]  # has no view
    janitor.start()
    assert failing.has_recovered.wait(60)
    janitor.close()
    assert not janitor._thread.is_alive()
    assert "the database is away" in caplog.text and "a defect" in caplog.text
    assert found.metric("zimage_database_up") == 1


def test_database_that_is_away_shows_in_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor_module, "EVERY", 0.01)
    found, failed = Found(), threading.Event()

    class Away:
        def expire(self) -> Expired:
            failed.set()
            raise StoreUnavailable("the database is away")

    janitor = Janitor(Away(), found.fleet_metrics, found.findings())  # type: ignore[arg-type]  # has no view
    janitor.start()
    assert failed.wait(60)
    janitor.close()
    assert found.metric("zimage_database_up") == 0

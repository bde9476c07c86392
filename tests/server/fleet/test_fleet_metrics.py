"""Tests of a fleet's metrics: gauges of the whole fleet from its view, counters of the process."""

from fakes.hosts import device, worker
from prometheus_client.parser import text_string_to_metric_families

from server.fleet.fleet_view import FleetView
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import Preview
from server.fleet.metrics import FleetMetrics
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.worker_info import QueueLength


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the values of all samples by name and values of labels."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def length(model: str | None, priority: str, lora: str | None, waiting: int, held: int, oldest: float) -> QueueLength:
    return QueueLength(model, priority, lora, waiting, held, oldest, cost=100.0 * waiting)


def test_fleet_is_reported_by_state_model_and_priority() -> None:
    devices = (device("0"), device("1", is_ready=False))
    hosts = (worker("a", devices=devices), worker("b", devices=()), worker("c"))
    queue = (
        length("nano", "interactive", None, 2, 1, 5.0),
        length("nano", "interactive", "outlines", 3, 0, 9.0),
        length(None, "batch", None, 1, 0, 1.0),
    )
    metrics = Metrics()
    FleetMetrics(metrics, EventBus("redis://127.0.0.1:1/0", "zimage"), lambda: FleetView(hosts, queue))
    found = samples(metrics)
    assert [found["zimage_fleet_workers", state] for state in ("ready", "starting", "draining")] == [2, 1, 0]
    assert [found["zimage_fleet_devices", state] for state in ("ready", "failing")] == [2, 1]
    values = {
        name: [found[f"zimage_fleet_{name}", *labels] for labels in (("nano", "interactive"), ("nano", "batch"))]
        for name in ("jobs_waiting", "jobs_running", "queue_oldest_seconds", "queue_cost", "jobs_without_host")
    }
    assert values == {
        "jobs_waiting": [5, 0],
        "jobs_running": [1, 0],
        "queue_oldest_seconds": [9, 0],
        "queue_cost": [500, 0],
        "jobs_without_host": [3, 0],
    }
    assert found["zimage_fleet_jobs_waiting", "", "batch"] == 1


def test_process_without_a_view_reports_only_itself() -> None:
    metrics, bus = Metrics(), EventBus("redis://127.0.0.1:1/0", "zimage")
    fleet_metrics = FleetMetrics(metrics, bus)
    fleet_metrics.count_ticket(is_sent=True)
    fleet_metrics.count_ticket(is_sent=False)
    bus.publish(Preview("job", 0, 1, bytes(5 << 20)))  # too large for any broker
    fleet_metrics.is_database_up = False
    found = samples(metrics)
    assert not [name for name, *_ in found if name.startswith("zimage_fleet_")]
    assert found["zimage_tickets_sent_total",] == found["zimage_tickets_failed_total",] == 1
    assert found["zimage_events_lost_total",] == 1 and found["zimage_events_sent_total",] == 0
    assert found["zimage_database_up",] == found["zimage_broker_up",] == 0

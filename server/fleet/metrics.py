"""Metrics of a process of a fleet. Knows names and labels; not who counts.

`zimage_fleet_*` are gauges of the whole fleet, from the database: every API replica reports the same values, so take
their maximum over the replicas. All others are about this process alone, and can be summed.
"""

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.fleet.fleet_view import FleetView
from server.fleet.messaging.event_bus import EventBus
from server.jobs.job import Priority
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.worker_info import WorkerInfo

WORKER_STATES = ("ready", "starting", "draining")
DEVICE_STATES = ("ready", "failing")


class FleetMetrics:
    """Tickets, expired leases, lost hosts, events and connections of one process.

    Args:
        metrics: of the process, to which these are added.
        view: returns the fleet, in an API replica; None in other processes.

    Attributes:
        is_database_up: set by the janitor.
        job_ended: counts a job that this process has ended; see `Metrics`.
    """

    def __init__(self, metrics: Metrics, bus: EventBus, view: Callable[[], FleetView] | None = None) -> None:
        self._bus, self._view = bus, view
        self.job_ended = metrics.job_ended
        self.is_database_up = True
        self.tickets_sent = Counter("zimage_tickets_sent", "Tickets sent to worker hosts.", registry=None)
        self.tickets_failed = Counter("zimage_tickets_failed", "Tickets that the broker did not take.", registry=None)
        self.leases_expired = Counter(
            "zimage_leases_expired", "Jobs whose hosts were lost, as this process found.", registry=None
        )
        self.workers_lost = Counter("zimage_workers_lost", "Worker hosts that this process found gone.", registry=None)
        for counter in (self.tickets_sent, self.tickets_failed, self.leases_expired, self.workers_lost):
            metrics.add_collector(counter)
        metrics.add_collector(self)

    def count_ticket(self, *, is_sent: bool) -> None:
        (self.tickets_sent if is_sent else self.tickets_failed).inc()

    def describe(self) -> Iterator[Metric]:
        """Name no metric in advance, so that the registry does not collect them when they are added."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield what is read at each scrape."""
        bus = self._bus
        yield GaugeMetricFamily("zimage_database_up", "1 if the database has answered.", float(self.is_database_up))
        yield GaugeMetricFamily("zimage_broker_up", "1 if events come from the broker.", float(bus.is_listening))
        yield CounterMetricFamily("zimage_events_sent", "Events sent to the broker.", bus.sent)
        yield CounterMetricFamily("zimage_events_received", "Events received from the broker.", bus.received)
        yield CounterMetricFamily("zimage_events_lost", "Events dropped, since a buffer was full or late.", bus.lost)
        yield CounterMetricFamily("zimage_events_ignored", "Messages of the broker that are no events.", bus.ignored)
        if self._view is not None:
            yield from _fleet(self._view())


def _fleet(view: FleetView) -> Iterator[Metric]:
    workers = GaugeMetricFamily("zimage_fleet_workers", "Worker hosts of the fleet, by state.", labels=["state"])
    states = [worker_state(worker) for worker in view.workers]
    for state in WORKER_STATES:
        workers.add_metric([state], states.count(state))
    devices = GaugeMetricFamily("zimage_fleet_devices", "Devices of the fleet, by state.", labels=["state"])
    ready = [device.is_ready for worker in view.workers for device in worker.devices]
    for state, is_ready in zip(DEVICE_STATES, (True, False), strict=True):
        devices.add_metric([state], ready.count(is_ready))
    yield from (workers, devices, *_queue(view))


def _queue(view: FleetView) -> Iterator[Metric]:
    """Yield the queue by model and priority; LoRAs are left out, since clients choose among many."""
    models = {worker.model for worker in view.workers} | {length.model or "" for length in view.queue}
    groups = {(model, priority): [0, 0, 0.0, 0.0, 0] for model in sorted(models) for priority in get_args(Priority)}
    for length in view.queue:
        group = groups.setdefault((length.model or "", length.priority), [0, 0, 0.0, 0.0, 0])
        group[0] += length.waiting
        group[1] += length.held
        group[2] = max(group[2], length.oldest)
        group[3] += length.cost
        group[4] += 0 if view.hosts_for(length) else length.waiting
    names = {
        "jobs_waiting": "Jobs that no worker host holds.",
        "jobs_running": "Jobs that worker hosts hold.",
        "queue_oldest_seconds": "Age of the job that has waited longest.",
        "queue_cost": "Pixels x forward passes of the waiting jobs.",
        "jobs_without_host": "Waiting jobs that no worker host can take; zimage-admin queue says what they need.",
    }
    for index, (name, about) in enumerate(names.items()):
        family = GaugeMetricFamily(f"zimage_fleet_{name}", about, labels=["model", "priority"])
        for group_labels, values in groups.items():
            family.add_metric(group_labels, values[index])
        yield family


def worker_state(worker: WorkerInfo) -> str:
    """Return one of WORKER_STATES; a host that waits for its devices is starting."""
    if worker.is_draining:
        return "draining"
    return "ready" if any(device.is_ready for device in worker.devices) else "starting"

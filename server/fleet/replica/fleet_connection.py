"""The connection of an API replica to its fleet: events, tickets and the janitor, each in threads of its own.

Knows the broker and the fleet's store; neither clients nor what they wait for.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from server.fleet.fleet_options import FleetOptions
from server.fleet.fleet_view import FleetView
from server.fleet.janitor import Findings, Janitor
from server.fleet.messaging.celery_app import create_celery, send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import Event, JobEnded
from server.fleet.messaging.ticket_sender import TicketSender
from server.fleet.metrics import FleetMetrics
from server.jobs.job import Job
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.fleet_store import FleetStore


class FleetConnection:
    """A replica's connection to its fleet. Neither `publish` nor `send_ticket` waits for the broker, or fails.

    Args:
        on_event: called with the events of hosts and other replicas, in the event loop that `start` was called in.

    Raises:
        InvalidBroker: the broker's URL cannot be used.
    """

    def __init__(
        self, store: FleetStore, options: FleetOptions, metrics: Metrics, on_event: Callable[[Event], object]
    ) -> None:
        self._on_event = on_event
        self._bus = EventBus(options.broker, options.name, "events", self._receive)
        self._metrics = FleetMetrics(metrics, self._bus, lambda: self.view)
        self._celery = create_celery(options.broker, options.name)
        self._tickets = TicketSender(self._send)
        findings = Findings(self._send, lambda job: self.publish(JobEnded(job.id)))
        self._janitor = Janitor(store, self._metrics, findings, has_view=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def view(self) -> FleetView:
        """Hosts and queue as the janitor last read them."""
        return self._janitor.view

    @property
    def is_database_up(self) -> bool:
        """True if the database answered the janitor."""
        return self._metrics.is_database_up

    async def start(self) -> None:
        """Begin to listen for events and to watch over the fleet. Raises StoreUnavailable."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._janitor.run_once)  # so that the first requests find the hosts' LoRAs
        self._janitor.start()
        self._tickets.start()
        self._bus.start()

    async def close(self, seconds: float) -> None:
        """Send what waits, and leave the fleet; returns after about `seconds` at most."""
        closing = (self._janitor.close, self._tickets.close, self._bus.close)
        await asyncio.gather(*(asyncio.to_thread(close, seconds) for close in closing))

    def publish(self, event: Event) -> None:
        """Send an event to hosts or other replicas, soon."""
        self._bus.publish(event)

    def send_ticket(self, job: Job) -> None:
        """Send the ticket of a job, soon."""
        self._tickets.put(job)

    def _send(self, job: Job) -> bool:
        """Send the ticket of a job, in any thread but the event loop's."""
        is_sent = send_ticket(self._celery, job)
        self._metrics.count_ticket(is_sent=is_sent)
        return is_sent

    def _receive(self, event: Event) -> None:
        """Hand an event to the event loop, which may have ended."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_event, event)

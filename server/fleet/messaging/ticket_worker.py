"""The Celery worker of a host: it takes tickets from the broker and holds each until the host is done with it.

Knows Celery; neither jobs nor the database. It runs in threads of its own and reconnects for ever. If it does nothing
at all, as while the broker is away, the host finds its jobs by itself; see `server.fleet.host.claims`.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from celery import Celery
from celery.exceptions import Reject
from celery.utils.threads import bound_open_broker_sockets
from celery.worker import WorkController, state
from celery.worker.consumer import Consumer

from server.fleet.messaging import celery_log
from server.fleet.messaging.celery_app import TASK

log = logging.getLogger(__name__)

CONSUME_SECONDS = 30.0  # from a connection until all queues are consumed
DELETE_SECONDS = 15.0  # for RabbitMQ to delete a queue that does not answer; it takes 5
RESTART_SECONDS = 5.0  # before another Celery worker takes the place of one that ended unexpectedly
CONNECTING = {"interval_start": 1, "interval_step": 1, "interval_max": 5}  # seconds between two attempts
STEPS = ("connection:Connection", "mingle:Mingle", "events:Events", "tasks:Tasks", "consumer:Evloop")


class _Consumer(Consumer):  # type: ignore[misc]
    """Celery's consumer without what tickets do not need.

    For quorum queues Celery declares 28 more of them, for tasks with a countdown; remote control and gossip have queues
    that are not durable.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        default_steps: ClassVar[list[str]] = [f"celery.worker.consumer.{step}" for step in STEPS]

    is_consuming = False

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return what handles a message. One that no replica sends would end the Celery worker, and then the next."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_any(message: Any) -> None:
            try:
                handle(message)
            except Exception as error:
                if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):  # kombu's own
                    raise
                log.exception("a message that is no ticket is dropped")
                if not message.acknowledged:
                    message.reject_log_error(log, self.connection_errors)

        return handle_any

    def on_ready(self) -> None:
        super().on_ready()
        self.is_consuming = True

    def on_close(self) -> None:
        self.is_consuming = False
        super().on_close()

    def call_soon_ack(self, acknowledge: Callable[..., object], *args: Any) -> Any:
        """Acknowledge or reject a message soon, and connect anew if that fails.

        Celery only logs the failure. It would go on to count the message as held, and with `concurrency` of them it
        would never ask Redis for another one.
        """
        message = acknowledge.__self__  # type: ignore[attr-defined]

        def run() -> None:
            acknowledge(*args)
            is_current = self.task_consumer is not None and message.channel is self.task_consumer.channel
            if is_current and not message.acknowledged:
                raise ConnectionResetError("a ticket could not be acknowledged")

        return self.hub.call_soon(run)

    def ensure_connected(self, connection: Any) -> Any:
        """Connect, however often it takes; Celery itself would wait up to 30 s between two attempts."""
        connection.ensure_connection = partial(connection.ensure_connection, **CONNECTING)
        return super().ensure_connected(connection)


class TicketWorker:
    """Takes tickets, one Celery worker per process, since Celery keeps its state in module variables.

    Args:
        app: Celery application, with the queues to consume.
        name: of the host, unique in the fleet.
        hold: called in a thread with a job's id; the ticket is acknowledged when it returns. False: the ticket goes
            back to its queue, for another host.
    """

    def __init__(self, app: Celery, name: str, hold: Callable[[str], bool]) -> None:
        self._app, self._name, self._concurrency = app, name, 1
        self._worker: WorkController | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery", daemon=True)  # may hang with a broker

        def take(job_id: str) -> None:
            if not hold(job_id):
                raise Reject("this host takes no more jobs", requeue=True)

        app.task(name=TASK, acks_late=True, reject_on_worker_lost=True, ignore_result=True, shared=False)(take)

    def start(self, concurrency: int) -> None:
        """Begin to take tickets, and hold up to `concurrency` of them at once, from each queue."""
        self._concurrency = concurrency
        celery_log.quieten(self._app)
        self._thread.start()
        threading.Thread(target=self._watch, name="celery watch", daemon=True).start()

    @property
    def is_connected(self) -> bool:
        """True if the broker delivers tickets, as far as Celery knows."""
        consumer = getattr(self._worker, "consumer", None)
        return consumer is not None and consumer.is_consuming

    def pause(self) -> None:
        """Take no more tickets, and go on acknowledging."""
        queues = list(self._app.amqp.queues.consume_from)
        for queue in queues:
            self._app.amqp.queues.deselect(queue)  # for a connection that is not made yet
        consumer = getattr(self._worker, "consumer", None)
        if consumer is not None:
            consumer.call_soon(self._cancel, consumer, queues)

    def stop(self, seconds: float) -> None:
        """Disconnect from the broker. Call it when no call of `hold` waits; give up after some seconds."""
        self._is_stopping.set()
        if not self._thread.is_alive():
            return
        state.should_stop = 0
        try:
            self._thread.join(seconds)
            if self._thread.is_alive():
                log.warning("the broker has not answered in %.0f s; leaving without saying goodbye to it", seconds)
        finally:
            state.should_stop = None

    def _watch(self) -> None:
        """End a connection on which the broker does not let Celery consume."""
        idle = 0.0
        while not self._is_stopping.wait(1.0):
            consumer = getattr(self._worker, "consumer", None)
            if consumer is None or consumer.connection is None or consumer.is_consuming:
                idle = 0.0
                continue
            idle += 1.0
            if idle >= CONSUME_SECONDS:
                log.error("the broker has not let this host consume its queues for %.0f s; connecting again", idle)
                try:
                    delete_unused_queues(self._app)
                except Exception as error:  # noqa: BLE001  (of the broker, in many forms)
                    log.error("queues that do not answer could not be deleted: %s", error)
                bound_open_broker_sockets(consumer.connection, 1.0)
                idle = 0.0

    def _cancel(self, consumer: Any, queues: list[str]) -> None:
        for queue in queues:
            try:
                consumer.cancel_task_queue(queue)
            except Exception as error:  # noqa: BLE001  (the connection is lost; another one consumes nothing any more)
                log.debug("%s is not cancelled: %s", queue, error)

    def _run(self) -> None:
        self._app.set_default()  # where Celery's threads look for the task
        while not self._is_stopping.is_set():
            self._worker = WorkController(
                app=self._app,
                hostname=self._name,
                pool="threads",
                concurrency=self._concurrency,
                consumer_cls=_Consumer,
                without_heartbeat=True,
                without_mingle=True,
                without_gossip=True,
            )
            _run_worker(self._worker)
            if not self._is_stopping.wait(RESTART_SECONDS):
                log.error("the Celery worker has ended; another one takes its place")


def _run_worker(worker: WorkController) -> None:
    """Run a Celery worker until it ends, and close what it leaves open if it fails, as over a lost connection."""
    with _logging_failure("the Celery worker has failed"):
        worker.start()
    connection = worker.consumer.connection if worker.consumer is not None else None
    with _logging_failure("its connection to the broker is not closed"):
        if connection is not None:
            connection.collect()
    with _logging_failure("its event loop is not closed"):
        if worker.hub is not None:
            worker.hub.close()  # again: a callback of a lost connection may have made the first time fail


@contextmanager
def _logging_failure(what: str) -> Iterator[None]:
    """Log an error of Celery's, in place of ending the thread that takes tickets."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (in many forms)
        log.warning("%s: %r", what, error)


def delete_unused_queues(app: Celery) -> None:
    """Delete the queues of an application that nobody consumes; their tickets are not needed.

    RabbitMQ cannot start a quorum queue again that was declared a moment before it was killed (3.10, measured). Such a
    queue never answers a consumer, while heartbeats keep the connection alive.
    """
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "amqp":
            return
        connection.connect()
        bound_open_broker_sockets(connection, DELETE_SECONDS)
        channel = connection.channel()
        for queue in app.amqp.queues.consume_from.values():
            declared = queue(channel).queue_declare(passive=True)
            if declared.consumer_count == 0:
                log.error("the queue %s is deleted, since nobody can consume it", queue.name)
                queue(channel).delete()

"""Events through the broker: a fanout exchange for each direction, over kombu.

Knows connections and threads; not what events mean. Nothing here waits for the broker but its own threads.
"""

import logging
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import get_args

from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.exceptions import OperationalError

from server.fleet.messaging import events
from server.fleet.messaging.broker import Broker
from server.fleet.messaging.event_buffer import BufferedEvent, EventBuffer, ProgressLimit
from server.fleet.messaging.events import Direction, Event, InvalidEvent

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/x-msgpack"
MAX_AGE = 10.0  # seconds for which an event waits for the broker, or in it; later nobody needs it
MAX_QUEUE_BYTES = 32 << 20  # in RabbitMQ, for a listener that does not read
HEARTBEAT = 10.0  # seconds, of a listener on RabbitMQ
DRAIN_TIMEOUT = 0.2  # seconds in which a listener notices that the bus is closed
QUEUE_EXPIRES = 60.0  # seconds after which the broker forgets a listener that is gone
MIN_DELAY, MAX_DELAY = 0.1, 2.0  # seconds between attempts to connect


class EventBus:
    """Sends events to all listeners of their direction, and calls `on_event` with those of the direction it listens to.

    Args:
        listens_to: None to send only.
        on_event: called in a thread, with one event at a time. While it is slow, events wait in a bounded buffer.

    Attributes:
        sent, received: numbers of events.
        ignored: messages that were no events.
    """

    def __init__(
        self,
        broker_url: str,
        fleet: str,
        listens_to: Direction | None = None,
        on_event: Callable[[Event], object] = lambda _: None,
    ) -> None:
        self._broker, self._listens_to, self._on_event = Broker(broker_url, fleet), listens_to, on_event
        self._exchanges = {
            name: Exchange(f"{fleet}.{name}", type="fanout", durable=True, delivery_mode="transient")
            for name in get_args(Direction)
        }
        self._outbox, self._inbox = EventBuffer(), EventBuffer()
        self._progress = ProgressLimit()
        self._unsent: deque[BufferedEvent] = deque()  # taken from the outbox
        self._too_late = 0
        self.sent = self.received = self.ignored = 0
        self._closed, self._listening = threading.Event(), threading.Event()
        self._drained = 0  # times that the listener's connection was read
        self._threads = [_thread("event sender", self._run, self._send, lambda: self.sent)]
        if listens_to is not None:
            listen = _thread("event listener", self._run, self._listen, lambda: self._drained, HEARTBEAT)
            self._threads += [listen, _thread("event dispatcher", self._dispatch)]

    @property
    def lost(self) -> int:
        """Events that were dropped, because a buffer was full or the broker away for too long."""
        return self._outbox.dropped + self._inbox.dropped + self._too_late

    @property
    def is_listening(self) -> bool:
        return self._listening.is_set()

    def start(self) -> None:
        self._broker.refuse_compression()
        for thread in self._threads:
            thread.start()

    def wait_until_listening(self, timeout: float) -> bool:
        """Wait until the broker delivers events. Return False after `timeout` seconds."""
        return self._listening.wait(timeout)

    def publish(self, event: Event) -> None:
        """Send an event, soon; neither waits nor fails."""
        body = events.encode(event)
        if len(body) > events.MAX_BYTES:
            self._too_late += 1
            return
        self._outbox.put(event, body)

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, if the broker is there, and stop; returns after about `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        self._closed.set()
        self._outbox.close()
        self._inbox.close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Callable[[Connection], None], successes: Callable[[], int], heartbeat: float = 0) -> None:
        """Connect, do the work and begin again, until the bus is closed.

        Args:
            successes: returns a number that grows while a connection is of use.
        """
        delay = MIN_DELAY
        while True:
            connection, before = self._broker.connection(heartbeat), successes()
            try:
                connection.ensure_connection(max_retries=0)
                work(connection)
            except connection.connection_errors + connection.channel_errors + (OperationalError,) as error:
                reason = self._broker.without_password(f"{type(error).__name__}: {error}")
                log.warning("no connection to the broker %s: %s; trying again", self._broker, reason)
            except Exception:  # as of a message that kombu cannot read
                log.exception("a connection to the broker %s failed; trying again", self._broker)
            finally:
                self._listening.clear()
                _close(connection)
            delay = MIN_DELAY if successes() > before else min(MAX_DELAY, 2 * delay)
            if self._closed.wait(delay * random.uniform(0.5, 1.0)):
                return

    def _send(self, connection: Connection) -> None:
        producer = Producer(connection.channel())
        for exchange in self._exchanges.values():
            exchange(producer.channel).declare()
        while True:
            if not self._unsent:
                self._wait_for_events()
            while self._unsent:
                self._publish(producer, self._unsent[0])
                self._unsent.popleft()
            if self._closed.is_set() and not len(self._outbox):
                return

    def _wait_for_events(self) -> None:
        item = self._outbox.get(self._progress.wait)
        self._unsent.extend(self._progress.released())
        if item is not None and self._progress.admits(item):
            self._unsent.append(item)

    def _publish(self, producer: Producer, item: BufferedEvent) -> None:
        if time.monotonic() - item.time > MAX_AGE:
            self._too_late += 1
            return
        exchange = self._exchanges[events.direction(item.event)]
        producer.publish(item.body, exchange=exchange, content_type=CONTENT_TYPE, content_encoding="binary")
        self.sent += 1

    def _listen(self, connection: Connection) -> None:
        assert self._listens_to is not None
        exchange = self._exchanges[self._listens_to]
        queue = Queue(
            f"{exchange.name}.{uuid.uuid4().hex}",
            exchange,
            durable=False,
            exclusive=True,
            auto_delete=True,
            no_ack=True,
            expires=QUEUE_EXPIRES,
            message_ttl=MAX_AGE,
            max_length_bytes=MAX_QUEUE_BYTES,
        )
        channel = connection.channel()
        with Consumer(channel, [queue], no_ack=True, on_message=self._receive, on_decode_error=self._ignore):
            while not self._closed.is_set():
                try:
                    connection.drain_events(timeout=DRAIN_TIMEOUT)
                except TimeoutError:
                    connection.heartbeat_check()
                self._drained += 1
                self._listening.set()

    def _receive(self, message: Message) -> None:
        body = message.body
        try:
            event = events.decode(body if isinstance(body, bytes) else str(body).encode(errors="replace"))
        except InvalidEvent as error:
            self._ignore(message, error)
            return
        if events.direction(event) == self._listens_to:
            self.received += 1
            self._inbox.put(event, body)

    def _ignore(self, _: Message, error: Exception) -> None:
        self.ignored += 1
        log.warning("ignored a message on %s that is no event: %s", self._listens_to, error)

    def _dispatch(self) -> None:
        while (item := self._inbox.get()) is not None:
            if self._closed.is_set():
                return
            try:
                self._on_event(item.event)
            except Exception:
                log.exception("%s was not handled", type(item.event).__name__)


def _thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    return threading.Thread(target=target, args=args, name=name, daemon=True)


def _close(connection: Connection) -> None:
    """Close a connection, whatever state it is in."""
    try:
        connection.release()
    except connection.connection_errors + connection.channel_errors as error:
        log.debug("a connection was not closed: %s", type(error).__name__)

"""Tests of events over real brokers: delivery, faults of the broker, slow listeners and messages that are no events."""

import gzip
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from fakes.services import RabbitMq, Redis, Service, new
from fakes.waiting import wait_until
from kombu import Connection, Exchange, Producer

from server.fleet.messaging import event_buffer
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import (
    CancelJob,
    Direction,
    Event,
    ImageStored,
    JobEnded,
    JobRunning,
    Preview,
    StepsDone,
    WorkWaits,
)

TIMEOUT = 60.0  # seconds, for what should take milliseconds
KINDS = (Redis, RabbitMq)


class Listener:
    """A bus and the events that it has heard."""

    def __init__(self, url: str, listens_to: Direction | None = "events", fleet: str = "zimage") -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.bus = EventBus(url, fleet, listens_to, self.events.put)

    def next(self) -> Event:
        return self.events.get(timeout=TIMEOUT)

    def wait_for(self, event: Event) -> list[Event]:
        """Return what comes up to an event."""
        heard = [self.next()]
        while heard[-1] != event:
            heard.append(self.next())
        return heard


@contextmanager
def started(bus: EventBus, *, is_there: bool = True) -> Iterator[EventBus]:
    bus.start()
    try:
        if is_there and bus._listens_to is not None:
            assert bus.wait_until_listening(TIMEOUT)
        yield bus
    finally:
        bus.close(TIMEOUT)
        assert not any(thread.is_alive() for thread in bus._threads)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def publish_until(sender: EventBus, event: Event, is_heard: Callable[[], bool]) -> None:
    """Publish an event again and again, as events may be lost, until it is heard."""
    give_up = time.monotonic() + TIMEOUT
    while not is_heard():
        assert time.monotonic() < give_up, f"{event} never came"
        sender.publish(event)
        time.sleep(0.05)


def test_every_listener_gets_the_events_of_its_direction_in_order(broker_url: str) -> None:
    replicas, host = [Listener(broker_url), Listener(broker_url)], Listener(broker_url, "control")
    sender = EventBus(broker_url, "zimage")
    sent = [JobRunning("a"), StepsDone("a", 3, 16), Preview("a", 1, 3, bytes(range(256)) * 1000), ImageStored("a", 1)]
    control = [CancelJob("a"), WorkWaits("zimage.nano.batch")]
    with ExitStack() as stack:
        for bus in (*(replica.bus for replica in replicas), host.bus, sender):
            stack.enter_context(started(bus))
        for event in (*sent, *control, JobEnded("a")):
            sender.publish(event)
        for replica in replicas:
            assert [replica.next() for _ in range(5)] == [*sent, JobEnded("a")]
        assert [host.next() for _ in range(2)] == control
    assert sender.sent == 7 and sender.lost == 0
    assert [listener.events.qsize() for listener in (*replicas, host)] == [0, 0, 0]


def test_fleets_that_share_a_broker_do_not_hear_each_other(broker_url: str) -> None:
    first, second = Listener(broker_url, fleet="first"), Listener(broker_url, fleet="second")
    with started(first.bus), started(second.bus):
        first.bus.publish(JobEnded("of the first"))
        second.bus.publish(JobEnded("of the second"))
        assert (first.next(), second.next()) == (JobEnded("of the first"), JobEnded("of the second"))
    assert first.events.empty() and second.events.empty()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bus_survives_a_broker_that_is_paused_then_killed_and_restarted(kind: type[Service]) -> None:
    with new(kind) as broker:
        listener, other, sender = Listener(broker.url), EventBus(broker.url, "zimage"), EventBus(broker.url, "zimage")
        with started(listener.bus), started(sender), started(other):
            sender.publish(JobEnded("before"))
            assert listener.next() == JobEnded("before")
            broker.pause()
            for number in range(100):
                other.publish(Preview("job", number, 1, bytes(1 << 20)))  # more than the buffers of sockets
            assert other._outbox._bytes <= event_buffer.MAX_BUFFER_BYTES
            other.close(1.0)  # returns, though the sender waits for the broker
            broker.resume()
            after = JobEnded("after a pause")
            publish_until(sender, after, lambda: after in listener.events.queue)
            broker.kill()
            wait_until(lambda: not listener.bus.is_listening, TIMEOUT)
            sender.publish(JobEnded("without a broker"))
            broker.start()
            last = JobEnded("after a restart")
            publish_until(sender, last, lambda: last in listener.events.queue)


def test_slow_listener_loses_previews_and_no_other_events(broker_url: str) -> None:
    released, heard = threading.Event(), queue.Queue[Event]()

    def handle(event: Event) -> None:
        released.wait(TIMEOUT)
        heard.put(event)

    listener, sender = EventBus(broker_url, "zimage", "events", handle), EventBus(broker_url, "zimage")
    with started(listener), started(sender):
        for number in range(60):
            sender.publish(Preview("job", number, 1, bytes(1 << 20)))
            sender.publish(ImageStored("job", number))
            wait_until(lambda: not len(sender._outbox), TIMEOUT)
        sender.publish(JobEnded("job"))
        wait_until(lambda: listener.received == 121, TIMEOUT)
        assert listener._inbox._bytes <= event_buffer.MAX_BUFFER_BYTES
        released.set()
        got = [heard.get(timeout=TIMEOUT)]
        while got[-1] != JobEnded("job"):
            got.append(heard.get(timeout=TIMEOUT))
    assert [event.index for event in got if isinstance(event, ImageStored)] == list(range(60))
    previews = [event.index for event in got if isinstance(event, Preview)]
    assert previews[-1] == 59 and 20 < len(previews) < 60 and listener.lost == 60 - len(previews)


def test_messages_that_are_no_events_are_ignored(broker_url: str) -> None:
    listener, sender = Listener(broker_url), EventBus(broker_url, "zimage")
    deep = b"\x91" * 5000 + b"\xc0"
    garbage = [
        b"",
        b"\xff\xfe",
        b"garbage",
        b"{}",
        deep,
        msgspec.msgpack.encode({"type": "Unknown", "job": "a"}),
        msgspec.msgpack.encode({"type": "JobEnded"}),
        msgspec.msgpack.encode({"type": "JobEnded", "job": ["a"]}),
        msgspec.msgpack.encode({"type": "JobEnded", "job": "a" * 1000}),
        msgspec.msgpack.encode({"type": "StepsDone", "job": "a", "steps_done": -1, "steps": 1 << 70 - 7}),
        msgspec.msgpack.encode({"type": "Preview", "job": "a", "index": 0, "done": 0, "data": bytes(5 << 20)}),
    ]
    compressed = gzip.compress(msgspec.msgpack.encode({"type": "JobEnded", "job": "in a bomb"}))
    garbage.append(compressed)
    newer = msgspec.msgpack.encode({"type": "JobEnded", "job": "of a newer version", "field": {"unknown": 1}})
    control = msgspec.msgpack.encode({"type": "CancelJob", "job": "on the wrong exchange"})
    with started(listener.bus), started(sender):
        publish_raw(broker_url, [*garbage, control, newer])
        assert listener.wait_for(JobEnded("of a newer version")) == [JobEnded("of a newer version")]
        assert listener.bus.ignored == len(garbage)


def publish_raw(url: str, bodies: list[bytes]) -> None:
    options = {"global_keyprefix": "zimage."} if url.startswith("redis") else {}
    with Connection(url, transport_options=options) as connection:
        producer = Producer(connection.channel(), Exchange("zimage.events", "fanout", durable=True))
        for number, body in enumerate(bodies):
            kind = ("application/x-python-serialize", "application/json", "application/x-msgpack")[number % 3]
            headers = {"compression": "application/x-gzip"} if body.startswith(b"\x1f\x8b") else {}
            producer.publish(body, content_type=kind, content_encoding="binary", headers=headers)


def test_redis_messages_that_kombu_cannot_read_end_nothing(redis_url: str) -> None:
    import redis

    listener, sender = Listener(redis_url), EventBus(redis_url, "zimage")
    client = redis.Redis.from_url(redis_url)
    (channel,) = (f"zimage./{redis_url.rpartition('/')[2]}.zimage.events",)
    hostile = ["", "x", "{}", "[]", "null", "1", '"text"', "\ud83d", '{"properties": {}}', "[" * 100_000]
    hostile += [json.dumps({"body": "x", "properties": {"body_encoding": "evil", "delivery_tag": 1}})]
    hostile += [json.dumps({"body": {"a": 1}, "properties": {"body_encoding": "base64", "delivery_tag": 1}})]
    hostile += [json.dumps({"body": "x", "headers": [1], "properties": {"delivery_tag": 1}})]
    with started(listener.bus), started(sender), client:
        for number, message in enumerate(hostile):
            assert client.publish(channel, message.encode(errors="surrogatepass")) == 1, "the bus listens there"
            after = JobEnded(f"after {number}")
            publish_until(sender, after, lambda after=after: after in listener.events.queue)
            wait_until(lambda: listener.bus.is_listening, TIMEOUT)


def test_handler_that_raises_gets_the_next_event(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    heard: queue.Queue[Event] = queue.Queue()

    def handle(event: Event) -> None:
        if event == JobEnded("first"):
            raise ValueError("of the handler")
        heard.put(event)

    with started(EventBus(broker_url, "zimage", "events", handle)) as bus:
        bus.publish(JobEnded("first"))
        bus.publish(JobEnded("second"))
        assert heard.get(timeout=TIMEOUT) == JobEnded("second")
    assert "of the handler" in caplog.text


def test_bus_can_be_closed_before_its_start_twice_and_by_its_handler(redis_url: str) -> None:
    EventBus(redis_url, "zimage", "events").close()
    closed = threading.Event()

    def handle(_: Event) -> None:
        bus.close()
        closed.set()

    bus = EventBus(redis_url, "zimage", "events", handle)
    with started(bus):
        bus.publish(JobEnded("job"))
        assert closed.wait(TIMEOUT)
        bus.close()


def test_events_before_close_are_sent(broker_url: str) -> None:
    listener, sender = Listener(broker_url), EventBus(broker_url, "zimage")
    with started(listener.bus):
        sender.start()
        for number in range(100):
            sender.publish(ImageStored("job", number))
        sender.close(TIMEOUT)
        assert [listener.next() for _ in range(100)] == [ImageStored("job", number) for number in range(100)]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_missing_broker_is_named_without_its_password(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        bus = EventBus(f"{scheme}://user:hunter2@127.0.0.1:{port}/0", "zimage", "events")
        with caplog.at_level(logging.DEBUG), started(bus, is_there=False):
            bus.publish(JobEnded("job"))
            wait_until(lambda: f"{scheme}://127.0.0.1:{port}/0" in caplog.text, TIMEOUT)
    assert "hunter2" not in caplog.text


def test_wrong_password_is_not_logged(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    scheme, _, rest = broker_url.partition("://")
    host = rest.rpartition("@")[2]
    bus = EventBus(f"{scheme}://zimage:hunter2@{host}", "zimage", "events")
    with caplog.at_level(logging.DEBUG), started(bus, is_there=False):
        wait_until(lambda: "no connection to the broker" in caplog.text, TIMEOUT)
    assert "hunter2" not in caplog.text

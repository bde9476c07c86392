"""TLS to brokers and database, with an authority of their own and client certificates: what is used in production."""

import queue
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlencode

import pytest
from fakes.jobs import job
from fakes.services import Certificates, PostgreSql, RabbitMq, Redis, new
from kombu.exceptions import OperationalError

from server.errors import StoreUnavailable
from server.fleet.messaging.broker import Broker
from server.fleet.messaging.celery_app import create_celery, queues_of_host, send_ticket
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import Event, JobEnded
from server.fleet.messaging.ticket_worker import TicketWorker
from server.jobs.storage.fleet.fleet_store import FleetStore

TIMEOUT = 30.0  # seconds, for what should take milliseconds
FLEET = "tls"


@pytest.fixture(scope="module")
def files(certificates: Certificates | None) -> Certificates:
    if certificates is None:
        pytest.skip("needs openssl")
    return certificates


@pytest.fixture(scope="module")
def tls_redis(files: Certificates) -> Iterator[Redis]:
    with new(Redis, certificates=files) as service:
        yield service


@pytest.fixture(params=["tls_redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Redis | RabbitMq:
    found: Redis | RabbitMq = request.getfixturevalue(request.param)
    return found


def url_of(broker: Redis | RabbitMq, host: str = "localhost", **files: object) -> str:
    """Return the URL for TLS, on an empty database or virtual host, with the parameters ssl_..."""
    plain = broker.fresh_url().replace(f"{broker.host}:{broker.port}", f"{host}:{broker.tls_port}")
    scheme, _, rest = plain.partition("://")
    return f"{scheme}s://{rest}?" + urlencode({f"ssl_{name}": file for name, file in files.items()})


def client_of(files: Certificates) -> dict[str, object]:
    return {"certfile": files.certificate("client"), "keyfile": files.key("client")}


def test_events_and_tickets_pass_with_a_client_certificate(broker: Redis | RabbitMq, files: Certificates) -> None:
    url = url_of(broker, ca_certs=files.certificate("authority"), **client_of(files))
    events: queue.Queue[Event] = queue.Queue()
    tickets: queue.Queue[str] = queue.Queue()
    with bus(url, events) as sender:
        sender.publish(JobEnded("job"))
        assert events.get(timeout=TIMEOUT) == JobEnded("job")
    app = create_celery(url, FLEET, queues_of_host(FLEET, "m", "p", ()))
    worker = TicketWorker(app, "host", lambda id: tickets.put(id) is None)
    worker.start(1)
    sent = job(model="m")
    assert send_ticket(app, sent)
    assert tickets.get(timeout=TIMEOUT) == sent.id
    worker.stop(TIMEOUT)
    app.close()


@contextmanager
def bus(url: str, events: "queue.Queue[Event]") -> Iterator[EventBus]:
    started = EventBus(url, FLEET, "events", events.put)
    started.start()
    try:
        assert started.wait_until_listening(TIMEOUT)
        yield started
    finally:
        started.close()


@pytest.mark.parametrize("fault", ["unknown authority", "other name", "no client certificate"])
def test_connection_that_cannot_be_trusted_is_refused(
    broker: Redis | RabbitMq, files: Certificates, fault: str
) -> None:
    authority = "client" if fault == "unknown authority" else "authority"
    host = "127.0.0.1" if fault == "other name" else "localhost"
    client = {} if fault == "no client certificate" else client_of(files)
    untrusted = Broker(url_of(broker, host, ca_certs=files.certificate(authority), **client)).connection()
    with untrusted, pytest.raises(OperationalError) as refusal:
        untrusted.ensure_connection(max_retries=0)
    if fault != "no client certificate":
        assert "CERTIFICATE_VERIFY_FAILED" in str(refusal.value)


def test_database_is_verified_and_asks_for_a_client_certificate(files: Certificates) -> None:
    with new(PostgreSql, certificates=files) as service:
        client = {"sslcert": files.certificate("client"), "sslkey": files.key("client")}

        def url(host: str = "localhost", authority: str = "authority", **more: object) -> str:
            place = service.url.replace(service.host, host)
            options = {"sslmode": "verify-full", "sslrootcert": files.certificate(authority)} | more
            return f"{place}?{urlencode(options)}"

        with closing(FleetStore(url(**client))) as store:
            assert store.database.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")[0]["ssl"] is True
        for refused, reason in (
            (url(authority="client", **client), "certificate verify failed"),
            (url("127.0.0.1", **client), 'does not match host name "127.0.0.1"'),
            (url(), "requires a valid client certificate"),
        ):
            with pytest.raises(StoreUnavailable, match=reason):
                FleetStore(refused)

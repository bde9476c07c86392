"""Tests of a broker's URL: what is accepted, TLS, and that its password is never shown."""

import ssl
from pathlib import Path

import pytest

from server.fleet.messaging.broker import Broker, InvalidBroker

SECRET = "p%40ss%2Fw%23rd"  # p@ss/w#rd


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@example.com:6379/2", "redis://example.com:6379/2"),
        (f"rediss://user:{SECRET}@[::1]/0?ssl_cert_reqs=none", "rediss://[::1]/0"),
        (f"amqp://user:{SECRET}@example.com//", "amqp://example.com//"),
        (f"amqps://user:{SECRET}@example.com/%2F", "amqps://example.com/%2F"),
    ],
)
def test_broker_is_shown_without_user_password_and_parameters(url: str, shown: str) -> None:
    broker = Broker(url)
    assert str(broker) == shown
    assert "ss" not in repr(broker).replace("rediss", "")


def test_password_is_decoded_for_the_connection() -> None:
    connection = Broker(f"amqp://user:{SECRET}@example.com:5671/a%2Fb").connection()
    assert (connection.userid, connection.password) == ("user", "p@ss/w#rd")
    assert (connection.hostname, connection.port, connection.virtual_host) == ("example.com", 5671, "a/b")


def test_password_is_removed_from_errors() -> None:
    broker = Broker(f"redis://:{SECRET}@example.com")
    assert broker.without_password("no p@ss/w#rd and no p%40ss%2Fw%23rd here") == "no *** and no *** here"
    assert Broker("redis://example.com").without_password("kept") == "kept"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "redis:hunter2",
        "http://:hunter2@example.com",
        "memory://hunter2",
        "sqs://hunter2@",
        "redis://:hunter2/x@example.com",  # the port would be "hunter2"
        "redis://:hunter2#x@example.com",
        "redis://:hunter2@example.com:99999",
        "redis://:[hunter2@example.com",
        "redis://:hunter2@a;redis://:hunter2@b",
        "redis://:hunter2@example.com/0?password=hunter2",
        "redis://:hunter2@example.com/0?ssl_cert_reqs=none",
        "rediss://:hunter2@example.com/0?ssl_cert_reqs=hunter2",
        "rediss://:hunter2@example.com/0?ssl_keyfile=/hunter2&hunter2=1",
        "amqps://:hunter2@example.com/0?ssl_ca_certs=/nowhere/hunter2",
        "redis://:hunter2@example.com/first",
        "redis://:hunter2@example.com\n",
        "redis:// :hunter2@example.com",
    ],
)
def test_unusable_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidBroker) as refusal:
        Broker(url)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__, "the context quotes it"


@pytest.mark.parametrize("fleet", ["", "a.b", "a*", "a b", "[a]", "é", "a" * 65, "a/b"])
def test_fleet_name_with_special_characters_is_refused(fleet: str) -> None:
    with pytest.raises(InvalidBroker, match="fleet"):
        Broker("redis://example.com", fleet)


def test_tls_verifies_the_server_unless_told_otherwise(tmp_path: Path) -> None:
    (file := tmp_path / "ca.pem").touch()
    redis = Broker(f"rediss://example.com?ssl_ca_certs={file}").ssl
    assert redis == {"ssl_ca_certs": str(file), "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    rabbitmq = Broker(f"amqps://example.com?ssl_ca_certs={file}").ssl
    assert rabbitmq == {"ca_certs": str(file), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "example.com"}
    assert Broker("amqps://example.com?ssl_cert_reqs=none").ssl == {"cert_reqs": ssl.CERT_NONE}
    assert Broker("redis://example.com").ssl is None and Broker("amqp://example.com").ssl is None

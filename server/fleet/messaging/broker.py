"""The message broker of a fleet: its address, TLS and timeouts.

Knows how to connect; not what is sent.
"""

import re
import socket
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from kombu import Connection, compression

from engine.errors import ZImageError

FLEET = re.compile(r"[A-Za-z0-9_-]{1,64}")
KINDS: dict[str, Literal["redis", "rabbitmq"]] = {
    "redis": "redis",
    "rediss": "redis",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
}
SECURE = ("rediss", "amqps")
CONNECT_TIMEOUT = 5.0  # seconds
SOCKET_TIMEOUT = 10.0  # seconds for one write, or one answer
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # parameters of the URL
VERIFICATION = {"required": ssl.CERT_REQUIRED, "none": ssl.CERT_NONE}  # values of ssl_cert_reqs
KEEPALIVE = {  # a connection that a firewall has forgotten is noticed after 25 s
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 10_000,  # milliseconds; the 1,000 of amqp would end a connection at each short loss
}


class InvalidBroker(ZImageError):
    """A text that is no URL of a broker. The message does not quote it, since it may contain a password."""


@dataclass(frozen=True)
class Broker:
    """A broker by its URL.

    Attributes:
        url: redis://, rediss:// (TLS), amqp:// or amqps:// (TLS), with user and password. A TLS connection verifies the
            server; `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` name files, `ssl_cert_reqs=none` verifies nothing.
        fleet: prefix of every name in the broker, so that several fleets may share it.

    Raises:
        InvalidBroker: from the constructor.
    """

    url: str = field(repr=False)
    fleet: str = "zimage"

    def __post_init__(self) -> None:
        if not FLEET.fullmatch(self.fleet):
            raise InvalidBroker(f"a fleet's name has 1 to 64 letters, digits, - and _; got {self.fleet[:80]!r}")
        parts, _ = self._parts, self.ssl
        if self.kind == "redis" and not re.fullmatch(r"/?|/[0-9]+", parts.path):
            raise InvalidBroker("the path of a Redis URL must be the number of a database, such as /0")

    def __str__(self) -> str:
        """Return the URL without user, password and parameters."""
        parts = self._parts
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{host}{port}{parts.path}"

    @property
    def kind(self) -> Literal["redis", "rabbitmq"]:
        return KINDS[self._parts.scheme]

    @property
    def plain_url(self) -> str:
        """The URL without its parameters, for kombu, which would treat them in ways of its own."""
        return self._parts._replace(query="").geturl()

    @cached_property
    def ssl(self) -> dict[str, Any] | None:
        """Options of TLS for kombu; None for a connection without."""
        query = self._query
        if self._parts.scheme not in SECURE:
            if query:
                raise InvalidBroker(f"a broker's URL takes {', '.join(sorted(query))} only with rediss:// or amqps://")
            return None
        verification = query.get("ssl_cert_reqs", "required")
        if verification not in VERIFICATION:
            raise InvalidBroker("ssl_cert_reqs in a broker's URL must be required or none")
        options: dict[str, Any] = {name: query[name] for name in TLS_FILES if name in query}
        if missing := [name for name, file in options.items() if not Path(file).is_file()]:
            raise InvalidBroker(f"{', '.join(missing)} in a broker's URL must name a file that exists")
        options["ssl_cert_reqs"] = VERIFICATION[verification]
        is_verified = verification == "required"
        if self.kind == "redis":
            return options | {"ssl_check_hostname": is_verified}
        plain = {name.removeprefix("ssl_"): value for name, value in options.items()}
        return plain | ({"server_hostname": self._parts.hostname} if is_verified else {})

    @property
    def transport_options(self) -> dict[str, Any]:
        """Options of kombu's transport: nothing waits for ever, and lost connections are noticed."""
        if self.kind == "rabbitmq":
            return {"write_timeout": SOCKET_TIMEOUT, "read_timeout": SOCKET_TIMEOUT, "socket_settings": dict(KEEPALIVE)}
        return {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": dict(KEEPALIVE),
            "health_check_interval": 10,
            "global_keyprefix": f"{self.fleet}.",
        }

    def connection(self, heartbeat: float = 0) -> Connection:
        """Return a connection, for one thread, that is not made yet.

        Args:
            heartbeat: seconds between heartbeats of AMQP, for a connection that is read all the time.
        """
        return Connection(
            self.plain_url,
            ssl=self.ssl or False,
            heartbeat=heartbeat,
            connect_timeout=CONNECT_TIMEOUT,
            transport_options=self.transport_options,
        )

    @staticmethod
    def refuse_compression() -> None:
        """Have kombu read no compressed message, in this process: a small one could fill the memory. We send none."""
        for content_type in compression.encoders():
            encoder, _ = compression.get_encoder(content_type)
            compression.register(encoder, _refuse, content_type)

    def without_password(self, text: str) -> str:
        """Return a text, such as an error's, in which the password is replaced by asterisks."""
        password = self._parts.password
        for secret in {password, unquote(password)} if password else ():
            text = text.replace(secret, "***")
        return text

    @cached_property
    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url if self.url.isprintable() and not set(self.url) & set(" ;") else "")
            _ = parts.port, parts.hostname  # both raise ValueError, with a part of the URL in its text
        except ValueError:
            raise InvalidBroker(
                "the broker's URL cannot be read; write special characters of its password as %40, %2F, %23"
            ) from None
        if parts.scheme not in KINDS or not parts.netloc or parts.fragment:
            raise InvalidBroker(
                "a broker's URL must be like redis://host:6379/0 or amqp://user:password@host:5672/vhost "
                "(rediss:// and amqps:// for TLS), with special characters of the password as %40, %2F, %23"
            )
        return parts

    @cached_property
    def _query(self) -> dict[str, str]:
        query = dict(parse_qsl(self._parts.query, keep_blank_values=True))
        known = (*TLS_FILES, "ssl_cert_reqs")
        if unknown := sorted(query.keys() - set(known)):
            raise InvalidBroker(
                f"a broker's URL has the parameters {', '.join(known)}; got {len(unknown)} that are unknown"
            )
        return query


def _refuse(_: bytes) -> bytes:
    raise ValueError("the message is compressed")

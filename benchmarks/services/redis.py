"""A throwaway Redis server."""

import itertools
import socket
from collections.abc import Sequence

from benchmarks.services.service import Service, first_missing, program

DATABASES = 10_000


class Redis(Service):
    """Redis that keeps every change on disk, so that `kill` and `start` lose nothing."""

    name = "Redis"
    package = "redis-server"

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self._numbers = itertools.count(1)

    @classmethod
    def missing(cls) -> str | None:
        return first_missing(("redis-server", program("redis-server")))

    @property
    def url(self) -> str:
        return self._url(0)

    def fresh_url(self) -> str:
        return self._url(next(self._numbers))

    def _url(self, database: int) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}/{database}"

    def _prepare(self) -> None:
        settings = {
            "bind": self.host,
            "port": self.port,
            "requirepass": self.password,
            "databases": DATABASES,
            "dir": self.folder,
            "appendonly": "yes",
            "save": '""',
        }
        if self.certificates is not None:
            settings |= {
                "tls-port": self.tls_port,
                "tls-ca-cert-file": self._copied(self.certificates.certificate("authority")),
                "tls-cert-file": self._copied(self.certificates.certificate("server")),
                "tls-key-file": self._copied(self.certificates.key("server")),
            }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self.folder / "redis.conf").write_text(text)

    def _command(self) -> Sequence[str]:
        return [str(program("redis-server")), str(self.folder / "redis.conf")]

    def _answers(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=2) as connection:
            connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                answer += (received := connection.recv(1000))
                if not received:
                    return False
        return answer == b"+OK\r\n+PONG\r\n"

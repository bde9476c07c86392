"""A throwaway PostgreSQL server."""

import secrets
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg

from benchmarks.services.service import USER, Service, first_missing, program

SETTINGS = {
    "fsync": "off",  # data survive the end of the process, which is all that tests need; not that of the machine
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "unix_socket_directories": "",
}


class PostgreSql(Service):
    """PostgreSQL with a superuser and one database."""

    name = "PostgreSQL"
    package = "postgresql"
    stop_signal = signal.SIGINT  # "fast": without waiting for clients

    @classmethod
    def missing(cls) -> str | None:
        return first_missing(("initdb", _program("initdb")), ("postgres", _program("postgres")))

    @property
    def url(self) -> str:
        return self._url("postgres")

    def fresh_url(self) -> str:
        database = f"zimage_{secrets.token_hex(6)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database} TEMPLATE template0".encode())
        return self._url(database)

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{self.host}:{self.port}/{database}"

    def _prepare(self) -> None:
        password = self.folder / "password"
        password.write_text(self.password)
        options = ["--username", USER, "--pwfile", str(password), "--auth-local", "reject"]
        options += ["--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        command = [str(_program("initdb")), "--pgdata", str(self._data), "--no-sync", "--no-instructions", *options]
        done = subprocess.run(
            self._as_user(command), cwd=self.folder, env=self._environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stderr}")
        if self.certificates is not None:
            rules = self._data / "pg_hba.conf"
            rules.write_text(f"hostssl all all all scram-sha-256 clientcert=verify-full\n{rules.read_text()}")
            files = {
                "ssl_ca_file": self._copied(self.certificates.certificate("authority")),
                "ssl_cert_file": self._copied(self.certificates.certificate("server")),
                "ssl_key_file": self._copied(self.certificates.key("server")),
            }
            with (self._data / "postgresql.conf").open("a") as file:
                file.write("ssl = on\n" + "".join(f"{name} = '{path}'\n" for name, path in files.items()))
        if self.host != "127.0.0.1":
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write("host all all all scram-sha-256\n")

    def _command(self) -> Sequence[str]:
        settings = {**SETTINGS, "listen_addresses": self.host, "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(_program("postgres")), "-D", str(self._data), *options]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def _data(self) -> Path:
        return self.folder / "data"


def _program(name: str) -> Path | None:
    """Return a program of the newest PostgreSQL; Debian keeps them out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return program(name, *reversed(versions))

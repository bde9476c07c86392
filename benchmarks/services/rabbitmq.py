"""A throwaway RabbitMQ server."""

import base64
import http.client
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.services.service import USER, Service, first_missing, free_port, program

DEBIAN_FOLDER = Path("/usr/lib/rabbitmq/bin")  # its wrapper in /usr/sbin insists on the machine's own server
REQUEST_TIMEOUT = 20.0  # seconds


class RabbitMq(Service):
    """RabbitMQ with its management plugin, whose HTTP API makes virtual hosts.

    Erlang's port mapper, epmd, is another process; it runs on a port of its own and ends with the server.

    Attributes:
        management_port: of the HTTP API, with the same user and password.
    """

    name = "RabbitMQ"
    package = "rabbitmq-server"

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self.management_port = free_port(host)
        self._distribution_port, self._epmd_port = free_port(), free_port()
        self._epmd: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        return first_missing(("rabbitmq-server", program("rabbitmq-server", DEBIAN_FOLDER)), ("epmd", program("epmd")))

    @property
    def url(self) -> str:
        return self._url("%2F")

    def fresh_url(self) -> str:
        host = f"zimage-{secrets.token_hex(6)}"
        status = self.manage("PUT", f"/api/vhosts/{host}")
        assert status == http.client.CREATED, f"making a virtual host answered {status}"
        return self._url(host)

    def manage(self, method: str, path: str) -> int:
        """Send a request to the management API; return the status. Raises OSError."""
        credentials = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        connection = http.client.HTTPConnection(self.host, self.management_port, timeout=REQUEST_TIMEOUT)
        try:
            connection.request(method, path, headers={"Authorization": f"Basic {credentials}", "Content-Length": "0"})
            return connection.getresponse().status
        except http.client.HTTPException as error:
            raise ConnectionError(f"RabbitMQ's management API: {error!r}") from error
        finally:
            connection.close()

    def _url(self, virtual_host: str) -> str:
        return f"amqp://{USER}:{self.password}@{self.host}:{self.port}/{virtual_host}"

    def _prepare(self) -> None:
        settings = {
            "listeners.tcp.1": f"{self.host}:{self.port}",
            "management.tcp.ip": self.host,
            "management.tcp.port": self.management_port,
            "default_user": USER,
            "default_pass": self.password,
            "loopback_users": "none",
            "disk_free_limit.absolute": "50MB",
            "log.console": "true",
            "log.console.level": "warning",
        }
        if self.certificates is not None:
            settings |= {
                "listeners.ssl.1": f"{self.host}:{self.tls_port}",
                "ssl_options.cacertfile": self._copied(self.certificates.certificate("authority")),
                "ssl_options.certfile": self._copied(self.certificates.certificate("server")),
                "ssl_options.keyfile": self._copied(self.certificates.key("server")),
                "ssl_options.verify": "verify_peer",
                "ssl_options.fail_if_no_peer_cert": "true",
            }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text(text)
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")

    def start_without_waiting(self) -> None:
        if self._epmd is None:
            options = ["-port", str(self._epmd_port), "-address", "127.0.0.1"]
            self._epmd = subprocess.Popen(
                self._as_user([str(program("epmd")), *options]), cwd=self.folder, start_new_session=True
            )
        super().start_without_waiting()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _command(self) -> Sequence[str]:
        return [str(program("rabbitmq-server", DEBIAN_FOLDER)), "-noinput"]

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        erlang = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 1:1"
        return {
            **super()._environment(),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # the machine's own settings
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_NODENAME": f"zimage-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "detached": "yes",  # lets the script become the server, so that signals reach it
        }

    def _answers(self) -> bool:
        return self.manage("GET", "/api/healthchecks/node") == http.client.OK

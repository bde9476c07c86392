"""`zimage-serve`: serve a plan directory over HTTP."""

import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from engine.errors import ZImageError
from engine.plan.directory import read, read_manifest, resolve
from engine.plan.guide import Guide
from engine.plan.manifest import Manifest
from server import logs, lora_folder, settings_sources, tracing
from server.http.host_names import HostNames
from server.http.sockets import bind_socket, bracketed
from server.serving import ServerOptions, serve, serve_replica
from server.settings import Settings
from server.worker.supervisors import worker_commands

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; exit with 0 after SIGTERM or SIGINT, or with 1 and a line on stderr if it cannot serve."""
    given = settings_sources.read(argv)
    logs.configure(given.log_format, given.log_level, process="server")
    try:
        with bind_socket(given.host, given.port) as sock, tracing.started("zimage-serve"):
            for warning in _warnings(given, sock.getsockname()[0]):
                log.warning("%s", warning)
            directory = resolve(given.engines)
            # a replica has no engines; otherwise the worker verifies
            manifest = read(directory, verify=False) if given.broker is None else read_manifest(directory)
            loras = lora_folder.find(given.loras, manifest) if given.loras else ()
            options = replace(given.server(loras), guide=Guide.read(directory))
            if given.broker is not None:
                _serve_replica(sock, manifest, given, options)
                return
            workers = worker_commands(
                directory,
                given.runtime(loras),
                given.workers(manifest.target.flavor),
                given.log_format,
                given.log_level,
            )
            serve(sock, workers, manifest, options)
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-serve: {error}")


def _serve_replica(sock: socket.socket, manifest: Manifest, given: Settings, options: ServerOptions) -> None:
    from server.fleet.fleet_options import FleetOptions  # not at the top: servers without a fleet lack its packages

    assert given.broker is not None and isinstance(given.database, str)
    serve_replica(sock, manifest, FleetOptions(given.broker, given.database, given.fleet), options)


def _warnings(given: Settings, address: str) -> Iterator[str]:
    """Yield what is probably not meant in the settings of a server that listens on an address."""
    for name in settings_sources.unknown(os.environ):
        yield f"The environment variable {name} is not a setting of zimage-serve; see zimage-serve --help"
    if "FORWARDED_ALLOW_IPS" in os.environ:
        yield "The environment variable FORWARDED_ALLOW_IPS is not read; use --trusted-proxies instead"
    if not given.keys and not HostNames(address).is_loopback:
        shared = ", and may see and delete everybody's (--shared-history)" if given.shared_history else ""
        yield (
            f"Anybody who reaches {bracketed(address)} may generate images{shared}: there are no API keys; set --keys, "
            "or listen on 127.0.0.1"
        )


if __name__ == "__main__":
    main()

"""`zimage-serve`: serve a plan directory over HTTP."""

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Sequence

from engine.errors import ZImageError
from engine.plan.directory import read, read_manifest, resolve
from engine.plan.guide import Guide
from engine.plan.manifest import Manifest
from server import logs, lora_folder, settings_sources, tracing
from server.api.public_address import PublicAddress
from server.http.host_names import HostNames
from server.http.sockets import bind_socket, bracketed
from server.jobs.admission.admission import Limits
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.retention import DAY, Retention
from server.serving import ServerOptions, serve, serve_replica
from server.settings import MIB, FoundLoras, Settings
from server.worker.supervisor import WorkerTimeouts
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
            options = server_options(given, loras, Guide.read(directory))
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


def server_options(given: Settings, loras: FoundLoras, guide: Guide) -> ServerOptions:
    """Return the options of a server with these LoRAs, whose plans have this guide."""
    archive_bytes = math.inf if given.archive_mb is None else given.archive_mb * MIB
    archived = Retention(given.archive_days * DAY or math.inf, archive_bytes)
    history = Retention(given.history_days * DAY, given.history_mb * MIB)
    return ServerOptions(
        grace=given.grace,
        drain=given.drain_seconds,
        database=None if isinstance(given.database, str) else given.database,
        images=given.images,
        archive=Archive(given.archive, archived) if given.archive else None,
        keys=given.keys,
        rate=given.rate,
        shared_history=given.shared_history,
        hosts=given.hosts,
        trusted_proxies=given.trusted_proxies,
        public_url=PublicAddress.parse(given.public_url) if given.public_url else None,
        connections_per_address=given.connections_per_address,
        cors_origins=given.cors_origins,
        page=given.page,
        model_names=given.model_name,
        strict_model=given.strict_model,
        dialects=given.dialects,
        image_input=given.image_input,
        max_upload=given.max_upload * MIB,
        loras=tuple(name for name, _ in loras),
        guide=guide,
        limits=Limits(given.queue, given.max_wait, history, given.min_free_mb * MIB),
        timeouts=WorkerTimeouts(load=given.load_seconds, silence=given.hang_seconds),
    )


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

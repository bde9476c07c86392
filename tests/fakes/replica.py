"""API replicas of a fleet in processes of their own. As a script: such a replica."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fakes.loop import LORAS, MANIFEST
from fakes.processes import process, ready_url

from server.fleet.fleet_options import FleetOptions
from server.http.sockets import bind_socket
from server.jobs.admission.admission import Limits
from server.serving import ServerOptions, serve_replica


@contextmanager
def replica_process(options: FleetOptions, grace: float = 5.0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a replica and yield its base URL and its process."""
    command = ("-m", "fakes.replica", options.broker, options.database, options.name, str(grace))
    with process(*command) as child:
        yield ready_url(child), child


def main(broker: str, database: str, fleet: str, grace: str) -> None:
    options = ServerOptions(
        grace=float(grace),
        drain=0.5,
        shared_history=True,
        trusted_proxies=("127.0.0.1",),
        loras=LORAS,
        limits=Limits(queue=64),
    )
    with bind_socket("127.0.0.1", 0) as sock:
        serve_replica(sock, MANIFEST, FleetOptions(broker, database, fleet), options)


if __name__ == "__main__":
    main(*sys.argv[1:])

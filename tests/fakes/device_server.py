"""A script: a server of devices whose workers generate plain colours. Its arguments: SECONDS_PER_STEP DEVICE..."""

import sys

from fakes.loop import MANIFEST
from fakes.server import HOSTS, SHORT_TIMEOUTS

from server.http.sockets import bind_socket
from server.serving import ServerOptions, serve
from server.worker.supervisors import WorkerCommand

DEVICE_SERVER = ("-m", "fakes.device_server")
BROKEN = "broken"  # devices whose names begin like this have workers that are never ready


def main(seconds_per_step: str, *devices: str) -> None:
    """Serve until SIGTERM."""
    commands = []
    for name in devices:
        arguments = ["-c", "raise SystemExit(3)"] if name.startswith(BROKEN) else ["-m", "fakes.loop", seconds_per_step]
        commands.append(WorkerCommand(name, [sys.executable, *arguments]))
    with bind_socket("127.0.0.1", 0) as sock:
        serve(sock, commands, MANIFEST, ServerOptions(drain=0, hosts=HOSTS, timeouts=SHORT_TIMEOUTS))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`zimage-serve`: serve a plan directory over HTTP."""

import logging
import os
import sys
from collections.abc import Sequence

from engine.errors import ZImageError
from engine.plan.directory import read, resolve
from server import logs, lora_folder, settings
from server.http.sockets import bind_socket
from server.serving import serve

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; exit with 0 after SIGTERM or SIGINT, or with 1 and a line on stderr if it cannot serve."""
    given = settings.read(argv)
    logs.configure(given.log_format, given.log_level, process="server")
    for name in settings.unknown(os.environ):
        log.warning("The environment variable %s is not a setting of zimage-serve; see zimage-serve --help", name)
    try:
        with bind_socket(given.host, given.port) as sock:
            loras = lora_folder.find(given.loras) if given.loras else ()
            directory = resolve(given.engines)
            manifest = read(directory, verify=False)  # the worker verifies
            worker = [
                sys.executable,
                "-m",
                "server.worker.process",
                str(directory),
                given.runtime(loras).encode(),
                given.log_format,
                given.log_level,
            ]
            serve(sock, worker, manifest, given.server(loras))
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-serve: {error}")


if __name__ == "__main__":
    main()

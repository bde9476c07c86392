"""`zimage-serve`: a plan directory on an HTTP port."""

import logging
import os
import sys
from collections.abc import Sequence

from engine.errors import ZImageError
from engine.plan.manifest import read, resolve
from server import logs, settings
from server.http.sockets import listen
from server.serving import serve
from server.worker import lora_folder

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when it cannot serve, with 0 after SIGTERM or SIGINT."""
    given = settings.read(argv)
    logs.configure(given.log_format, given.log_level, process="server")
    for name in settings.unknown(os.environ):
        log.warning("%s is no setting of zimage-serve; see --help", name)
    try:
        with listen(given.host, given.port) as sock:
            loras = lora_folder.find(given.loras) if given.loras else ()
            directory = resolve(given.engines)
            manifest = read(directory, verify=False)  # the worker verifies
            logged = [given.log_format, given.log_level]
            worker = [
                sys.executable,
                "-m",
                "server.worker.process",
                str(directory),
                given.runtime(loras).encode(),
                *logged,
            ]
            serve(sock, worker, manifest, given.serving(loras))
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-serve: {error}")


if __name__ == "__main__":
    main()

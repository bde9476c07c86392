"""Start throwaway PostgreSQL, Redis, RabbitMQ and S3 servers on free ports, and print the settings of a fleet on them.

They have random passwords, keep their data in temporary folders, and end with this command.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.services.postgres import PostgreSql
from benchmarks.services.rabbitmq import RabbitMq
from benchmarks.services.redis import Redis
from benchmarks.services.seaweed import SeaweedS3
from benchmarks.services.service import Service

KINDS: dict[str, type[Service]] = {"postgres": PostgreSql, "redis": Redis, "rabbitmq": RabbitMq, "s3": SeaweedS3}
VARIABLES = {  # settings of zimage-serve and zimage-worker
    "postgres": "ZIMAGE_DATABASE",
    "redis": "ZIMAGE_BROKER",
    "rabbitmq": "ZIMAGE_BROKER",
    "s3": "ZIMAGE_IMAGES",
}
Variables = list[tuple[str, str]]  # names and values; of two with one name the first counts


def main() -> int:
    """Run the services until Ctrl-C, SIGTERM or the end of the command; return the command's status."""
    options, command = arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as running:
        variables: Variables = []
        for name in options.services or [name for name, kind in KINDS.items() if kind.missing() is None]:
            variables += settings(name, running.enter_context(started(name)))
        if command:
            return subprocess.run(command, env=os.environ | dict(reversed(variables)), check=False).returncode
        show(variables)
        signal.pause()
    return 0


def arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the command after "--"."""
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser("scripts/services", description=__doc__, epilog="scripts/services ... -- COMMAND")
    parser.add_argument("services", nargs="*", metavar="|".join(KINDS), help="default: all that are installed")
    options = parser.parse_args(words[:split])
    if unknown := set(options.services) - set(KINDS):
        parser.error(f"expected {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
    return options, list(words[split + 1 :])


def started(name: str) -> Service:
    """Return a service that is not started yet. Exits if its package is not installed."""
    kind = KINDS[name]
    if program := kind.missing():
        sys.exit(
            f"scripts/services: {name} needs {program}, of the package {kind.package}; see scripts/install packages"
        )
    return kind()


def settings(name: str, service: Service) -> Variables:
    """Return the variables that have a server use the service."""
    if isinstance(service, SeaweedS3):
        return [(VARIABLES[name], service.fresh_url()), *service.credentials.items()]
    return [(VARIABLES[name], service.url)]


def show(variables: Variables) -> None:
    """Print the variables as lines for a shell; those that do not count as comments."""
    chosen = dict(reversed(variables))
    for name, value in variables:
        print(f"{'' if chosen[name] == value else '# or '}export {name}='{value}'")
    print("# Ready. Paste these lines into other terminals, and start zimage-serve and zimage-worker there.")
    print("# Ctrl-C ends the servers.", flush=True)


if __name__ == "__main__":
    sys.exit(main())

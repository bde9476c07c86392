"""`zimage-serve`: a plan directory on an HTTP port."""

import argparse
import logging
import sys
import time
from pathlib import Path

from engine.errors import ZImageError
from engine.manifest import read, resolve
from engine.options import RuntimeOptions, add_pipeline_arguments

SEATS = 12  # pictures between two of their steps: three batches of four


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when it cannot serve, with 0 after SIGTERM or SIGINT."""
    started = time.perf_counter()
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from server.serving import Serving, serve
    from server.sockets import listen
    from server.store import StoreUnavailable

    options = RuntimeOptions.of(args, seats=SEATS)
    try:
        with listen(args.host, args.port) as sock:
            directory = resolve(args.engines)
            manifest = read(directory, verify=False)  # the worker verifies
            worker = [sys.executable, "-m", "server.worker", str(directory), options.encode()]
            serve(sock, worker, manifest, Serving(database=args.database), started)
    except (ZImageError, StoreUnavailable, OSError) as error:
        sys.exit(f"zimage-serve: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("zimage-serve", description="Serves a plan directory over HTTP.")
    add_pipeline_arguments(parser)
    parser.add_argument("--host", type=_host, default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=_port, default=8000, help="0 for a free one; default: %(default)s")
    parser.add_argument(
        "--database", type=Path, metavar="FILE", help="keeps jobs and pictures, so that they survive a restart"
    )
    return parser


def _host(text: str) -> str:
    if not text.strip():  # an unset variable; to the socket it would mean every interface
        raise argparse.ArgumentTypeError("must not be empty; 0.0.0.0 listens on every interface")
    return text.strip("[]")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be between 0 and 65535, got {port}")
    return port


if __name__ == "__main__":
    main()

"""The command-line options of every program that loads a pipeline; imports nothing that takes time."""

import argparse
from pathlib import Path

MAX_THREADS = 256


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engines` and `--threads`, the arguments of `Pipeline.load`."""
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="what build-engines --output wrote")
    parser.add_argument(
        "--threads", type=_threads, default=0, help="CPU threads, 0 for one per core; default: %(default)s"
    )


def _threads(text: str) -> int:
    threads = int(text)
    if not 0 <= threads <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be between 0 and {MAX_THREADS}, got {threads}")
    return threads

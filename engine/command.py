"""What all commands have in common: `--version`, and one line for an error or an interruption. Its imports are fast."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import ZImageError

INTERRUPTED = 130  # exit status of a process that SIGINT ended, as shells report it


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """End the process with one line on stderr: with status 1 after an error, 130 after Ctrl-C.

    Args:
        name: name of the command.
    """
    try:
        yield
    except (ZImageError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interruption:
        what = str(interruption)
        print(f"{name}: interrupted" + (f"; {what}" if what else ""), file=sys.stderr)
        sys.exit(INTERRUPTED)


def add_version(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action=_Version, nargs=0, help="Print the version and exit")


class _Version(argparse.Action):
    """Print the version that is installed; looked up only here, since that takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('zimage-trt')}")
        parser.exit()

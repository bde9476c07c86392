"""The file descriptors of the server's process. Knows their limit; not what they are used for."""

import logging
import resource
from contextlib import suppress

log = logging.getLogger(__name__)

ENOUGH = 65_536  # descriptors; some libraries close every possible one in their child processes
RESERVE = 128  # for database, archive, worker and page, and for connections that are accepted before they are counted
FEWEST, MOST = 32, 8192  # connections
LOW = 512  # connections; fewer are worth a line in the log


def raise_limit() -> int:
    """Raise the limit of open files as far as the system allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def max_connections(limit: int) -> int:
    """Return how many connections a limit of open files allows, with `RESERVE` for the server itself.

    Raises:
        OSError: it allows too few.
    """
    connections = min(limit - RESERVE, MOST)
    if connections < FEWEST:
        raise OSError(
            f"the limit of open files is {limit}, zimage-serve needs at least {RESERVE + FEWEST}; "
            "raise it with ulimit -n or LimitNOFILE"
        )
    if connections < LOW:
        log.warning(
            "At most %d connections are served at once, since the limit of open files is %d; "
            "raise it with ulimit -n or LimitNOFILE",
            connections,
            limit,
        )
    return connections

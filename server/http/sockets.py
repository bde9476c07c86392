"""The socket that the server listens on, and the handling of accept errors."""

import asyncio
import logging
import math
import socket
from typing import Any

log = logging.getLogger(__name__)

ACCEPT_FAILED = "socket.accept() out of system resource"  # asyncio's message
LOG_INTERVAL = 10.0  # seconds


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind a socket to an address; port 0 picks a free port.

    Raises:
        OSError: the address is in use, or is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named; without it, kept connections wait 40 ms for each answer
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restart without waiting for TIME_WAIT
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {bracketed(host)}:{port}: {error.strerror}") from error
    return sock


def bracketed(host: str) -> str:
    """Return a host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def throttle_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log failures to accept connections every 10 s at most.

    asyncio logs thousands a second while no file descriptor is left.
    """
    last_logged = -math.inf

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last_logged
        if context["message"] != ACCEPT_FAILED:
            loop.default_exception_handler(context)
        elif loop.time() - last_logged >= LOG_INTERVAL:
            last_logged = loop.time()
            log.error("Cannot accept connections: %s; raise the limit with ulimit -n", context["exception"])

    loop.set_exception_handler(handle)

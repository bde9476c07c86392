"""The socket that a server listens on."""

import asyncio
import logging
import math
import socket
from typing import Any

log = logging.getLogger(__name__)

NO_ROOM = "socket.accept() out of system resource"  # as asyncio says it
TELL_EVERY = 10.0  # seconds


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 is a free one. Raises OSError if it is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it a kept connection waits 40 ms per answer
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {bracketed(host)}:{port}: {error.strerror}") from error
    return sock


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def throttle_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Logs now and then that no descriptor is left for a connection: asyncio does so thousands of times a second."""
    told = -math.inf

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if context["message"] != NO_ROOM:
            loop.default_exception_handler(context)
        elif loop.time() - told >= TELL_EVERY:
            told = loop.time()
            log.error("connections have to wait: %s; ulimit -n allows more", context["exception"])

    loop.set_exception_handler(handle)

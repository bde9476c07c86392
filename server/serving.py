"""From a pipeline to a process that serves it: the socket, the warm-up, uvicorn, the end.

Knows signals and ports; not command lines.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Callable

import uvicorn

from engine.request import PictureRequest
from server.app import create_app
from server.drawing import PictureSource

GRACE_SECONDS = 20  # for pictures being drawn when the server is told to stop; container runtimes kill after 30 at most


def serve(load: Callable[[], PictureSource], host: str, port: int, started: float) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        load: opens what is served; called when the port is ours.
        port: 0 for a free one.
        started: `time.perf_counter()` at the start, for the ready line.

    Raises:
        OSError: the address is taken or not ours.
        ZImageError: what `load` refuses.
    """
    with _bind(host, port) as sock, contextlib.suppress(KeyboardInterrupt):
        pipeline = load()
        warm_up(pipeline)
        config = uvicorn.Config(create_app(pipeline), log_config=None, timeout_graceful_shutdown=GRACE_SECONDS)
        # uvicorn raises the signal that ended it once more when it is done: here both end quietly
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _Server(config, started).run(sockets=[sock])


def warm_up(pipeline: PictureSource) -> None:
    """Draws the smallest picture in one step: plans that cannot run fail here, before anything is served."""
    smallest = min(pipeline.manifest.profiles, key=lambda p: p.height.min * p.width.min)
    request = PictureRequest("warm-up", smallest.height.min, smallest.width.min, num_inference_steps=1)
    pipeline.start(request).finish()


class _Server(uvicorn.Server):
    """Says on stdout that it is ready, when it is."""

    def __init__(self, config: uvicorn.Config, started: float) -> None:
        super().__init__(config)
        self._started_at = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        seconds = time.perf_counter() - self._started_at
        print(f"zimage-serve: ready on http://{_bracketed(host)}:{port} in {seconds:.2f} s", flush=True)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it a kept connection waits 40 ms per answer
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {_bracketed(host)}:{port}: {error.strerror}") from error
    return sock


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""Start and stop of a worker host: its devices' workers, its claims and its probes."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

from server.allocator import give_back_large_blocks
from server.errors import WorkerStartFailed
from server.fleet.host import WorkerHost
from server.fleet.probes import probe_app
from server.http.connections import Connections
from server.http.server import config
from server.http.timeouts import TimeoutServer
from server.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

PROBE_CONNECTIONS = 64


class ProbeServer(TimeoutServer):
    """uvicorn for a host's probes. It answers until the host has stopped, so signals are not its matter."""

    def __init__(self, host: WorkerHost) -> None:
        super().__init__(config(probe_app(host), 0.0, Connections(PROBE_CONNECTIONS)))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_host(host: WorkerHost, supervisors: list[Supervisor], sock: socket.socket | None) -> None:
    """Run a host until SIGTERM or SIGINT; a second signal ends it without waiting for its jobs.

    Args:
        supervisors: of the devices of `host.worker_queue`.
        sock: bound to the address of the probes; None for none.

    Raises:
        WorkerStartFailed: a worker cannot serve the plans.
        StoreUnavailable: the database does not answer.
    """
    give_back_large_blocks()
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, host, stopping)
    server = ProbeServer(host)
    serving = asyncio.create_task(server.serve([sock])) if sock is not None else None
    starts = [asyncio.create_task(supervisor.start()) for supervisor in supervisors]
    try:
        await host.start()
        await _until(stopping, starts)
    finally:
        for start in starts:
            start.cancel()
        await host.stop()
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
        server.should_exit = True
        if serving is not None:
            await serving


def _on_signal(host: WorkerHost, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        host.hurry()
    stopping.set()


async def _until(stopping: asyncio.Event, starts: list["asyncio.Task[None]"]) -> None:
    """Wait for a signal. Raises WorkerStartFailed if a first worker cannot serve the plans."""
    signalled = asyncio.create_task(stopping.wait())
    try:
        waiting: set[asyncio.Task[object]] = {signalled, *starts}
        while not stopping.is_set():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    except WorkerStartFailed:
        log.error("the host stops, since a worker cannot be started")
        raise
    finally:
        signalled.cancel()

"""Start and stop of a worker host: its devices' workers, its claims and its probes."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import psutil

from engine.plan.manifest import Manifest
from server.allocator import give_back_large_blocks
from server.fleet.host.host import WorkerHost
from server.fleet.host.host_options import HostOptions
from server.fleet.host.probes import probe_app
from server.fleet.messaging.celery_app import create_celery, queues_of_host
from server.http.connections import Connections
from server.http.server import config
from server.http.sockets import bracketed
from server.http.timeouts import TimeoutServer
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.images.image_store import open_image_store
from server.worker.supervisor import WorkerTimeouts
from server.worker.supervisors import Supervisors, WorkerCommand

PROBE_CONNECTIONS = 64
PROBE_SECONDS = 1.0  # for the last answers


class ProbeServer(TimeoutServer):
    """uvicorn for a host's probes. It answers until the host has stopped, so signals are not its matter."""

    def __init__(self, host: WorkerHost) -> None:
        super().__init__(config(probe_app(host), PROBE_SECONDS, Connections(PROBE_CONNECTIONS)))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_host(
    sock: socket.socket,
    workers: Sequence[WorkerCommand],
    manifest: Manifest,
    database: str,
    options: HostOptions,
    *,
    images: str | None = None,
    timeouts: WorkerTimeouts | None = None,
) -> None:
    """Run a host until SIGTERM or SIGINT; a second signal ends it without waiting for its jobs.

    Args:
        sock: bound to the address of the probes.
        workers: commands that start the workers of the devices.
        database: URL.
        images: URL of the image store; None for the database.

    Raises:
        WorkerStartFailed: no worker can serve the plans.
        StoreUnavailable: the database or the image store cannot be used.
    """
    give_back_large_blocks()
    asyncio.run(_run(sock, workers, manifest, database, options, images, timeouts))


async def _run(
    sock: socket.socket,
    workers: Sequence[WorkerCommand],
    manifest: Manifest,
    database: str,
    options: HostOptions,
    images: str | None,
    timeouts: WorkerTimeouts | None,
) -> None:
    queues = queues_of_host(options.fleet, manifest.model.name, manifest.plan_id, options.loras)
    app = create_celery(options.broker, options.fleet, queues)
    with closing(await asyncio.to_thread(FleetStore, database)) as store:
        host = WorkerHost(store, manifest, app, options, await open_image_store(images))
        supervisors = Supervisors(workers, host.worker_queue.add_device, timeouts)
        host.worker_queue.connect(supervisors.all)
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _on_signal, host, stopping)
        server = ProbeServer(host)
        serving = asyncio.create_task(server.serve([sock]))
        try:
            await _until(stopping, asyncio.create_task(_start(host, supervisors, sock)))
        finally:
            await host.stop()
            await supervisors.stop()
            server.should_exit = True
            await serving


async def _start(host: WorkerHost, supervisors: Supervisors, sock: socket.socket) -> None:
    """Start host and workers; print that the host is ready once the first worker is."""
    starting = asyncio.create_task(supervisors.start())
    try:
        await host.start()
        await starting
    finally:
        starting.cancel()
    address, port = sock.getsockname()[:2]
    seconds = time.time() - psutil.Process().create_time()
    print(f"zimage-worker: ready, probes on http://{bracketed(address)}:{port}, in {seconds:.2f} s", flush=True)


def _on_signal(host: WorkerHost, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        host.hurry()
    stopping.set()


async def _until(stopping: asyncio.Event, starting: "asyncio.Task[None]") -> None:
    """Wait for a signal. Raises what `starting` raises."""
    signalled = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((signalled, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await signalled
    finally:
        signalled.cancel()
        starting.cancel()

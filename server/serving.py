"""Start and stop of a server: worker, job service and HTTP.

Most of a start is imports. This module imports little before the worker process starts, so that the imports of both
processes run in parallel.
"""

import asyncio
import contextlib
import fcntl
import gc
import signal
import socket
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.plan.guide import Guide
from engine.plan.manifest import Manifest
from server.allocator import give_back_large_blocks
from server.api.dialects.names import DIALECTS
from server.api.public_address import PublicAddress
from server.http.descriptors import max_connections, raise_limit
from server.http.host_names import HostNames
from server.http.sockets import throttle_accept_errors
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.service import JobService
from server.jobs.storage.databases.sqlite import open_private
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.images.image_store import open_image_store
from server.jobs.storage.store import JobStore
from server.uploads.limits import MAX_UPLOAD
from server.worker.supervisor import WorkerTimeouts
from server.worker.supervisors import Supervisors, WorkerCommand

if TYPE_CHECKING:
    from server.app import AppOptions
    from server.fleet.fleet_options import FleetOptions


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of a server.

    Attributes:
        grace: seconds to finish running images after SIGTERM or SIGINT; Kubernetes kills after 30 by default.
        drain: seconds to go on after SIGTERM, before `grace`, so that load balancers move on; 0 for none.
        database: SQLite file of jobs and images; None keeps them in memory.
        images: URL of the image store; None to keep images in the database. See `image_store.check_url`.
        archive: folder for copies of images; None for no copies.
        page: True to serve the web page at /.
        keys, rate, shared_history: fields of `server.api.access.AccessPolicy`.
        hosts: public names of the server; see `server.http.host_names.HostNames`.
        trusted_proxies: addresses and networks of proxies whose X-Forwarded-* headers are believed.
        public_url: the server's address for its clients; None to take it from each request.
        connections_per_address: maximum number of connections from an IPv4 address or IPv6 /64 network.
        loras: names of the LoRAs that requests may ask for; the worker has their files.
        cors_origins: origins whose pages may call the API; see `server.http.origins.parse_origin`.
        model_names: names of the model, the one in answers first; empty for the one in the plans.
        strict_model: True to refuse requests for other models.
        guide: what to expect of the model.
        dialects: names of the dialects to offer, of `server.api.dialects.names.DIALECTS`.
        image_input: False to take no images, whatever the plans can do with them.
        max_upload: bytes of an image that a client sends.
    """

    grace: float = 20.0
    drain: float = 2.0
    database: Path | None = None
    images: str | None = None
    archive: Archive | None = None
    page: bool = True
    keys: tuple[str, ...] = field(default=(), repr=False)
    rate: str | None = None
    shared_history: bool = False
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    public_url: PublicAddress | None = None
    connections_per_address: int = 128
    loras: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    strict_model: bool = False
    guide: Guide = field(default_factory=Guide)
    dialects: tuple[str, ...] = DIALECTS
    image_input: bool = True
    max_upload: int = MAX_UPLOAD
    limits: Limits = field(default_factory=Limits)
    timeouts: WorkerTimeouts = field(default_factory=WorkerTimeouts)


def serve(sock: socket.socket, workers: Sequence[WorkerCommand], manifest: Manifest, options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        sock: socket bound to the address.
        workers: commands that start the worker of each device.

    Raises:
        WorkerStartFailed: the worker cannot serve the plans.
        StoreUnavailable, OSError: the database, the image store or the archive cannot be opened, or another server uses
            the database.
    """
    if options.archive is not None:
        options.archive.require_usable()
    with _lock(options.database):
        _run(_serve(sock, workers, manifest, options))


def serve_replica(sock: socket.socket, manifest: Manifest, fleet: "FleetOptions", options: ServerOptions) -> None:
    """Serve as an API replica of a fleet until SIGTERM or SIGINT.

    Args:
        sock: socket bound to the address.
        options: those of workers and of a database of the server's own have no effect.

    Raises:
        StoreUnavailable: the database or the image store does not answer.
    """
    _run(_serve_replica(sock, manifest, fleet, options))


def _run(server: Coroutine[Any, Any, None]) -> None:
    give_back_large_blocks()
    with contextlib.suppress(KeyboardInterrupt):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        asyncio.run(server)


async def _serve_replica(
    sock: socket.socket, manifest: Manifest, fleet: "FleetOptions", options: ServerOptions
) -> None:
    from server.fleet.replica.service import FleetJobs  # not at the top: servers without a fleet lack its packages
    from server.jobs.storage.fleet.fleet_store import FleetStore

    manifest = manifest if options.image_input else manifest.without_image_input()
    images = await open_image_store(options.images)
    store = await asyncio.to_thread(FleetStore, fleet.database)
    jobs = FleetJobs(store, manifest, fleet, options.limits, options.loras, images)
    starting = asyncio.create_task(jobs.start())
    try:
        await starting
        await _serve_http(sock, jobs, starting, options)
    finally:
        await jobs.stop(options.grace)


async def _serve(
    sock: socket.socket, workers: Sequence[WorkerCommand], manifest: Manifest, options: ServerOptions
) -> None:
    manifest = manifest if options.image_input else manifest.without_image_input()
    images = await open_image_store(options.images)
    jobs = EmbeddedJobs(JobStore(options.database), manifest, options.limits, options.archive, options.loras, images)
    supervisors = Supervisors(workers, jobs.worker_queue.add_device, options.timeouts)
    jobs.worker_queue.connect(supervisors.all)
    starting = asyncio.create_task(supervisors.start())
    try:
        launched = asyncio.create_task(supervisors.launched())
        await asyncio.wait((starting, launched), return_when=asyncio.FIRST_COMPLETED)
        import server.app  # noqa: F401  # while the worker loads

        await jobs.start()
        await _serve_http(sock, jobs, starting, options)
        if starting.done():
            starting.result()  # raises the reason if the worker could not start
    finally:
        starting.cancel()
        await jobs.stop(options.grace)
        await supervisors.stop()


async def _serve_http(
    sock: socket.socket, jobs: JobService, starting: "asyncio.Task[None]", options: ServerOptions
) -> None:
    """Serve over HTTP until SIGTERM or SIGINT, ready once `starting` is done."""
    from server.app import create_app  # not at the top: they take long to import
    from server.http.connections import Connections
    from server.http.proxies import TrustedProxies
    from server.http.server import HttpServer

    throttle_accept_errors(asyncio.get_running_loop())
    most = max_connections(raise_limit())
    app = create_app(jobs, _app_options(sock.getsockname()[0], jobs.manifest, options))
    gc.freeze()  # a full collection holds the event loop, and what the imports made stays anyway
    connections = Connections(most, options.connections_per_address, TrustedProxies(options.trusted_proxies))
    await HttpServer(app, jobs, options.grace, options.drain, starting, connections).serve(sockets=[sock])


def _app_options(address: str, manifest: Manifest, options: ServerOptions) -> "AppOptions":
    """Return the options of the application at an address."""
    from server.api.access import AccessPolicy  # not at the top: they take long to import
    from server.api.served_model import ServedModel
    from server.app import AppOptions

    return AppOptions(
        AccessPolicy(options.keys, options.rate, options.shared_history),
        page=options.page,
        hosts=_host_names(address, options),
        trusted_proxies=options.trusted_proxies,
        public_url=options.public_url,
        model=ServedModel(options.model_names or (manifest.model.name,), options.strict_model, options.guide),
        cors_origins=options.cors_origins,
        dialects=options.dialects,
        max_upload=options.max_upload,
    )


def _host_names(address: str, options: ServerOptions) -> HostNames:
    """Return the names that requests to an address may use, that of the public URL among them."""
    names = HostNames(address, options.hosts)
    if options.public_url is None or names.valid is None:
        return names
    return replace(names, public=(*names.public, options.public_url.host))


def _interrupt(*_: object) -> None:
    """Handle SIGTERM and SIGINT quietly; uvicorn raises the one that stopped it again after its shutdown.

    asyncio would replace `signal.default_int_handler` by a handler that cancels `_serve`, and with it the orderly end
    of the jobs.
    """
    raise KeyboardInterrupt


@contextlib.contextmanager
def _lock(database: Path | None) -> Iterator[None]:
    """Lock a file beside the database: two servers with one database would run the same jobs."""
    if database is None:
        yield
        return
    with open(f"{database.resolve()}.lock", "w", opener=open_private) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"{database} is in use by another zimage-serve; give each server a database of its own"
            ) from error
        yield

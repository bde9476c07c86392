"""From plans to a process that serves them: worker, jobs, HTTP, and the end of them.

Imports next to nothing before the worker has been started: most of a start is imports, theirs and ours, side by side.
"""

import asyncio
import contextlib
import fcntl
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.plan.manifest import Manifest
from server.http.sockets import throttle_accept_errors
from server.jobs.admission import Limits
from server.jobs.archive import Archive
from server.jobs.service import JobService
from server.jobs.store import JobStore
from server.worker.supervisor import Supervisor, WorkerTimeouts


@dataclass(frozen=True, slots=True)
class Serving:
    """How a server runs.

    Attributes:
        grace: seconds for images being generated when it is told to stop; Kubernetes kills after 30.
        keys, rate: see `server.api.access.Access`.
        database: where jobs are kept; None for memory, which no restart survives.
        archive: where images are kept besides.
        page: whether there is one at /.
        loras: names that requests may ask for; the worker has their files.
    """

    grace: float = 20.0
    database: Path | None = None
    archive: Archive | None = None
    page: bool = True
    keys: tuple[str, ...] = field(default=(), repr=False)
    rate: str | None = None
    loras: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    timeouts: WorkerTimeouts = field(default_factory=WorkerTimeouts)


def serve(sock: socket.socket, worker: Sequence[str], manifest: Manifest, serving: Serving) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        sock: bound to the address.
        worker: command that starts one, to which its socket's descriptor is added.

    Raises:
        WorkerStartFailed: what the worker says of its plans.
        StoreUnavailable, OSError: the database cannot be opened, or another server has it.
    """
    with contextlib.suppress(KeyboardInterrupt), _owned(serving.database):
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, _end)
        asyncio.run(_serve(sock, worker, manifest, serving))


async def _serve(sock: socket.socket, worker: Sequence[str], manifest: Manifest, serving: Serving) -> None:
    throttle_accept_errors(asyncio.get_running_loop())
    dispatcher = JobService(JobStore(serving.database), manifest, serving.limits, serving.archive, serving.loras)
    supervisor = dispatcher.worker_queue.link = Supervisor(worker, dispatcher.worker_queue, serving.timeouts)
    starting = asyncio.create_task(supervisor.start())
    try:
        launched = asyncio.create_task(supervisor.launched.wait())
        await asyncio.wait((starting, launched), return_when=asyncio.FIRST_COMPLETED)
        from server.api.access import Access  # while the worker loads
        from server.http.server import HttpServer

        await dispatcher.start()
        access = Access(serving.keys, serving.rate)
        await HttpServer(dispatcher, access, serving.grace, serving.page, starting).serve(sockets=[sock])
        if starting.done():
            starting.result()  # or why it could not serve
    finally:
        starting.cancel()
        await dispatcher.stop(serving.grace)
        await supervisor.stop()


def _end(*_: object) -> None:
    """Ends both signals quietly: uvicorn raises the one that ended it once more when it is done.

    Not `signal.default_int_handler`: in its place asyncio would cancel `_serve`, and with it the end of the jobs.
    """
    raise KeyboardInterrupt


@contextlib.contextmanager
def _owned(database: Path | None) -> Iterator[None]:
    """Holds a lock beside the database: two servers would generate the same jobs."""
    if database is None:
        yield
        return
    with Path(f"{database.resolve()}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{database} belongs to another zimage-serve that is running; give each its own") from error
        yield

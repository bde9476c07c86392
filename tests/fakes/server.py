"""Servers of an engine that generates plain colours. As a script: such a server, with workers in processes."""

import asyncio
import base64
import io
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from fakes.jobs_mode import FleetServices
from fakes.loop import LORAS, MANIFEST, FakeLoop
from fakes.thread_worker import SHORT_TIMEOUTS, ThreadSupervisor
from PIL import Image

from engine.plan.manifest import Manifest
from server.api.access import AccessPolicy
from server.api.public_address import PublicAddress
from server.app import AppOptions, create_app
from server.http.connections import Connections
from server.http.host_names import HostNames
from server.http.server import config
from server.http.sockets import bind_socket
from server.http.timeouts import TimeoutServer
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.service import JobService
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.store import JobStore
from server.serving import ServerOptions, serve
from server.worker.supervisor import Supervisor
from server.worker.supervisors import WorkerCommand

if TYPE_CHECKING:
    import openai
    from openai.types import ImagesResponse

HOSTS = ("a", "generate.example", "images.test")  # names in requests of the tests
IMAGES = "/v1/images/generations"


@contextmanager
def serving(
    loop: FakeLoop,
    limits: Limits | None = None,
    database: Path | None = None,
    policy: AccessPolicy | None = None,
    hosts: HostNames = HostNames(public=HOSTS),  # noqa: B008
    trusted_proxies: tuple[str, ...] = (),
    connections: Connections | None = None,
    manifest: Manifest = MANIFEST,
    **options: Any,
) -> Iterator[str]:
    """Run a server in a thread, with a worker or a fleet over `FleetServices.current`, and yield its base URL.

    Args:
        options: further ones of `AppOptions`.
    """
    policy = policy or AccessPolicy(shared_history=True)
    app_options = AppOptions(policy, hosts=hosts, trusted_proxies=trusted_proxies, **options)
    if FleetServices.current is None or database is not None:
        loop.store = JobStore(database, busy_timeout=0.5)
        with running(EmbeddedJobs(loop.store, manifest, limits, loras=LORAS), app_options, connections, loop) as url:
            yield url
        return
    from fakes.fleet import hosting, new_options, replica  # not at the top: servers in processes need no Celery

    fleet = new_options(FleetServices.current)
    jobs = replica(fleet, manifest, limits)
    loop.store = jobs._store
    with hosting(loop, fleet, manifest), running(jobs, app_options, connections) as url:
        yield url


@contextmanager
def running(
    jobs: JobService, options: AppOptions, connections: Connections | None = None, loop: FakeLoop | None = None
) -> Iterator[str]:
    """Run a server of jobs in a thread, with a worker if a loop for it is given."""
    supervisor: Supervisor | None = None
    if isinstance(jobs, EmbeddedJobs):
        assert loop is not None
        device = jobs.worker_queue.add_device("cpu")
        supervisor = device.link = ThreadSupervisor(loop, jobs.manifest, device)

    async def run(sock: socket.socket) -> None:
        if supervisor is not None:
            await supervisor.start()
        try:
            await jobs.start()
            await server.serve(sockets=[sock])
        finally:
            await jobs.stop(grace=5)
            if supervisor is not None:
                await supervisor.stop()

    server = TimeoutServer(config(create_app(jobs, options), grace=5, connections=connections))
    with bind_socket("127.0.0.1", 0) as sock:
        sock.listen()  # clients wait for the worker to be ready
        thread = threading.Thread(target=lambda: asyncio.run(run(sock)))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def official_client(url: str) -> "openai.OpenAI":
    import openai  # takes two seconds, which servers in processes need not spend

    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=10)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Check that a response is an error in OpenAI's shape with an id, and return the error."""
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["code"]
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    return error


def pixels(response: "ImagesResponse", index: int = 0) -> np.ndarray:
    return decoded(base64.b64decode(response.data[index].b64_json))


def decoded(data: bytes, kind: str = "PNG") -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.format == kind
    return np.asarray(image.convert("RGB"))


def main(
    seconds_per_step: str,
    grace: str,
    database: str = "",
    keys: str = "",
    rate: str = "",
    queue: str = "",
    trusted_proxies: str = "",
    archive: str = "",
    model_names: str = "",
    cors_origins: str = "",
    public_url: str = "",
    drain: str = "0",
    port: str = "0",
    shared_history: str = "yes",
    images: str = "",
) -> None:
    options = ServerOptions(
        float(grace),
        float(drain),
        Path(database) if database else None,
        images or None,
        Archive(Path(archive)) if archive else None,
        keys=tuple(keys.split()),
        rate=rate or None,
        shared_history=bool(shared_history),
        hosts=HOSTS,
        trusted_proxies=tuple(trusted_proxies.split()),
        public_url=PublicAddress.parse(public_url) if public_url else None,
        cors_origins=tuple(cors_origins.split()),
        model_names=tuple(model_names.split()),
        strict_model=bool(model_names),
        limits=Limits(queue=int(queue or 256)),
        timeouts=SHORT_TIMEOUTS,
    )
    worker = [sys.executable, "-m", "fakes.loop", seconds_per_step]
    with bind_socket("127.0.0.1", int(port)) as sock:
        serve(sock, [WorkerCommand("cpu", worker)], MANIFEST, options)


if __name__ == "__main__":
    main(*sys.argv[1:])

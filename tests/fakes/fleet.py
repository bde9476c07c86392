"""A fleet in threads of the test's process: API replicas and a worker host whose engine generates plain colours.

Database and broker are real.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any

from fakes.jobs_mode import FleetServices
from fakes.loop import LORAS, FakeLoop
from fakes.thread_worker import ThreadSupervisor

from engine.plan.manifest import Manifest
from server.fleet.fleet_options import FleetOptions
from server.fleet.host.host import WorkerHost
from server.fleet.host.host_options import HostOptions
from server.fleet.messaging.celery_app import create_celery, queues_of_host
from server.fleet.replica.service import FleetJobs
from server.jobs.admission.admission import Limits
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.images.image_store import ImageStore

READY_SECONDS = 20.0


def new_options(services: FleetServices) -> FleetOptions:
    """Return the options of a new fleet, whose database and names in the broker are its own."""
    return FleetOptions(services.broker, services.new_database(), f"fleet-{uuid.uuid4().hex[:8]}")


def replica(
    options: FleetOptions, manifest: Manifest, limits: Limits | None = None, images: ImageStore | None = None
) -> FleetJobs:
    """Return the jobs of a replica, which may name the LoRAs of the fake engine before a host is there."""
    return FleetJobs(FleetStore(options.database, timeout=2.0), manifest, options, limits, LORAS, images)


@contextmanager
def hosting(
    loop: FakeLoop, options: FleetOptions, manifest: Manifest, images: ImageStore | None = None
) -> Iterator[WorkerHost]:
    """Run a worker host of one device, in a thread."""
    queues = queues_of_host(options.name, manifest.model.name, manifest.plan_id, LORAS)
    app = create_celery(options.broker, options.name, queues)
    id = f"host-{uuid.uuid4().hex[:8]}"
    of_host = HostOptions(id, "test", "0", options.broker, options.name, LORAS, grace=5.0)
    store = FleetStore(options.database, timeout=2.0)
    host = WorkerHost(store, manifest, app, of_host, images)
    device = host.worker_queue.add_device("cpu")
    supervisor = device.link = ThreadSupervisor(loop, manifest, device)

    async def run(stopping: asyncio.Event, is_ready: Callable[[], None]) -> None:
        await supervisor.start()
        try:
            await host.start()
            is_ready()
            await stopping.wait()
        finally:
            await host.stop()
            await supervisor.stop()

    with closing(store), in_thread(run):
        yield host


@contextmanager
def in_thread(run: Callable[[asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run a coroutine in a thread until the end of the block; it calls its second argument when it is ready."""
    ready, failures = threading.Event(), []
    loop, stopping = asyncio.new_event_loop(), asyncio.Event()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run(stopping, ready.set))
        except BaseException as error:  # noqa: BLE001  # raised by the block
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(READY_SECONDS)
        if not failures:
            yield
    finally:
        if not failures:
            loop.call_soon_threadsafe(stopping.set)
        thread.join(READY_SECONDS)
        assert not thread.is_alive()
    for failure in failures:
        raise failure

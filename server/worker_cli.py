"""`zimage-worker`: generate the images of a fleet on the devices of this machine."""

import logging
import os
import socket
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

from pydantic import AfterValidator, Field

from engine.command_line import one_line_errors
from engine.plan.directory import read, resolve
from server import logs, lora_folder, settings_sources, tracing
from server.fleet.host.host_options import GRACE_SECONDS, HostOptions
from server.http.sockets import bind_socket
from server.jobs.storage.databases.open_database import SERVER
from server.setting_types import BrokerUrl
from server.settings import HOST_SETTINGS, Settings
from server.settings_sources import EPILOG, Command
from server.worker.supervisor import WorkerTimeouts
from server.worker.supervisors import worker_commands

log = logging.getLogger(__name__)


def _database(value: str) -> str:
    if not value.startswith(SERVER):  # not quoted, since it may contain a password
        raise ValueError("must be the database of the fleet, postgresql://user:password@host/name")
    return value


class WorkerSettings(Settings):
    """Settings of `zimage-worker`. It must be told the fleet, and its grace period is not one of requests."""

    database: Annotated[str, AfterValidator(_database)] = Field(
        description="Database of the fleet, as postgresql://USER:PASSWORD@HOST/NAME; prefer the environment, since ps "
        "shows flags",
        title="URL",
        repr=False,
    )
    broker: BrokerUrl = Field(
        description="Broker of the fleet, as amqp://USER:PASSWORD@HOST/VHOST (RabbitMQ) or redis://:PASSWORD@HOST/0; "
        "prefer the environment, since ps shows flags",
        title="URL",
        repr=False,
    )
    grace: float = Field(
        GRACE_SECONDS,
        ge=0,
        le=3600,
        description="Seconds to finish the jobs that have begun, after SIGTERM or SIGINT; the others go back to the "
        "queue at once, as do those that are left after these seconds",
    )


WORK = Command(
    "zimage-worker",
    "Generate the images of a fleet on the devices of this machine.",
    """\
examples:
  zimage-worker --engines engines --broker redis://broker:6379/0 --database postgresql://zimage@database/zimage
  zimage-worker --engines engines --devices all --metrics-host 0.0.0.0   (broker and database in the environment)
"""
    + EPILOG % ("BROKER", "redis://broker:6379/0"),
    (
        *("engines", "devices", "threads", "profile", "warm_up", "cuda_graphs", "batching", "offload", "self_test"),
        *(
            "image_input",
            "runtime_cache",
            "loras",
            "database",
            "images",
            "grace",
            "broker",
            "fleet",
            "hang_seconds",
            "load_seconds",
        ),
        *(*HOST_SETTINGS, "log_format", "log_level"),
    ),
    WorkerSettings,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker host; exit with 0 after SIGTERM or SIGINT, or with 1 and a line on stderr if it cannot work."""
    given = settings_sources.read(argv, WORK)
    assert isinstance(given, WorkerSettings)
    logs.configure(given.log_format, given.log_level, process="host")
    with (
        one_line_errors("zimage-worker"),
        bind_socket(given.metrics_host, given.metrics_port) as sock,
        tracing.started("zimage-worker"),
    ):
        for name in settings_sources.unknown(os.environ):
            log.warning("The environment variable %s is not a setting of zimage-worker or zimage-serve", name)
        _run(given, sock)


def _run(given: WorkerSettings, sock: socket.socket) -> None:
    from server.hosting import run_host  # it takes a second

    directory = resolve(given.engines)
    manifest = read(directory, verify=False)  # the worker verifies
    if not given.image_input:
        manifest = manifest.without_image_input()
    loras = lora_folder.find(given.loras, manifest) if given.loras else ()
    devices = given.workers(manifest.target.flavor)
    workers = worker_commands(directory, given.runtime(loras), devices, given.log_format, given.log_level)
    name = socket.gethostname()
    options = HostOptions(
        id=f"{name}-{uuid.uuid4().hex[:8]}",
        host=name,
        version=version("zimage-trt"),
        broker=given.broker,
        fleet=given.fleet,
        loras=tuple(lora for lora, _ in loras),
        grace=given.grace,
    )
    timeouts = WorkerTimeouts(load=given.load_seconds, silence=given.hang_seconds)
    run_host(sock, workers, manifest, given.database, options, images=given.images, timeouts=timeouts)


if __name__ == "__main__":
    main()

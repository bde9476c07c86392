"""A fleet with everything around it: database, broker, namespace, disk, S3, clock. Knows no faults and no clients."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.faults.server import FAKETIME
from benchmarks.fleet import records
from benchmarks.fleet.deployment import Deployment, Setup, SharedUrls, fleet
from benchmarks.fleet.network import Network
from benchmarks.fleet.plans import write_plans
from benchmarks.fleet.program import clock
from benchmarks.services.postgres import PostgreSql
from benchmarks.services.rabbitmq import RabbitMq
from benchmarks.services.redis import Redis
from benchmarks.services.seaweed import SeaweedS3
from benchmarks.services.service import Service
from engine.scheduler.batch_table import PassTimes
from server.fleet.messaging.celery_app import ANY_MODEL, TASK, create_celery, queue

BROKER_LINK, DATABASE_LINK, PROBE_LINK = range(3)
FLEET = "zimage"  # the default of --fleet
DISK_MIB = 4
SIDE = 64  # of images, in pixels

Broker = Literal["redis", "rabbitmq"]
Images = Literal["database", "folder", "s3"]


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """Servers, images and clients of a run.

    Attributes:
        clients: number of API keys.
        pass_seconds: of the stand-in engine, by batch.
    """

    broker: Broker
    images: Images = "database"
    replicas: int = 2
    hosts: int = 3
    clients: int = 20
    pass_seconds: tuple[float, ...] = (0.1,)

    @property
    def keys(self) -> list[str]:
        return [f"client-{number}" for number in range(self.clients)]


class SmallDisk:
    """A file system of a few MiB in memory, at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filling = folder, folder / "filling"

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        given = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755"]
        subprocess.run(["mount", *given, "zimage-bench", str(self.folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no space."""
        with self._filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 14))
            except OSError:
                return

    def free(self) -> None:
        self._filling.unlink()


@dataclass(slots=True)
class Site:
    """A running fleet.

    Attributes:
        network: the namespace of the first host; None if there cannot be one.
        has_clock: True if `set_clock` sets that of the last replica and the last host.
    """

    deployment: Deployment
    urls: SharedUrls
    database: PostgreSql
    broker: Service
    network: Network | None
    disk: SmallDisk | None
    s3: Service | None
    has_clock: bool
    clock_file: Path

    def set_clock(self, offset: str) -> None:
        """Set the clock of one replica and one host, in libfaketime's notation, such as +1d."""
        self.clock_file.write_text(f"{offset}\n")

    def memory(self) -> Counter[str]:
        """Return the resident MiB of each process of the fleet, its workers apart."""
        found: Counter[str] = Counter()
        for program in self.deployment.programs:
            for process in program.processes()[:1]:
                with suppress(psutil.NoSuchProcess):
                    found[program.name] = process.memory_info().rss >> 20
        return found

    def send_tickets(self, jobs: Sequence[str]) -> None:
        """Send a ticket of each job, whether or not it has one. Each may be named several times."""
        with create_celery(self.urls.broker, FLEET) as app:
            for job in jobs:
                app.send_task(TASK, (job,), queue=queue(f"{FLEET}.{ANY_MODEL}.interactive"), ignore_result=True)


def missing(options: SiteOptions) -> str | None:
    """Return what this machine lacks for a fleet; None if it can run there. Namespaces and clocks may be missing."""
    services: list[type[Service]] = [PostgreSql, Redis if options.broker == "redis" else RabbitMq]
    services += [SeaweedS3] if options.images == "s3" else []
    for service in services:
        if program := service.missing():
            return f"{program} ({service.package})"
    return "root's rights, to mount a small disk" if options.images == "folder" and os.geteuid() else None


@contextmanager
def running(options: SiteOptions, folder: Path) -> Iterator[Site]:
    """Run a fleet; the records of its jobs begin with its start."""
    with ExitStack() as opened:
        has_network = (
            options.images == "database" and not Network.missing()
        )  # other stores cannot be reached from there
        network = opened.enter_context(Network(links=3)) if has_network else None
        addresses = ["127.0.0.1"] * 3 if network is None else network.addresses
        kind = Redis if options.broker == "redis" else RabbitMq
        broker: Service = opened.enter_context(kind(addresses[BROKER_LINK]))
        database = opened.enter_context(PostgreSql(addresses[DATABASE_LINK]))
        disk = opened.enter_context(SmallDisk(folder / "images")) if options.images == "folder" else None
        s3 = opened.enter_context(SeaweedS3()) if options.images == "s3" else None
        images = f"file://{disk.folder}" if disk is not None else None if s3 is None else s3.fresh_url()
        urls = SharedUrls(broker.fresh_url(), database.fresh_url(), images)
        engines = write_plans(folder / "plans", [PassTimes(SIDE, SIDE, options.pass_seconds)])
        probes = "127.0.0.1" if network is None else network.inside[PROBE_LINK]
        deployment = fleet(Setup(engines, folder, options.keys), urls, options.replicas, options.hosts, probes)
        site = Site(deployment, urls, database, broker, network, disk, s3, FAKETIME.exists(), folder / "clock")
        site.set_clock("+0")
        if network is not None:
            deployment.hosts[0].prefix = network.prefix
        credentials = {} if s3 is None else s3.credentials
        for program in deployment.programs:
            program.environment = {**program.environment, **credentials}
        if site.has_clock:
            for program in (deployment.replicas[-1], deployment.hosts[-1]):
                program.environment = {**program.environment, **clock(site.clock_file)}
        opened.enter_context(deployment)
        records.install(urls.database)
        yield site

"""Servers under test: one embedded server, or API replicas and worker hosts around a broker and a database."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.fleet.launch import stand_in_command
from benchmarks.fleet.program import Program
from benchmarks.services.service import free_port
from engine.module_command import module_command

HANG_SECONDS = 5.0  # after which a worker counts as hung; a pass of the stand-in takes a fraction of a second


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings that all processes of a deployment share.

    Attributes:
        engines: plan directory.
        folder: for logs and databases.
        keys: API keys of the clients.
        is_stand_in: True if `engines` are plans of the stand-in.
        threads: of each real engine.
        queue: maximum number of waiting jobs.
    """

    engines: Path
    folder: Path
    keys: Sequence[str]
    is_stand_in: bool = True
    threads: int = 1
    queue: int = 512

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command of a module with the options that all of them take."""
        start = stand_in_command if self.is_stand_in else module_command
        common = ("--engines", str(self.engines), "--hang-seconds", str(HANG_SECONDS), "--log-format", "json")
        return start(module, *common, *arguments)

    def server(self, name: str, *arguments: str) -> Program:
        """Return a `zimage-serve` that is not started yet."""
        port = free_port()
        options = ("--port", str(port), "--drain-seconds", "0", "--queue", str(self.queue), *arguments)
        environment = {"ZIMAGE_KEYS": " ".join(self.keys)}
        command = self.command("server.cli", *options)
        return Program(name, command, f"http://127.0.0.1:{port}", self.folder, environment=environment)


@dataclass(slots=True)
class Deployment:
    """The processes of a deployment.

    Attributes:
        replicas: `zimage-serve` processes.
        hosts: `zimage-worker` processes; none if the server is an embedded one.
    """

    replicas: list[Program]
    hosts: list[Program] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    @property
    def programs(self) -> list[Program]:
        return [*self.replicas, *self.hosts]

    def __enter__(self) -> Self:
        try:
            for program in self.programs:
                program.start()
            for program in self.programs:
                program.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            if program.is_running:
                program.terminate()
        for program in self.programs:
            program.stop()

    async def wait_until_ready(self) -> None:
        """Start what has ended, and wait until all of it serves."""
        for program in self.programs:
            if not program.is_running:
                program.start()
        for program in self.programs:
            await asyncio.to_thread(program.wait_until_ready)


def embedded(setup: Setup, workers: int) -> Deployment:
    """Return a server with its own workers and an SQLite database."""
    database = setup.folder / "jobs.db"
    options = ["--database", str(database), "--threads", str(setup.threads)]
    if workers > 1:
        options += ["--devices", f"cpu:{workers}"]
    return Deployment([setup.server("server", *options)])


@dataclass(frozen=True, slots=True)
class SharedUrls:
    """URLs that the processes of a fleet share; `images` is that of a store of images, if not the database."""

    broker: str
    database: str
    images: str | None = None

    def options(self) -> list[str]:
        images = [] if self.images is None else ["--images", self.images]
        return ["--broker", self.broker, "--database", self.database, *images]


def fleet(setup: Setup, urls: SharedUrls, replicas: int, hosts: int, first_host: str = "127.0.0.1") -> Deployment:
    """Return a fleet in which every host has one worker.

    Args:
        first_host: address at which the first host answers probes.
    """
    addresses = [first_host, *["127.0.0.1"] * hosts]
    return Deployment(
        [setup.server(f"replica-{number}", *urls.options()) for number in range(replicas)],
        [host(setup, urls, f"host-{number}", addresses[number]) for number in range(hosts)],
    )


def host(setup: Setup, urls: SharedUrls, name: str, address: str) -> Program:
    """Return a `zimage-worker` that is not started yet."""
    port = free_port()
    probes = ["--metrics-host", address, "--metrics-port", str(port)]
    options = [*urls.options(), "--devices", "cpu:1", "--threads", str(setup.threads), *probes]
    return Program(name, setup.command("server.worker_cli", *options), f"http://{address}:{port}", setup.folder)

"""The workers of all devices: one supervisor each. Knows commands and devices; not jobs."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.module_command import module_command
from engine.options import RuntimeOptions
from server.errors import WorkerStartFailed
from server.worker.devices import Device
from server.worker.supervisor import Supervisor, WorkerListener, WorkerTimeouts


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """Command that starts the worker of a device.

    Attributes:
        device: name of the device.
        command: the descriptor of the worker's socket is appended.
        environment: variables of the worker, beside those of the server.
    """

    device: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def worker_commands(
    directory: Path, options: RuntimeOptions, devices: Sequence[Device], log_format: str, log_level: str
) -> list[WorkerCommand]:
    """Return the commands that start the workers of some devices."""
    commands = []
    for device in devices:
        threads = options.threads if device.threads is None else device.threads
        own = replace(options, threads=threads, cpus=device.cpus)
        name = device.name if len(devices) > 1 else ""  # in log lines
        arguments = (str(directory), own.encode(), log_format, log_level, name)
        command = module_command("server.worker.process", *arguments)
        commands.append(WorkerCommand(device.name, command, device.environment))
    return commands


class Supervisors:
    """The supervisors of all devices.

    Args:
        add_device: adds a device of a name and returns its listener.

    Attributes:
        all: supervisors by device.
    """

    def __init__(
        self,
        commands: Sequence[WorkerCommand],
        add_device: Callable[[str], WorkerListener],
        timeouts: WorkerTimeouts | None = None,
    ) -> None:
        assert commands
        self.all: dict[str, Supervisor] = {}
        is_only = len(commands) == 1
        for each in commands:
            self.all[each.device] = Supervisor(
                each.command,
                add_device(each.device),
                timeouts,
                name="the worker" if is_only else f"the worker of {each.device}",
                environment=each.environment,
                goes_on=not is_only,
            )
        self._starts: list[asyncio.Task[None]] = []

    async def launched(self) -> None:
        """Wait until the first process runs, before it has loaded the plans."""
        waiting = [asyncio.create_task(supervisor.launched.wait()) for supervisor in self.all.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def start(self) -> None:
        """Start all workers and wait until the first one is ready. Those that cannot start are tried again.

        Raises:
            WorkerStartFailed: no worker could start, with the reasons.
        """
        self._starts = [asyncio.create_task(supervisor.start()) for supervisor in self.all.values()]
        waiting = set(self._starts)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None for task in done):
                return
        if len(self._starts) == 1:
            self._starts[0].result()
        reasons: dict[str, str] = {}
        for name, task in zip(self.all, self._starts, strict=True):
            reason = str(task.exception())
            reasons[reason] = f"{reasons[reason]}, {name}" if reason in reasons else name
        raise WorkerStartFailed("; ".join(f"{names}: {reason}" for reason, names in reasons.items()))

    async def stop(self) -> None:
        """Ask all workers to stop; kill those that do not."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self.all.values()))
        for task in self._starts:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

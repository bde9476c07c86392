"""A command of this project in a process: started, killed, stopped and started again. Knows processes; no jobs."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.faults.server import FAKETIME
from benchmarks.harness.tied_command import tied

READY_SECONDS = 120.0
STOP_SECONDS = 60.0


@dataclass(slots=True)
class Program:
    """One process, with a log for each of its starts. It ends with the benchmark.

    Start it from the main thread: the kernel ends it with the thread that started it.

    Attributes:
        url: where `/ready` answers.
        prefix: command in front, such as that of a network namespace.
        environment: further variables, such as those of another clock.
    """

    name: str
    command: Sequence[str]
    url: str
    folder: Path
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> list[Path]:
        return [self._log(number) for number in range(self.starts)]

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.is_running, self.name
        with self._log(self.starts).open("wb") as log:
            self._process = subprocess.Popen(
                [*self.prefix, *tied(self.command)],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.starts += 1

    def wait_until_ready(self) -> None:
        """Wait until it serves.

        Raises:
            RuntimeError: it has ended, or is not ready within READY_SECONDS; with the end of its log.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if not self.is_running or time.monotonic() > deadline:
                state = "is not ready" if self.is_running else "has ended"
                lines = self.logs[-1].read_text(errors="replace").splitlines()[-20:] if self.logs else []
                raise RuntimeError("\n".join([f"{self.name} {state}; the end of its log:", *lines]))
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End the process with SIGKILL; its workers end by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Ask the process to end, as an operator does."""
        self.signal(signal.SIGTERM)

    def stop(self) -> None:
        """End the process, and wait for that."""
        if self._process is not None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.kill()

    def processes(self) -> list[psutil.Process]:
        """Return the process and those that it started, the oldest first; empty if it does not run."""
        if not self.is_running or self._process is None:
            return []
        with suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            return [own, *sorted(own.children(recursive=True), key=lambda process: process.create_time())]
        return []

    def engines(self) -> list[psutil.Process]:
        """Return its worker processes."""
        found = []
        for process in self.processes()[1:]:
            with suppress(psutil.Error):
                if "benchmarks.fleet.stand_in" in process.cmdline():
                    found.append(process)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def _log(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number}.log"


def clock(file: Path) -> dict[str, str]:
    """Return the environment of a process whose wall clock differs by what a file says, such as +1d.

    Clocks that count from the start of the machine stay right.

    Raises:
        RuntimeError: libfaketime is not installed.
    """
    if not FAKETIME.exists():
        raise RuntimeError(f"another clock needs libfaketime (Debian's package faketime): {FAKETIME} is missing")
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
